"""Swapping convolutions for blocks: the same function in eval mode, everything trainable, the old keys after fusing."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from inspect import signature

import pytest
import timm
import torch
from helpers import assert_close, assert_close_everywhere, image, slow_conv
from hypothesis import given
from hypothesis import strategies as st
from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact
from spandrel.architectures.DnCNN.__arch.network_dncnn import DnCNN
from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet
from spandrel.architectures.NAFNet.__arch.NAFNet_arch import NAFNet
from spandrel.architectures.OmniSR.__arch.OmniSR import OmniSR
from spandrel.architectures.PLKSR.__arch.PLKSR import PLKSR
from spandrel.architectures.RealCUGAN.__arch.upcunet_v3 import UNet1
from spandrel.architectures.SAFMN.__arch.safmn import SAFMN
from spandrel.architectures.SPAN.__arch.span import SPAN
from spandrel.architectures.SwinIR.__arch.SwinIR import SwinIR
from strategies import KINDS, fits, seeds, specs
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

import reparam
from reparam import (
    ECB,
    EDSR,
    ConvSpec,
    DiverseBranchBlock,
    OREPABlock,
    PlainSR,
    RepSRBlock,
    RepVGGBlock,
    SpecError,
    StatisticsError,
    freeze_bn_stats,
    fuse,
    recalibrate_bn_stats,
    swap_convs,
)
from reparam.algebra._kernels import Kernel
from reparam.blocks._conv_block import ConvBlock
from reparam.bn._norm import norms
from reparam.fusing._absorb import absorb

BLOCKS = {
    name: getattr(reparam, name)
    for name in reparam.__all__
    if isinstance(getattr(reparam, name), type)
    and issubclass(getattr(reparam, name), ConvBlock)
    and name not in ("ConvBlock", "ChunkConv")
}
"""Those that take any kernel; a `ChunkConv` has parts of the channels only."""
GEOMETRIES = {
    "usual": {"in_channels": 6},
    "wider": {"in_channels": 6, "out_channels": 8},
    "stride": {"in_channels": 6, "out_channels": 4, "stride": 2},
    "groups": {"in_channels": 6, "groups": 2},
    "depthwise": {"in_channels": 4, "groups": 4},
    "no bias": {"in_channels": 6, "bias": False},
    "5x5 reflect": {"in_channels": 4, "kernel_size": 5, "padding": 2, "padding_mode": "reflect"},
    "cropped": {"in_channels": 5, "padding": 0},
}


def a_kernel(spec: ConvSpec, seed: int) -> Kernel:
    generator = torch.Generator().manual_seed(seed)
    shape = (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel_size)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Kernel(weight, torch.randn(shape[0], generator=generator, dtype=torch.float64))


def without_sum_bn(block: type[ConvBlock], geometry: dict) -> Callable[..., ConvBlock]:
    """A batch norm after the sum needs a bias."""
    asks = signature(block).parameters["sum_bn"].default
    return partial(block, sum_bn=False) if asks and geometry.get("bias") is False else block


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_takes_any_kernel(name: str, geometry: str):
    arguments = {"kernel_size": 3, **GEOMETRIES[geometry]}
    if name == "DilatedReparamBlock":
        arguments |= {"small": ([1, 2], [1, 2])}
    block = without_sum_bn(BLOCKS[name], arguments)(**arguments).double().eval()
    target = a_kernel(block.spec, 3)
    absorb(block, target)
    x = image(block.spec, 0, (7, 8))
    assert_close_everywhere(block(x), slow_conv(x, *target, block.spec))
    assert_close(block.to_conv().weight, target.weight)
    largest = max(float(p.detach().abs().max()) for p in block.parameters())
    assert largest <= 3 * float(target.weight.abs().max()), "the parameters are as large as what they stand for"


@given(st.data())
def test_any_geometry_is_taken_exactly_or_refused(data: st.DataObject):
    name = data.draw(st.sampled_from([kind for kind in KINDS if kind.partition(" ")[0] in BLOCKS]))
    spec = data.draw(specs(name).filter(lambda spec: fits(name, spec)))
    block = KINDS[name](spec).double().eval()
    target = a_kernel(spec, data.draw(seeds))
    if name.startswith(("RRRB", "RepMBConv")) and 2 * spec.in_channels < spec.out_channels:
        with pytest.raises(SpecError, match="too narrow"):
            absorb(block, target)
        return
    absorb(block, target)
    weight, bias = block._full(block.kernel())
    # Where what follows the kernel nearly loses a channel by chance, parameters are large, and so is their rounding.
    scale = max(float(tensor.detach().abs().max()) for tensor in (target.weight, *block.parameters()))
    assert_close(weight, target.weight, scale=scale)
    if spec.bias:
        assert_close(bias, target.bias, scale=scale)


def test_what_cannot_take_a_kernel_says_why():
    with pytest.raises(
        SpecError, match=r"RRRB \(3 -> 16, 3x3\) cannot take the kernel: .* SequentialBranch is too narrow"
    ):
        absorb(reparam.RRRB(3, 16).double().eval(), a_kernel(ConvSpec(3, 16), 0))
    with pytest.raises(SpecError, match=r"ChunkConv \(8 -> 8, 3x3.*its path through SliceBranch is too narrow"):
        absorb(reparam.ChunkConv(8, kernel_size=3).double().eval(), a_kernel(ConvSpec(8), 0))
    with pytest.raises(SpecError, match="OmniShift .* has no bias to take the convolution's"):
        absorb(reparam.OmniShift(4, conv_bias=False).double().eval(), a_kernel(ConvSpec(4, kernel_size=5), 0))
    block = reparam.ReparamBlock(ConvSpec(4), [partial(reparam.ConvBranch, kernel_size=1)])
    with pytest.raises(SpecError, match=r"ReparamBlock \(4 -> 4, 3x3\) has no convolution with all of its taps"):
        absorb(block.double().eval(), a_kernel(ConvSpec(4), 0))
    block = reparam.ReparamBlock(ConvSpec(4), [partial(reparam.ConvBranch, bias=False)])
    with pytest.raises(SpecError, match="no bias to take the convolution's"):
        absorb(block.double().eval(), a_kernel(ConvSpec(4), 0))
    block = RepVGGBlock(4, bn=partial(nn.BatchNorm2d, track_running_stats=False))
    with pytest.raises(SpecError, match="BatchNorm2d keeps no running statistics"):
        absorb(block.double().eval(), a_kernel(ConvSpec(4), 0))


def test_a_batch_norm_without_affine_is_no_hindrance():
    block = RepVGGBlock(4, bn=partial(nn.BatchNorm2d, affine=False)).double().eval()
    block.branches.append(reparam.ConvBranch(block.spec).double())  # the others have no bias
    target = a_kernel(block.spec, 0)
    absorb(block, target)
    assert_close(block.to_conv().weight, target.weight)


# Whole networks ------------------------------------------------------------------------------------------------------


def randomise_statistics(net: nn.Module) -> nn.Module:
    """Batch norms as after training, and no weight that starts from zero; only so does everything show."""
    for parameter in net.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.1)
    for _, bn in norms(net):
        bn.running_mean.normal_(0, 0.2)
        bn.running_var.uniform_(0.5, 2)
        bn.num_batches_tracked.fill_(5)
    return net


SMALL = {
    "EDSR": lambda: EDSR(num_blocks=1, channels=8),
    "PlainSR": lambda: PlainSR(num_blocks=1, channels=8),
    "SRVGGNetCompact": lambda: SRVGGNetCompact(num_conv=2, num_feat=8),
    "RRDBNet": lambda: RRDBNet(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=4),
    "DnCNN": lambda: DnCNN(in_nc=3, out_nc=3, nc=8, nb=4, mode="BR"),
    "NAFNet": lambda: NAFNet(width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1]),
    "OmniSR": lambda: OmniSR(num_in_ch=3, num_out_ch=3, num_feat=8, block_num=1, res_num=1, up_scale=2),
    "PLKSR": lambda: PLKSR(dim=8, n_blocks=1, upscaling_factor=2, kernel_size=9),
    "SAFMN": lambda: SAFMN(dim=8, n_blocks=1, upscaling_factor=2),
    "SwinIR": lambda: SwinIR(
        img_size=16, window_size=8, depths=[1], embed_dim=8, num_heads=[2], upsampler="pixelshuffle", upscale=2
    ),
    "UNet1": lambda: UNet1(3, 3, deconv=True),
    "timm resnet18": lambda: timm.create_model("resnet18", num_classes=5),
    "timm repvgg_a0": lambda: timm.create_model("repvgg_a0", num_classes=5),
}
SIZES = {"UNet1": 40, "timm resnet18": 32, "timm repvgg_a0": 32}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of other people's networks
@pytest.mark.parametrize("name", SMALL)
def test_a_network_is_the_same_after_swapping_and_loads_back_after_training(name: str):
    net = randomise_statistics(SMALL[name]()).double().eval()
    original, keys = copy.deepcopy(net), list(net.state_dict())
    x = torch.rand(2, 3, *[SIZES.get(name, 16)] * 2, dtype=torch.float64)
    block = partial(RepSRBlock, expansion=1.0) if name.startswith("timm") else RepSRBlock  # they are large
    report = swap_convs(net, block)
    blocks = [net.get_submodule(swapped) for swapped in report.swapped]
    assert all(isinstance(block, RepSRBlock) for block in blocks)
    assert [type(net.get_submodule(skipped)) for skipped in report.skipped] == [nn.ConvTranspose2d] * len(
        report.skipped
    )
    assert_close(net(x), original(x))

    before = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    freeze_bn_stats(net.train())  # some of the networks write in place in eval mode
    target = original(x.flip(3)).detach()
    for _ in range(2 if name.startswith("timm") else 10):
        optimizer.zero_grad()
        (net(x) - target).abs().mean().backward()
        for block in blocks:
            grads = {key: float(parameter.grad.abs().max()) for key, parameter in block.named_parameters()}
            assert not [key for key, grad in grads.items() if grad == 0 and (block.spec.bias or "bias" not in key)]
        optimizer.step()

    net.eval()
    fused = fuse(net)
    assert type(fused) is type(original) and list(fused.state_dict()) == keys
    original.load_state_dict(fused.state_dict(), strict=True)
    assert_close(original(x), net(x))
    assert not torch.allclose(original(x), before(x))


@pytest.mark.parametrize("block", [RepSRBlock, ECB, RepVGGBlock, DiverseBranchBlock, OREPABlock])
def test_in_float32_only_rounding_differs(block: type[ConvBlock]):
    net = PlainSR(num_blocks=2, channels=8).eval()
    x = torch.rand(1, 3, 17, 19)
    before = net(x)
    swap_convs(net, block)
    assert_close(net(x), before)
    assert_close(fuse(net)(x), before)


# What is kept --------------------------------------------------------------------------------------------------------


def two() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, bias=False))


def test_dtype_device_mode_layout_and_what_is_frozen_are_kept():
    net = two().to(torch.bfloat16).to(memory_format=torch.channels_last).train()
    net[0].requires_grad_(False)
    net[2].eval()
    swap_convs(net, RepSRBlock)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in net[0].parameters()) and all(p.requires_grad for p in net[2].parameters())
    assert net[0].training and not net[2].training and all(not m.training for m in net[2].modules())
    assert net[2].branches[1].expand.weight.is_contiguous(memory_format=torch.channels_last)
    fused = fuse(net.eval())
    assert fused[0].weight.is_contiguous(memory_format=torch.channels_last) and not fused[0].weight.requires_grad
    assert list(fused.state_dict()) == ["0.weight", "0.bias", "2.weight"]


class PartlyFrozen(RepSRBlock):
    """Keeps its first branch as it is."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.branches[0].requires_grad_(False)


