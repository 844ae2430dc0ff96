"""SESR and EDSR against their papers' equations, written with torch functions and the official names of weights."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, randomise
from torch import Tensor, nn

from reparam import EDSR, SESR, IdentityBranch, RepSRBlock, create_model, fuse

State = dict[str, Tensor]


def conv(z: Tensor, state: State, name: str) -> Tensor:
    """A convolution that keeps the size."""
    weight = state[f"{name}.weight"]
    return F.conv2d(z, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)


def depth_to_space(y: Tensor) -> Tensor:
    """TensorFlow's, of block size 2, by its definition: channel (2 i + j) C + c goes to pixel (i, j) of channel c."""
    n, channels, h, w = y.shape
    out = torch.zeros(n, channels // 4, 2 * h, 2 * w, dtype=y.dtype)
    for i in (0, 1):
        for j in (0, 1):
            first = (2 * i + j) * (channels // 4)
            out[:, :, i::2, j::2] = y[:, first : first + channels // 4]
    return out


def expanded_sesr(state: State, x: Tensor, num_blocks: int, scale: int) -> Tensor:
    """The expanded training graph of SESR: two convolutions per block, and every residual as an addition."""

    def block(z: Tensor, name: str) -> Tensor:
        branch = f"{name}.branches.0"
        return conv(conv(z, state, f"{branch}.expand"), state, f"{branch}.squeeze")

    first = z = block(x - 0.5, "conv_first")
    for index in range(0, 2 * num_blocks, 2):
        z = F.prelu(block(z, f"body.{index}") + z, state[f"body.{index + 1}.weight"])
    y = block(z + first, "conv_last") + x
    return depth_to_space(y) if scale == 2 else depth_to_space(depth_to_space(y))


@pytest.mark.parametrize(("scale", "channels"), [(2, 6), (4, 6), (2, 4), (4, 16)])  # the last two: channels = scale²
def test_sesr(scale, channels):
    net = randomise(SESR(scale=scale, num_blocks=2, channels=channels, hidden_channels=9), 0).double()
    x = torch.rand(2, 1, 8, 7).double()
    expected = expanded_sesr(net.state_dict(), x, 2, scale)
    assert_close(net(x), expected)
    assert_close(fuse(net)(x), expected)


def test_sesr_has_short_residuals_in_its_body_only():
    net = SESR(scale=4, channels=16, num_blocks=2, hidden_channels=8)
    names = [name for name, module in net.named_modules() if isinstance(module, IdentityBranch)]
    assert names == ["body.0.branches.1", "body.2.branches.1"]


@pytest.mark.parametrize(
    ("size", "giga_macs", "hidden"),
    [("m3", 2.05, 256), ("m5", 3.1, 256), ("m7", 4.2, 256), ("m11", 6.3, 64), ("xl", 24.3, 64)],
)  # multiplications for an output of 1280x720 at scale 2, as the authors publish them
def test_sizes_of_sesr(size, giga_macs, hidden):
    net = create_model(f"sesr_{size}_x2")
    assert net.body[0].branches[0].expand.out_channels == hidden
    plain = fuse(net)
    weights = sum(module.weight.numel() for module in plain.modules() if isinstance(module, nn.Conv2d))
    assert abs(weights * 640 * 360 / 1e9 - giga_macs) < 0.05
    assert sum(p.numel() for p in plain.parameters()) == weights + net.channels * (2 * net.num_blocks + 1) + 4
    assert {module.kernel_size for module in plain.modules() if isinstance(module, nn.Conv2d)} == {(5, 5), (3, 3)}


MEAN = torch.tensor([0.4488, 0.4371, 0.4040]).double()  # rounded to float32 first, as a network has it


def original_names(state: State, num_blocks: int) -> State:
    """The state dict of EDSR as its authors' files name it, with the mean as two convolutions on a range of 255."""
    names = {"conv_first": "head.0", "conv_after_body": f"body.{num_blocks}", "conv_last": "tail.1"}
    names |= {"upsample.0": "tail.0.0", "upsample.2": "tail.0.2"}
    for index in range(num_blocks):
        names |= {f"body.{index}.conv1": f"body.{index}.body.0", f"body.{index}.conv2": f"body.{index}.body.2"}
    renamed = {f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in state.items()}
    identity = torch.eye(3).double().view(3, 3, 1, 1)
    shifts = {"sub_mean.bias": -255 * MEAN, "add_mean.bias": 255 * MEAN}
    return renamed | {"sub_mean.weight": identity, "add_mean.weight": identity} | shifts


def original_edsr(state: State, x: Tensor, num_blocks: int, scale: int, res_scale: float) -> Tensor:
    """EDSR on an image of range 0 to 255."""
    first = z = conv(conv(x, state, "sub_mean"), state, "head.0")
    for index in range(num_blocks):
        inside = conv(F.relu(conv(z, state, f"body.{index}.body.0")), state, f"body.{index}.body.2")
        z = z + res_scale * inside
    y = conv(z, state, f"body.{num_blocks}") + first
    for name, factor in [("tail.0.0", 2), ("tail.0.2", 2)] if scale == 4 else [("tail.0.0", scale)]:
        y = F.pixel_shuffle(conv(y, state, name), factor)
    return conv(conv(y, state, "tail.1"), state, "add_mean")


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("res_scale", [1.0, 0.1])
def test_edsr(scale, res_scale):
    net = randomise(EDSR(scale=scale, num_blocks=2, channels=5, res_scale=res_scale), 0).double()
    x = torch.rand(2, 3, 7, 6).double()
    state = original_names(net.state_dict(), 2)
    assert_close(255 * net(x), original_edsr(state, 255 * x, 2, scale, res_scale))


def test_edsr_of_blocks_fuses_into_the_plain_one():
    net = randomise(EDSR(scale=4, num_blocks=2, channels=5, block=RepSRBlock), 0).double().eval()
    plain = EDSR(scale=4, num_blocks=2, channels=5).double()
    plain.load_state_dict(fuse(net).state_dict())
    x = torch.rand(1, 3, 7, 6).double()
    assert_close(plain(x), net(x))


def test_edsr_in_other_colors_and_ranges():
    net = EDSR(scale=2, num_blocks=1, channels=4, colors=1)
    assert net.mean.tolist() == [[[[0.0]]]]
    shifted = EDSR(scale=2, num_blocks=1, channels=4, colors=1, mean=[0.5], img_range=1.0)
    shifted.load_state_dict(net.state_dict())
    x = torch.rand(1, 1, 6, 5)
    assert_close(shifted(x + 0.5), net(x / 255) * 255 + 0.5)


def test_keys_and_counts_of_edsr():
    keys = [
        f"{name}.{kind}"
        for name in ("conv_first", *(f"body.{i}.conv{j}" for i in range(16) for j in (1, 2)))
        for kind in ("weight", "bias")
    ]
    ends = ["conv_after_body", "upsample.0", "upsample.2", "conv_last"]
    keys += [f"{name}.{kind}" for name in ends for kind in ("weight", "bias")]
    net = create_model("edsr_m16c64_x4")
    assert list(net.state_dict()) == keys
    counts = [sum(p.numel() for p in create_model(f"edsr_m16c64_x{scale}").parameters()) for scale in (2, 4)]
    assert [round(count / 1000) for count in counts] == [1370, 1518]  # as published
    with torch.device("meta"):
        assert create_model("edsr_m32c256_x2").body[0].res_scale == 0.1
