"""How networks start: a fifth of the signal reaches the last layer, which adds a hundredth, and a reset repeats it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reparam.models._net as net_module
from reparam import (
    ConvBlock,
    ConvSpec,
    DilatedReparamBlock,
    RepVGGBlock,
    SpecError,
    create_model,
    fuse,
    reset_parameters,
)
from reparam.bn._norm import is_norm
from reparam.branches import IdentityBranch
from reparam.models import SRNet
from reparam.models._start import ARRIVES, LAST, scale

FAMILIES = ("plain", "ecbsr", "repsr", "repvggsr", "qarepvggsr", "collapsiblesr")
BLOCKS = sorted(ConvBlock.__subclasses__(), key=lambda block: block.__name__)


pytestmark = pytest.mark.usefixtures("as_users_get_it")


def added(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the network adds to its enlarged input."""
    return net(x) - F.interpolate(x, scale_factor=net.scale, mode=net.base)


def kernel_of(layer: nn.Module) -> torch.Tensor:
    return (layer.weight if isinstance(layer, nn.Conv2d) else layer.kernel().weight).detach()


@pytest.mark.parametrize("depth", [1, 12])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_starts_as_its_enlarged_input(family, depth):
    net, x = create_model(f"{family}_m{depth}c16_x2"), torch.rand(4, 3, 24, 24)
    assert 0 < added(net.train(), x).abs().mean() < 0.02
    assert all(not parameter.any() for name, parameter in net.named_parameters() if name.endswith("bias"))


# the square of He's gain: 2 / (1 + slope²)
GAINS = {"prelu": 2 / (1 + 0.25**2), "relu": 2, "leakyrelu": 2 / (1 + 0.1**2), "softplus": 2, "linear": 1}


@pytest.mark.parametrize("options", [{"act": act} for act in GAINS] + [{"plain_ends": True}, {"expansion": 1.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_have_the_length_of_the_rule(options, dtype):
    torch.set_default_dtype(dtype)
    try:
        layers = create_model("ecbsr_m2c16_x3", **options).body[::2]
    finally:
        torch.set_default_dtype(torch.float32)
    lengths = [kernel_of(layer).double().flatten(1).square().sum(1).mean().sqrt().item() for layer in layers]
    length = GAINS[options.get("act", "prelu")] ** 0.5 * ARRIVES ** (1 / 3)
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    assert lengths == pytest.approx([length, length, length, LAST], rel=tolerance)


@pytest.mark.parametrize("act", ["prelu", "relu", "linear"])
@pytest.mark.parametrize("depth", [4, 16, 32])
@pytest.mark.parametrize("family", ["plain", "ecbsr"])
def test_a_fifth_of_the_signal_reaches_the_last_layer(family, depth, act):
    """At any depth, as the mean over many kernels. With rows of length one it is 1e-5 behind 32 layers with PReLU."""
    shares = []
    for seed in range(8):
        torch.manual_seed(seed)
        net = create_model(f"{family}_m{depth}c32_x2", act=act)
        x = F.interpolate(torch.rand(1, 3, 12, 12), 64, mode="bicubic")
        with torch.no_grad():
            shares.append((net.body[:-1](x).square().mean() / x.square().mean()).item())
    assert ARRIVES / 3 < torch.tensor(shares).mean().sqrt() < 3 * ARRIVES, shares


@pytest.mark.parametrize("depth", [4, 16, 32])
def test_gradients_are_larger_than_what_adam_takes_for_zero(depth):
    """Adam divides by the gradient's size plus 1e-8: where it is smaller, a layer stays as it is."""
    torch.manual_seed(0)
    net = create_model(f"plain_m{depth}c16_x2")
    x, y = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 64, 64)
    F.l1_loss(net(F.interpolate(x, 32, mode="bicubic")), y).backward()
    sizes = [layer.weight.grad.square().mean().sqrt() for layer in net.body[::2]]
    assert min(sizes) > 3e-7


@pytest.mark.parametrize("family", ["collapsiblesr", "repsr"])
def test_identities_and_norms_are_left_and_only_the_last_layer_shrinks(family, monkeypatch):
    torch.manual_seed(1)
    ours = create_model(f"{family}_m2c16_x2")
    monkeypatch.setattr(net_module, "scale_start", lambda *_: None)
    torch.manual_seed(1)
    unscaled = create_model(f"{family}_m2c16_x2")
    for a, b in zip(list(ours.body)[2:-1], list(unscaled.body)[2:-1]):
        for (name, one), other in zip(a.named_parameters(), b.parameters()):
            assert name.endswith("bias") or torch.equal(one, other)


def test_the_last_layer_is_scaled_once_and_not_its_batch_norms(monkeypatch):
    torch.manual_seed(1)
    ours = create_model("repsr_m1c16_x2").body[-1]
    monkeypatch.setattr(net_module, "scale_start", lambda *_: None)
    torch.manual_seed(1)
    for branch, other in zip(ours.branches, create_model("repsr_m1c16_x2").body[-1].branches):
        torch.testing.assert_close(branch.squeeze.weight, LAST * other.squeeze.weight)
        assert torch.equal(branch.expand.weight, other.expand.weight)
        assert torch.equal(branch.norm.weight, other.norm.weight)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reset", [lambda net: net.reset_parameters(), reset_parameters], ids=["network", "blocks"])
def test_a_reset_starts_anew(family, reset: Callable):
    net = create_model(f"{family}_m2c8_x2")
    torch.manual_seed(3)
    again = create_model(f"{family}_m2c8_x2").state_dict()
    if reset is reset_parameters and family == "plain":
        assert reset(net) == []  # it has no block
        return
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
        for prelu in net.body[1::2]:
            prelu.weight.fill_(0.25)  # of which blocks know nothing
    torch.manual_seed(3)
    reset(net)
    assert all(torch.equal(tensor, again[name]) for name, tensor in net.state_dict().items())


def test_resetting_blocks_leaves_plain_layers_alone():
    net = create_model("repsr_m1c8_x2", plain_ends=True)
    first, last = net.body[0].weight.clone(), net.body[-1].weight.clone()
    with torch.no_grad():
        net.body[0].bias.fill_(1)
    reset_parameters(net)
    assert torch.equal(net.body[0].weight, first)
    assert torch.equal(net.body[-1].weight, last)
    assert net.body[0].bias.eq(1).all()


def test_a_network_on_meta_gets_its_start_later():
    with torch.device("meta"):
        net = create_model("ecbsr_m1c8_x2")
    net.to_empty(device="cpu").reset_parameters()
    assert 0 < added(net, torch.rand(1, 3, 8, 8)).abs().mean() < 0.02


def test_layers_of_other_kinds_are_left_alone():
    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.Conv2d(outputs, outputs, 3, padding=1))

    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 1)
    torch.manual_seed(0)
    net = SRNet(scale=2, num_blocks=1, channels=8, colors=3, block=block)
    assert torch.equal(net.body[0][0].weight, first.weight)
    assert torch.equal(net.body[0][0].bias, first.bias)