def test_what_a_block_itself_holds_fixed_stays_fixed():
    net = two()
    net[0].bias.requires_grad_(False)  # the weight decides
    net[2].requires_grad_(False)
    swap_convs(net, PartlyFrozen)
    for name, parameter in net[0].named_parameters():
        assert parameter.requires_grad != name.startswith("branches.0."), name
    assert not any(parameter.requires_grad for parameter in net[2].parameters())


def test_a_convolution_used_twice_becomes_one_block():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()).double().eval()
    net.append(net[0])
    x = torch.randn(1, 4, 6, 7).double()
    before = net(x)
    assert swap_convs(net, ECB).swapped == ("0",)
    assert net[0] is net[2] and isinstance(net[0], ECB)
    assert_close(net(x), before)


def test_hooks_go_on():
    net, seen = two().eval(), []
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(type(module)))
    swap_convs(net, RepSRBlock)
    net(torch.rand(1, 3, 5, 5))
    assert seen == [RepSRBlock]


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(4, 6, 5, padding=2, dilation=1),
        nn.Conv3d(2, 3, 3, padding=1, stride=(1, 2, 1)),
        nn.Conv2d(4, 4, (1, 5), padding="same"),
        nn.Conv2d(4, 4, 4, padding="same"),
        nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4, padding_mode="circular"),
    ],
    ids=str,
)
def test_every_kind_of_convolution(conv: nn.Module):
    net = nn.Sequential(conv).double().eval()
    x = torch.randn(2, conv.in_channels, *[9] * (conv.weight.dim() - 2), dtype=torch.float64)
    before = net(x)
    swap_convs(net, RepSRBlock)
    assert_close(net(x), before)


