"""The papers' blocks against torch expressions of the papers, where no golden file says it, and what they refuse."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, assert_close_everywhere, image, randomise, relative_error
from torch import nn

from reparam import (
    ChunkConv,
    ConvSpec,
    DilatedReparamBlock,
    IdentityBranch,
    LoRABlock,
    MBRConvBlock,
    OmniShift,
    OREPABlock,
    OREPARepVGGBlock,
    QARepVGGBlock,
    RepDWConvM,
    RepDWConvS,
    RepMBConvBlock,
    RepRFNBlock,
    RepRLFNBlock,
    RepVGGBlock,
    RepVGGDW,
    RTMoSRRepConv,
    SpecError,
    VGGBlock,
    freeze_bn_stats,
    set_fold,
    swap_convs,
)
from reparam.blocks._orepa import cosines


def ready(block):
    block = randomise(block.double(), 1).eval()
    set_fold(block, False)
    return block


def bn(x, norm):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


BLOCKS = {
    "orepa": OREPABlock,
    "orepa 1x1": partial(OREPABlock, kernel_size=1),
    "orepa repvgg": OREPARepVGGBlock,
    "qarepvgg": partial(QARepVGGBlock, alpha=True, point_bias=True, pool=True),
    "reprfn": RepRFNBlock,
    "repmbconv": RepMBConvBlock,
    "mbrconv": MBRConvBlock,
    "syenet": partial(MBRConvBlock, shared=False),
    "lora": LoRABlock,
    "repvggdw": RepVGGDW,
    "yolov10": partial(RepVGGDW, kernel_size=7, small_size=3, small_bn=True, identity=False, sum_bn=False),
    "vggblock": VGGBlock,
    "rtmosr": RTMoSRRepConv,
    "omnishift": OmniShift,
    "reprlfn": RepRLFNBlock,
    "repnext s": RepDWConvS,
    "repnext m": RepDWConvM,
    "repnext chunk": ChunkConv,
}


COMPILED = ("orepa", "qarepvgg", "repnext chunk")  # unlike one another in what they hold; the others by night


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=name, marks=[pytest.mark.nightly] * (name not in COMPILED))
        for name, block in BLOCKS.items()
    ],
)
def test_compiles_in_one_graph_in_training_and_frozen(block):
    net, x = nn.Sequential(block(4)), torch.rand(4, 4, 16, 16)
    for freeze in (False, True):
        if freeze:
            freeze_bn_stats(net)
        twin = copy.deepcopy(net)
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        y, expected = compiled(x), twin(x)
        assert_close(y, expected)
        for ours, theirs in zip(net.buffers(), twin.buffers()):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        torch.compiler.reset()


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS.keys())
def test_under_autocast_the_folded_block_is_near_the_branches(block):
    net, x = block(4), torch.rand(4, 4, 16, 16)
    expected = copy.deepcopy(net).double()(x.double())
    for fold in (True, False):
        twin = copy.deepcopy(net)
        set_fold(twin, fold)
        with torch.autocast("cpu", torch.bfloat16):
            y = twin(x)
        assert relative_error(y, expected) < 0.03
        y.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in twin.parameters())


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS.keys())
def test_starts_on_the_meta_device_and_in_another_dtype(block):
    with torch.device("meta"):
        around = block(4)
    for started in (block(4, device="meta"), around):
        assert all(tensor.is_meta for tensor in started.state_dict().values())
    half = block(4, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half(torch.rand(2, 4, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


MIDDLES = [(1, {}), (5, {}), (1, {"hidden_channels": 10})]


class TestOREPA:
    def test_with_groups_and_dilation_it_is_the_sum_of_weights(self):
        b = ready(OREPABlock(4, 6, groups=2, dilation=2, stride=2, hidden_channels=8, expansion=3))
        x = image(b.spec, 0, (9, 8))
        conv = {"stride": 2, "padding": 2, "dilation": 2, "groups": 2}
        layers = [branch.layers for branch in b.branches]
        scale = [chain[-1].scale.reshape(-1, 1, 1, 1) for chain in layers]
        expected = F.conv2d(x, scale[0] * layers[0][0].weight, **conv)
        expected += F.conv2d(x, scale[1] * layers[1][0].weight * torch.full((3, 3), 1 / 9), **conv)
        expected += F.conv2d(x, scale[2] * layers[2][0].weight * cosines(b.spec), **conv)
        rows = torch.tensor([[1, 0], [0, 1]]).repeat(4, 1).reshape(8, 2, 1, 1)
        between = F.conv2d(F.pad(x, (2, 2, 2, 2)), rows + layers[3][0].weight, groups=2)
        expected += scale[3].reshape(-1, 1, 1) * F.conv2d(between, layers[3][1].weight, **{**conv, "padding": 0})
        expected += scale[4].reshape(-1, 1, 1) * F.conv2d(x, layers[4][0].weight, stride=2, groups=2)
        deep = F.conv2d(x, layers[5][0].weight, **{**conv, "groups": 4})
        expected += scale[5].reshape(-1, 1, 1) * F.conv2d(deep, layers[5][1].weight, groups=2)
        assert_close_everywhere(b(x), bn(expected, b.norm))

    def test_the_cosines_are_shared_out_among_the_axes(self):
        waves = cosines(ConvSpec(4, 5, (3, 4)))
        assert waves[1, 0, 2].tolist() == pytest.approx([math.cos(math.pi * 2.5 * 2 / 3)] * 4)
        assert waves[3, 0, :, 1].tolist() == pytest.approx([math.cos(math.pi * 1.5 * 1.5 / 4)] * 3, abs=1e-6)
        assert cosines(ConvSpec(1, kernel_size=3, ndim=1)).flatten().tolist() == pytest.approx(
            [math.cos(math.pi / 6), 0.0, -math.cos(math.pi / 6)], abs=1e-6
        )

    def test_the_start(self):
        scales = [branch.layers[-1].scale.unique().tolist() for branch in OREPABlock(4).branches]
        assert scales == [[0.25], [0.25], [0.0], [0.5], [1.0], [0.5]]
        for narrow, wide in ((4, 6), (6, 4), (4, 4)):
            first, second, _ = OREPABlock(narrow, wide, kernel_size=1).branches[1].layers
            square, other = (first, second) if narrow < wide else (second, first)
            assert torch.equal(square.weight.flatten(1), torch.eye(min(narrow, wide)))
            assert other.weight.abs().max().item() <= math.sqrt(3 / other.weight.shape[1])
        assert not torch.equal(
            OREPABlock(4, 6, kernel_size=1, hidden_channels=6).branches[1].layers[0].weight[:4, :, 0, 0], torch.eye(4)
        )

    def test_the_width_of_the_middle(self):
        def middle(block):
            return block.branches[3].layers[0]

        assert middle(OREPABlock(4, groups=4)).weight.shape == (4, 1, 1, 1)
        assert middle(OREPABlock(5, groups=5)).weight.shape == (10, 1, 1, 1)
        of_repvgg = [OREPARepVGGBlock(5, groups=groups, **wide).branches[0].layers[0] for groups, wide in MIDDLES]
        assert [middle(block).weight.shape[0] for block in of_repvgg] == [5, 10, 10]
        assert [hasattr(middle(block), "unit") for block in of_repvgg] == [True, False, False]

    def test_the_start_with_one_tap(self):
        scales = [branch.layers[-1].scale.unique().tolist() for branch in OREPABlock(4, kernel_size=1).branches]
        assert scales == [[1.0], [0.5]]

    def test_scales_are_one_per_term(self):
        assert OREPABlock(4, scales=(1, 0, 0, 0, 0, 0)).branches[0].layers[1].scale.unique().tolist() == [1.0]
        with pytest.raises(SpecError, match=r"scales must have 6 numbers, .* scales=\(1, 0\)"):
            OREPABlock(4, scales=(1, 0))
        with pytest.raises(SpecError, match="scales must have 5 numbers"):
            OREPARepVGGBlock(4, scales=(1, 0, 0, 0, 0, 0))

    def test_without_a_bias_there_is_no_norm_after_the_sum(self):
        with pytest.raises(SpecError, match="bn needs a spec with bias=True"):
            OREPABlock(4, bias=False)
        assert_close(*(block(torch.ones(1, 4, 5, 5)) for block in [OREPABlock(4, bias=False, sum_bn=False)] * 2))


class TestQARepVGG:
    def test_the_second_version_of_yolov6(self):
        b, conv = ready(QARepVGGBlock(4, groups=2, pool=True)), {"padding": 1, "groups": 2}
        x = image(b.spec, 0, (7, 9))
        dense, point = b.branches[:2]
        assert point.conv.bias is None
        expected = bn(F.conv2d(x, dense.conv.weight, **conv), dense.norm) + F.conv2d(x, point.conv.weight, groups=2)
        expected += x + F.avg_pool2d(x, 3, 1, 1)
        assert_close_everywhere(b(x), bn(expected, b.norm))

    def test_where_there_is_no_identity_there_is_no_pool(self):
        assert len(QARepVGGBlock(4, stride=2, pool=True, dilation=2).branches) == 2
        with pytest.raises(SpecError, match=r"stride=\(2, 2\)"):
            QARepVGGBlock(4, stride=2, identity=True)

    def test_alpha_is_one_number_that_starts_at_one(self):
        scale = QARepVGGBlock(4, alpha=True).branches[1].layers[1].scale
        assert scale.tolist() == [1.0] and scale.requires_grad

    def test_without_the_norm_after_the_sum(self):
        assert QARepVGGBlock(4, sum_bn=False, bias=False).norm is None
        with pytest.raises(SpecError, match="bn needs a spec with bias=True"):
            QARepVGGBlock(4, bias=False)


def test_the_dilated_block_of_unireplknet_with_the_norm_after_it():
    b = ready(DilatedReparamBlock(4, kernel_size=13, groups=4, sum_bn=True))
    x = image(b.spec, 0, (15, 14))
    expected = bn(F.conv2d(x, b.branches[0].conv.weight, padding=6, groups=4), b.branches[0].norm)
    for branch, k, rate in zip(b.branches[1:], (5, 7, 3, 3, 3), (1, 2, 3, 4, 5)):
        assert branch.conv.kernel_size == (k, k)
        y = F.conv2d(x, branch.conv.weight, padding=rate * (k - 1) // 2, dilation=rate, groups=4)
        expected += bn(y, branch.norm)
    assert_close_everywhere(b(x), bn(expected, b.norm), 6)
    assert_close_everywhere(b.to_conv()(x), bn(expected, b.norm), 6)


class TestRepVGGDW:
    def test_that_of_repvit(self):
        b = ready(RepVGGDW(6, groups=6))
        x = image(b.spec, 0, (7, 9))
        dense, point = b.branches[:2]
        expected = bn(F.conv2d(x, dense.conv.weight, padding=1, groups=6), dense.norm)
        expected += F.conv2d(x, point.conv.weight, point.conv.bias, groups=6) + x
        assert dense.conv.bias is None and point.norm is None
        assert_close_everywhere(b(x), bn(expected, b.norm))
        assert_close_everywhere(b.to_conv()(x), bn(expected, b.norm))

    def test_that_of_lsnet(self):
        b = ready(RepVGGDW(6, groups=6, small_bn=True, sum_bn=False))
        x = image(b.spec, 0, (7, 9))
        dense, point = b.branches[:2]
        expected = bn(F.conv2d(x, dense.conv.weight, padding=1, groups=6), dense.norm)
        expected += bn(F.conv2d(x, point.conv.weight, groups=6), point.norm) + x
        assert point.conv.bias is None and b.norm is None
        assert_close_everywhere(b(x), expected)

    def test_that_of_yolov10(self):
        options = {"small_size": 3, "small_bn": True, "identity": False, "sum_bn": False}
        b = ready(RepVGGDW(6, kernel_size=7, groups=6, **options))
        x = image(b.spec, 0, (9, 8))
        large, small = b.branches
        expected = bn(F.conv2d(x, large.conv.weight, padding=3, groups=6), large.norm)
        expected += bn(F.conv2d(x, small.conv.weight, padding=1, groups=6), small.norm)
        assert_close_everywhere(b(x), expected, 3)
        assert_close_everywhere(b.to_conv()(x), expected, 3)

    def test_a_small_kernel_that_is_none_is_refused(self):
        with pytest.raises(SpecError, match=r"kernel of \(5, 5\) taps does not fit into kernel_size=\(3, 3\)"):
            RepVGGDW(6, groups=6, small_size=5)


def test_vggblock_has_no_identity_unless_asked():
    b = ready(VGGBlock(4))
    x = image(b.spec, 0, (7, 9))
    dense, point = b.branches
    expected = bn(F.conv2d(x, dense.conv.weight, padding=1), dense.norm)
    assert_close_everywhere(b(x), expected + bn(F.conv2d(x, point.conv.weight), point.norm))
    assert isinstance(b, RepVGGBlock) and len(VGGBlock(4, identity=None).branches) == 3


class TestLoRA:
    def test_one_convolution_and_the_product(self):
        b = ready(LoRABlock(4, 6, 5, stride=2, rank=3, alpha=1.5))
        x = image(b.spec, 0, (9, 8))
        conv, lora = b.branches[0].conv, b.branches[1]
        product = torch.einsum("or,rihw->oihw", lora.up.weight.flatten(1), lora.down.weight)
        assert_close_everywhere(b(x), F.conv2d(x, conv.weight + 0.5 * product, conv.bias, 2, 2), 2)

    def test_put_into_a_network_it_changes_nothing_and_only_the_product_is_trained(self):
        net = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False)).double()
        x = image(ConvSpec(4), 0, (7, 9))
        expected, weight = net(x), net[0].weight.detach()
        assert swap_convs(net, partial(LoRABlock, rank=2)).swapped == ("0", "2")
        assert_close(net(x), expected)
        assert_close(net[0].branches[0].conv.weight, weight)
        for block in (net[0], net[2]):
            block.branches[0].requires_grad_(False)
        names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
        assert names == [f"{index}.branches.1.{part}.weight" for index in (0, 2) for part in ("down", "up")]
        net(x).square().sum().backward()
        assert net[0].branches[0].conv.weight.grad is None and net[0].branches[1].up.weight.grad.abs().min() > 0


def test_repconv_of_rtmosr():
    b = ready(RTMoSRRepConv(3, 5))
    x = image(b.spec, 0, (7, 9))
    (conv, path, span), scales = ([part.branch for part in b.branches], [part.scale.scale for part in b.branches])
    assert path.expand.out_channels == 10 and all(scale.shape == (1,) for scale in scales)
    framed = F.conv2d(F.pad(x, (1, 1, 1, 1)), path.expand.weight, path.expand.bias)  # its bias around the 1x1
    skip, (first, middle, last) = span.branches[0].conv, span.branches[1].layers
    wide = F.conv2d(F.conv2d(F.pad(x, (1, 1, 1, 1)), first.weight, first.bias), middle.weight, middle.bias)
    assert first.out_channels == 6 and middle.out_channels == 10
    expected = scales[0] * F.conv2d(x, conv.conv.weight, conv.conv.bias, padding=1)
    expected += scales[1] * F.conv2d(framed, path.squeeze.weight, path.squeeze.bias)
    expected += scales[2] * (F.conv2d(wide, last.weight, last.bias) + F.conv2d(x, skip.weight, skip.bias))
    assert_close_everywhere(b(x), expected)
    assert_close_everywhere(b.to_conv()(x), expected)


class TestOmniShift:
    @pytest.mark.parametrize("shared", [True, False])
    def test_depthwise_convolutions_and_x_each_with_a_weight(self, shared):
        b = ready(OmniShift(6, groups=6, shared=shared, conv_bias=not shared))
        x = image(b.spec, 0, (9, 8))
        scales = [part.scale.scale.reshape(-1, 1, 1) for part in b.branches]
        assert all(scale.numel() == (1 if shared else 6) for scale in scales)
        expected = scales[3] * x
        for scale, part, size in zip(scales, b.branches, (5, 3, 1)):
            conv = part.branch.conv
            assert conv.kernel_size == (size, size) and (conv.bias is None) is shared
            expected += scale * F.conv2d(x, conv.weight, conv.bias, padding=size // 2, groups=6)
        assert_close_everywhere(b(x), expected, 2)
        assert_close_everywhere(b.to_conv()(x), expected, 2)

    def test_each_size_is_there_once_and_weights_start_at_one(self):
        block = OmniShift(4, kernel_size=3)
        assert [part.branch.conv.kernel_size for part in block.branches[:2]] == [(3, 3), (1, 1)]
        assert len(block.branches) == 3 and len(OmniShift(4, 6).branches) == 3
        assert {number for part in block.branches for number in part.scale.scale.tolist()} == {1.0}


def test_reprlfn_is_the_sum_of_its_branches():
    b = ready(RepRLFNBlock(4))
    x = image(b.spec, 0, (7, 9))
    expected = x.clone()
    for branch, (height, width) in zip(b.branches, [(3, 3), (3, 1), (1, 3), (1, 1)]):
        expected += F.conv2d(x, branch.conv.weight, branch.conv.bias, padding=(height // 2, width // 2))
    assert_close_everywhere(b(x), expected)
    assert len(RepRLFNBlock(4, 6).branches) == 4


def strips(x, second, first, groups):
    """A row of taps, then a column of taps, each with its own padding."""
    height, width = second.kernel_size[0], first.kernel_size[1]
    y = F.conv2d(x, first.weight, first.bias, (1, first.stride[1]), (0, width // 2), groups=groups)
    return F.conv2d(y, second.weight, second.bias, (second.stride[0], 1), (height // 2, 0), groups=groups)


def small_of_repnext(x, branches, groups, stride=1):
    """The 3x3, the strips beside each other or, with a stride, in turn, and the corners."""
    square, *lines, corners = branches
    y = F.conv2d(x, square.conv.weight, square.conv.bias, stride, 1, groups=groups)
    y += F.conv2d(x, corners.conv.weight, corners.conv.bias, stride, 1, 2, groups=groups)
    if stride > 1:
        row, column = lines[0].layers
        return y + strips(x, column, row, groups)
    for line, padding in zip(lines, ((1, 0), (0, 1))):
        y += F.conv2d(x, line.conv.weight, line.conv.bias, padding=padding, groups=groups)
    return y


def medium_of_repnext(x, branches, groups, stride=1):
    """The 7x7, 5x3 and 3x5, and two pairs of strips."""
    y = 0
    for branch, padding in zip(branches, ((3, 3), (2, 1), (1, 2))):
        y = y + F.conv2d(x, branch.conv.weight, branch.conv.bias, stride, padding, groups=groups)
    for branch, size in zip(branches[3:], (7, 5)):
        row, column = branch.layers
        assert row.kernel_size == (1, size) and column.kernel_size == (size, 1) and row.bias is column.bias is None
        y = y + strips(x, column, row, groups)
    return y


class TestRepNeXt:
    @pytest.mark.parametrize("stride", [1, 2])
    def test_the_small_convolution(self, stride):
        b = ready(RepDWConvS(6, stride=stride, groups=6))
        x = image(b.spec, 0, (9, 8))
        expected = small_of_repnext(x, b.branches, 6, stride)
        assert_close_everywhere(b(x), expected)
        assert_close_everywhere(b.to_conv()(x), expected)

    @pytest.mark.parametrize("stride", [1, 2])
    def test_the_medium_convolution(self, stride):
        b = ready(RepDWConvM(6, stride=stride, groups=6))
        x = image(b.spec, 0, (9, 8))
        expected = medium_of_repnext(x, b.branches, 6, stride)
        assert_close_everywhere(b(x), expected, 3)
        assert_close_everywhere(b.to_conv()(x), expected, 3)

    def test_the_chunks(self):
        b = ready(ChunkConv(8, groups=8))
        x = image(b.spec, 0, (12, 13))
        small, medium, large = (part.branch.layers for part in b.branches[1:])
        row, column = large
        parts = list(x.chunk(4, 1))
        parts[1] = small_of_repnext(parts[1], small[0].branches, 2)
        parts[2] = medium_of_repnext(parts[2], medium[0].branches, 2)
        padded = F.conv2d(F.pad(parts[3], (5, 5, 5, 5)), row.weight, row.bias, groups=2)  # c in the ring, too
        parts[3] = F.conv2d(padded, column.weight, column.bias, groups=2)
        assert_close_everywhere(b(x), torch.cat(parts, 1), 5)
        assert_close_everywhere(b.to_conv()(x), torch.cat(parts, 1), 5)
        assert isinstance(b.branches[0].branch, IdentityBranch)

    def test_a_rest_of_the_channels_is_shared_out(self):
        places = [part.channels for part in ChunkConv(7, groups=7).branches]
        assert places == [(0, 1), (1, 3), (3, 5), (5, 7)]
        assert [part.channels for part in ChunkConv(6, groups=3, kernel_size=3).branches] == [(0, 2), (2, 4), (4, 6)]
        with pytest.raises(SpecError, match=r"an identity needs .*stride=\(2, 2\)"):
            ChunkConv(8, groups=8, stride=2)

    def test_without_biases(self):
        for block in (RepDWConvS, RepDWConvM, ChunkConv):
            without = block(8, groups=8, conv_bias=False)
            assert not any(name.endswith("bias") for name, _ in without.named_parameters())


def test_reprfn_is_the_sum_of_its_branches():
    b = ready(RepRFNBlock(4))
    x = image(b.spec, 0, (7, 9))
    expected = x.clone()
    shapes = [(3, 3), (3, 1), (1, 3), (1, 1)]
    for branch, (height, width) in zip(b.branches, shapes):
        expected += F.conv2d(x, branch.conv.weight, branch.conv.bias, padding=(height // 2, width // 2))
    pair = b.branches[4]
    assert pair.expand.bias is None and pair.squeeze.bias is None and pair.expand.out_channels == 8
    expected += F.conv2d(F.conv2d(x, pair.expand.weight), pair.squeeze.weight, padding=1)
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    laplacian = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
    for branch, mask in zip(b.branches[5:8], (sobel, sobel.T, laplacian)):
        point = F.conv2d(F.pad(x, (1, 1, 1, 1)), branch.conv.weight, branch.conv.bias)  # its bias around the 1x1
        expected += F.conv2d(point, branch.filter.scale * mask, branch.filter.bias, groups=4)
    assert_close_everywhere(b(x), expected)


class TestRepMBConv:
    def test_a_wider_middle_and_other_channels(self):
        b = ready(RepMBConvBlock(4, 6, expansion=3))
        x = image(b.spec, 0, (7, 9))
        expand, inner, reduce = b.branches[0].layers
        conv, gate = inner.branches[0].layers
        e = F.conv2d(F.pad(x, (1, 1, 1, 1)), expand.weight, expand.bias)
        hidden = F.silu(gate.reduce.weight @ gate.vector.flatten())
        g = torch.sigmoid(gate.expand.weight @ hidden).reshape(1, -1, 1, 1)
        middle = g * F.conv2d(e, conv.weight, conv.bias) + e[:, :, 1:-1, 1:-1]
        assert_close_everywhere(b(x), F.conv2d(middle, reduce.weight, reduce.bias))

    def test_the_start_of_the_gate(self):
        gate = RepMBConvBlock(8).branches[0].layers[1].branches[0].layers[1]
        hidden = 1.6 / (1 + math.exp(-1.6))  # silu of 16 times 0.1
        assert gate.gate().tolist() == pytest.approx([1 / (1 + math.exp(-4 * hidden))] * 16)
        assert RepMBConvBlock(1).branches[0].layers[1].branches[0].layers[1].reduce.out_features == 1


class TestMBRConv:
    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize(
        ("size", "shapes"),
        [(1, [(1, 1)]), (3, [(3, 3), (1, 1), (3, 1), (1, 3)]), (5, [(5, 5), (1, 1), (3, 3), (3, 1), (1, 3)])],
    )
    def test_raw_and_normed_side_by_side(self, size, shapes, shared):
        b = ready(MBRConvBlock(4, 3, size, expansion=2, shared=shared))
        x = image(b.spec, 0, (7, 9))
        branch = b.branches[0]
        assert [conv.kernel_size for conv in branch.convs] == shapes

        def run(conv):
            return F.conv2d(x, conv.weight, conv.bias, padding=[k // 2 for k in conv.kernel_size])

        normed = branch.convs if shared else branch.norm_convs
        parts = [run(conv) for conv in branch.convs]
        parts += [bn(run(conv), norm) for conv, norm in zip(normed, branch.norms)]
        assert_close_everywhere(b(x), F.conv2d(torch.cat(parts, 1), branch.out.weight, branch.out.bias))

    def test_without_norms_there_are_the_raw_ones_only(self):
        branch = MBRConvBlock(4, bn=False, shared=False).branches[0]
        assert len(branch.convs) == 4 and not branch.norms and not branch.norm_convs
        assert branch.out.in_channels == 4 * 16

    def test_groups_stay_apart(self):
        b = ready(MBRConvBlock(4, 6, groups=2, expansion=1))
        x = image(b.spec, 0, (7, 9))
        changed = x.clone()
        changed[:, 2:] += 1
        assert torch.equal(b(x)[:, :3], b(changed)[:, :3])
        assert not torch.allclose(b(x)[:, 3:], b(changed)[:, 3:])