def test_fusing_changes_nothing():
    net, x = create_model("repvggsr_m2c8_x2").train(), torch.rand(2, 3, 16, 16)
    net(x)
    net.eval()
    torch.testing.assert_close(fuse(net)(x), net(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_scale_multiplies_the_kernel_of_every_block_without_its_identity(block):
    size = 5 if block is DilatedReparamBlock else 3
    try:
        layer = block(8, 12, size).double()
    except SpecError:  # a block for equal channels
        layer = block(8, 8, size).double()
    layer(torch.randn(4, 8, 16, 16, dtype=torch.float64))
    layer.eval()
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                tensor.zero_()
        identity = sum(
            part.kernel().weight for part in layer.branches if type(part) is IdentityBranch and not part.norm
        )
        before = layer.kernel().weight.clone()
        scale(layer, 0.3)
        after = layer.kernel().weight
    whole = not any(isinstance(module, IdentityBranch) for module in layer.modules()) or isinstance(
        identity, torch.Tensor
    )
    if whole or any(is_norm(module) for module in layer.modules()):
        torch.testing.assert_close(after - identity, 0.3 * (before - identity), atol=1e-12, rtol=1e-12)
    else:
        assert not torch.equal(after, before)  # what lies inside a part of the channels only


def test_a_norm_after_the_sum_is_what_is_scaled():
    block = RepVGGBlock(4, 8, sum_bn=True)
    branches = [parameter.clone() for parameter in block.branches.parameters()]
    scale(block, 0.5)
    assert block.norm.weight.eq(0.5).all()
    assert all(map(torch.equal, branches, block.branches.parameters()))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_convolutions_of_blocks_start_without_bias(block):
    layer = block(8, 8, 5 if block is DilatedReparamBlock else 3)
    biases = [module.bias for module in layer.modules() if isinstance(module, nn.Conv2d) and module.bias is not None]
    assert not any(bias.any() for bias in biases)


def test_weights_are_drawn_as_torch_draws_them():
    torch.manual_seed(2)
    ours, after = ConvSpec(4, 8).new_conv(), torch.rand(1)
    torch.manual_seed(2)
    theirs = nn.Conv2d(4, 8, 3, padding=1)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(after, torch.rand(1))