# What is matched -----------------------------------------------------------------------------------------------------


class Odd(nn.Conv2d):
    """A convolution that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("match", "swapped"),
    [
        (None, ("body.0", "body.2", "body.4")),
        ("body.[02]", ("body.0", "body.2")),
        (["*.0", "*.4"], ("body.0", "body.4")),
        (nn.Conv2d, ("body.0", "body.2", "body.4")),
        (lambda name, module: isinstance(module, nn.Conv2d) and module.in_channels == 8, ("body.2", "body.4")),
    ],
)
def test_match(match, swapped: tuple[str, ...]):
    net = PlainSR(num_blocks=1, channels=8)
    assert swap_convs(net, RepSRBlock, match=match).swapped == swapped
    assert {name for name, module in net.named_modules() if isinstance(module, RepSRBlock)} == set(swapped)


def test_points_are_left_alone_unless_asked_for():
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3))
    assert swap_convs(net, RepSRBlock).swapped == ("1",)
    assert swap_convs(net, RepSRBlock, match="0").swapped == ("0",)


def test_convolutions_inside_of_blocks_are_left_alone():
    net = nn.Sequential(RepSRBlock(4), nn.Conv2d(4, 4, 3))
    assert swap_convs(net, ECB).swapped == ("1",)


def test_what_cannot_be_swapped_is_listed_with_the_reason():
    shared = nn.Conv2d(4, 4, 3)
    tied = nn.Conv2d(4, 4, 3)
    tied.weight = shared.weight
    twin, offset = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    offset.bias = twin.bias
    hooked, normed = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    hooked.register_forward_pre_hook(lambda module, inputs: None)
    with pytest.warns(FutureWarning):
        weight_norm(normed)
    pruned = nn.Conv2d(4, 4, 3)
    prune.l1_unstructured(pruned, "weight", 2)
    computed = parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    modules = {
        "good": nn.Conv2d(4, 4, 3),
        "odd": Odd(4, 4, 3),
        "transposed": nn.ConvTranspose2d(4, 4, 3),
        "shared": shared,
        "tied": tied,
        "twin": twin,
        "offset": offset,
        "hooked": hooked,
        "normed": normed,
        "pruned": pruned,
        "computed": computed,
        "narrow": nn.Conv2d(1, 8, 3),
        "meta": nn.Conv2d(4, 4, 3, device="meta"),
        "points": nn.Conv2d(4, 4, 1),
    }
    net = nn.ModuleDict(modules)
    report = swap_convs(net, reparam.RRRB)
    assert report.swapped == ("good",)
    reasons = {
        "odd": "Odd is not one of Conv1d, Conv2d, Conv3d",
        "transposed": "ConvTranspose2d is not one of",
        "shared": "a parameter of this Conv2d belongs to another module too",
        "tied": "a parameter of this Conv2d belongs to another module too",
        "twin": "a parameter of this Conv2d belongs to another module too",
        "offset": "a parameter of this Conv2d belongs to another module too",
        "hooked": "has forward pre-hooks",
        "normed": "not its own parameter",
        "pruned": "not its own parameter",
        "computed": "is computed (parametrizations)",
        "narrow": "RRRB (1 -> 8, 3x3, padding=(0, 0)) cannot take the kernel",
        "meta": "is on the meta device",
    }
    assert report.skipped.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in report.skipped[name]
        assert net[name] is modules[name]
    assert "1 convolutions swapped, 12 skipped" in str(report)
    assert re.search(r"^tied +skipped: a parameter of this Conv2d", str(report), re.MULTILINE)
    remove_parametrizations(computed, "weight")
    assert swap_convs(net, ECB, match="computed").swapped == ("computed",)


class Read(nn.Module):
    """Convolutions that are called, and others whose numbers the code around them reads."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("called", "asked", "used", "helped", "trained", "switched", "written"):
            setattr(self, name, nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.called(x.to(self.called.weight.dtype)) if self.asked.weight.shape[0] == 4 else x
        x = nn.functional.conv2d(self.asked(x), self.used.weight)
        if self.training:
            x = x * self.switched.bias.sum()
        else:
            self.written.weight.data[:] = 0
        return self.trained(self.helped(self.scaled(x)))

    def scaled(self, x: Tensor) -> Tensor:
        return x * size_of(self.helped)

    def train(self, mode: bool = True) -> Read:
        self.total = self.trained.weight.sum()
        return super().train(mode)


def size_of(layer: nn.Module) -> Tensor:
    return layer.weight.abs().mean()


def test_what_the_code_around_it_reads_is_left_alone():
    net = nn.Sequential(nn.Conv2d(4, 4, 3), Read())
    net[1].used.eval()
    report = swap_convs(net, ECB)
    assert report.swapped == ("0", "1.called", "1.asked")
    assert list(report.skipped) == ["1.used", "1.helped", "1.trained", "1.switched", "1.written"]
    for why in report.skipped.values():
        assert why == "the code of 1 (Read) reads the weight of this Conv2d, and a block has none"
    assert net[1].training and not net[1].used.training


def test_spans_block_stays_whole_in_the_network_that_its_authors_wrote():
    torch.manual_seed(0)
    net = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=6, upscale=2).double().eval()
    x = torch.rand(1, 3, 9, 8).double()
    before, keys = net(x), list(net.state_dict())
    report = swap_convs(net, RepSRBlock)
    assert report.swapped == ("upsampler.0",)
    assert report.skipped["block_1.c1_r.conv.1"].startswith("the code of block_1.c1_r (Conv3XC) reads the weight")
    assert_close(net(x), before)
    net.train()(x).sum().backward()
    assert list(fuse(net.eval()).state_dict()) == keys


def test_a_convolution_that_is_asked_for_by_name_is_swapped_or_refused():
    net = nn.ModuleDict({"good": nn.Conv2d(4, 4, 3), "read": Read()})
    for match in ("read.used", ["good", "read.used"]):
        with pytest.raises(SpecError, match=r"(?s)cannot swap.*read\.used.*the code of read \(Read\) reads the weight"):
            swap_convs(net, ECB, match=match)
    assert type(net["good"]) is nn.Conv2d
    assert swap_convs(net, ECB, match=["good", "read.use?"]).swapped == ("good",)


def test_mistakes_change_nothing():
    net = PlainSR(num_blocks=1, channels=8)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        SpecError, match=r"no convolution of PlainSR matches 'head\.\*'; it has 3: body\.0, body\.2, body\.4"
    ):
        swap_convs(net, RepSRBlock, match="head.*")
    with pytest.raises(SpecError, match=r"cannot swap: 0 convolutions swapped, 3 skipped"):
        swap_convs(net, partial(RepSRBlock, expansion=0.0))
    with pytest.raises(SpecError, match="cannot swap the model itself, a Conv2d, in place"):
        swap_convs(nn.Conv2d(3, 3, 3), RepSRBlock)
    with pytest.raises(SpecError, match="cannot swap inside of a DataParallel"):
        swap_convs(nn.DataParallel(net), RepSRBlock)
    assert net.state_dict().keys() == before.keys()


# Statistics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [RepSRBlock, RepVGGBlock, DiverseBranchBlock, OREPABlock])
def test_calibrated_it_starts_near_the_same_function_on_batch_statistics(block: type[ConvBlock]):
    net = PlainSR(num_blocks=2, channels=8).double().eval()
    batches = [torch.rand(4, 3, 12, 12).double() for _ in range(3)]
    everything = torch.cat(batches)
    before = net(everything)
    plain = copy.deepcopy(net)
    swap_convs(plain, block)
    swap_convs(net, block, calibrate=batches)
    assert_close(net(everything), before)  # in eval mode still exactly
    values = everything.numel() / 3
    with torch.no_grad():
        ours, uncalibrated = (float((n.train()(everything) - before).abs().max()) for n in (net, plain))
    assert ours <= 10 / values * float(before.detach().abs().max())  # the variances are unbiased ones
    assert uncalibrated > 100 * ours
    statistics = copy.deepcopy(net.eval().state_dict())
    recalibrate_bn_stats(net, [everything])
    for key, value in net.state_dict().items():
        if "running" in key:  # what was measured is what there is
            assert_close(value, statistics[key], 0.05)


def test_calibration_that_reaches_nothing_says_so():
    net = nn.ModuleDict({"used": nn.Conv2d(3, 3, 3, padding=1), "unused": nn.Conv2d(3, 3, 3, padding=1)})
    net.forward = lambda x: net["used"](x)
    with pytest.raises(StatisticsError, match=r"cannot calibrate batch norm 'unused\.branches\.1\.norm': it got 0 "):
        swap_convs(net, RepSRBlock, calibrate=[torch.rand(1, 3, 5, 5)])
    assert isinstance(net["unused"], RepSRBlock)
    with pytest.raises(StatisticsError, match="it got 0 values per channel from 0 b"):
        swap_convs(nn.Sequential(nn.Conv2d(3, 3, 3)), RepSRBlock, calibrate=[])


def test_a_swapped_network_freezes_and_fuses_at_once():
    net = PlainSR(num_blocks=1, channels=8).double()
    x = torch.rand(1, 3, 9, 9).double()
    before = net(x)
    swap_convs(net, RepSRBlock)
    freeze_bn_stats(net)
    assert_close(net(x), before)
    assert_close(fuse(net)(x), before)
