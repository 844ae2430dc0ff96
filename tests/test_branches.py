"""Each branch against the torch expression that its paper writes, and what each refuses."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, assert_close_everywhere, image, randomise
from torch import nn

from reparam import (
    AvgPoolBranch,
    Branch,
    ConvBNBranch,
    ConvBranch,
    ConvSpec,
    DilatedReparamBlock,
    ExpandSqueezeBranch,
    IdentityBranch,
    Kernel,
    LaplacianBranch,
    LoRABranch,
    NotLinearError,
    ReparamBlock,
    RepSRBlock,
    ScaledBranch,
    SequentialBranch,
    SliceBranch,
    SobelBranch,
    SpecError,
    StatisticsError,
)
from reparam.algebra._linear import linear_op

SPEC = ConvSpec(4, 6, 3)
SOBEL_X = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).double()
LAPLACIAN = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).double()


def ready(branch: Branch) -> Branch:
    return randomise(branch.double(), 1).eval()


def bn(x, norm):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def ring_of(y, constant):
    """Puts one pixel of a per-channel constant around y, which is what the papers' codes do after a 1x1."""
    framed = constant.reshape(1, -1, 1, 1).expand(y.shape[0], -1, y.shape[2] + 2, y.shape[3] + 2).clone()
    framed[:, :, 1:-1, 1:-1] = y
    return framed


def test_expand_squeeze_of_repsr():
    b, x = ready(ExpandSqueezeBranch(SPEC, bn=True)), image(SPEC, 0, (7, 9))
    middle = bn(F.conv2d(x, b.expand.weight, b.expand.bias, padding=1), b.norm)
    assert_close_everywhere(b(x), F.conv2d(middle, b.squeeze.weight, b.squeeze.bias))


def test_expand_squeeze_of_dbb_rings_the_middle_with_its_constant():
    b, x = ready(ExpandSqueezeBranch(SPEC, order="1x1-kxk", bn=True)), image(SPEC, 0, (7, 9))
    middle = bn(F.conv2d(x, b.expand.weight, b.expand.bias), b.norm)
    constant = bn(b.expand.bias[None], b.norm)[0]
    assert_close_everywhere(b(x), F.conv2d(ring_of(middle, constant), b.squeeze.weight, b.squeeze.bias))


@pytest.mark.parametrize(
    ("branch", "mask"),
    [(SobelBranch(SPEC), SOBEL_X), (SobelBranch(SPEC, axis=-2), SOBEL_X.T), (LaplacianBranch(SPEC), LAPLACIAN)],
)
def test_edge_filters_of_ecb(branch, mask):
    b, x = ready(branch), image(SPEC, 0, (7, 9))
    middle = ring_of(F.conv2d(x, b.conv.weight, b.conv.bias), b.conv.bias)
    expected = F.conv2d(middle, b.filter.scale * mask, b.filter.bias, groups=6)
    assert_close_everywhere(b(x), expected)


def test_edge_filters_in_one_and_three_dimensions():
    assert SobelBranch(ConvSpec(1, ndim=1)).filter.mask.flatten().tolist() == [1, 0, -1]
    assert LaplacianBranch(ConvSpec(1, ndim=1)).filter.mask.flatten().tolist() == [1, -2, 1]
    ramp = torch.arange(5.0).reshape(1, 1, 5, 1, 1).expand(1, 1, 5, 5, 5)
    for axis, slope in [(-3, -32.0), (-2, 0.0), (-1, 0.0)]:  # the derivative of a ramp along the first axis
        mask = SobelBranch(ConvSpec(1, ndim=3), axis=axis).filter.mask
        assert F.conv3d(ramp, mask).unique().tolist() == [slope]
    laplacian = LaplacianBranch(ConvSpec(1, ndim=3)).filter.mask
    assert laplacian[0, 0, 1, 1, 1] == -6
    assert F.conv3d(ramp, laplacian).unique().tolist() == [0.0]


def test_average_pool_of_dbb():
    b, x = ready(AvgPoolBranch(SPEC, bn=True)), image(SPEC, 0, (7, 9))
    constant = bn(torch.zeros(1, 6).double(), b.conv_norm)[0]
    middle = ring_of(bn(F.conv2d(x, b.conv.weight), b.conv_norm), constant)
    assert_close_everywhere(b(x), bn(F.avg_pool2d(middle, 3, 1), b.norm))


def test_identity_with_bn():
    spec = ConvSpec(4)
    b, x = ready(IdentityBranch(spec, bn=True)), image(spec, 0, (7, 9))
    assert_close_everywhere(b(x), bn(x, b.norm))


def test_identity_of_a_convolution_that_shrinks_is_the_middle():
    spec = ConvSpec(4, padding=0)
    x = image(spec, 0, (7, 9))
    assert torch.equal(IdentityBranch(spec)(x), x[:, :, 1:-1, 1:-1])


class TestLoRA:
    def test_the_product_of_two_matrices_is_added_to_the_kernel(self):
        b, x = ready(ReparamBlock(SPEC, [ConvBranch, partial(LoRABranch, rank=2, alpha=3.0)])), image(SPEC, 0, (7, 9))
        conv, lora = b.branches[0].conv, b.branches[1]
        product = (lora.up.weight.flatten(1) @ lora.down.weight.flatten(1)).reshape(6, 4, 3, 3)
        expected = F.conv2d(x, conv.weight + 3.0 / 2 * product, conv.bias, padding=1)
        assert_close_everywhere(b(x), expected)
        assert torch.linalg.matrix_rank(product.flatten(1)) == 2

    def test_it_starts_at_zero_and_learns(self):
        x = image(SPEC, 0, (7, 9))
        block = ReparamBlock(SPEC, [ConvBranch, LoRABranch]).double()
        conv, lora = block.branches[0].conv, block.branches[1]
        assert torch.equal(block(x), F.conv2d(x, conv.weight, conv.bias, padding=1))
        block(x).square().sum().backward()
        assert lora.up.weight.grad.abs().min() > 0 and not lora.down.weight.grad.any()

    def test_alpha_is_kept_and_not_learned(self):
        lora = LoRABranch(SPEC, rank=4, alpha=1.0)
        assert lora.state_dict()["scale.scale"].tolist() == [0.25]
        assert [name for name, _ in lora.named_parameters()] == ["down.weight", "up.weight"]
        assert LoRABranch(SPEC, rank=4).scale.scale.tolist() == [1.0]

    def test_each_group_has_its_rank(self):
        lora = LoRABranch(ConvSpec(4, 6, groups=2), rank=3)
        assert lora.down.weight.shape == (6, 2, 3, 3) and lora.up.weight.shape == (6, 3, 1, 1)


class TestScaled:
    @pytest.mark.parametrize(("shared", "size"), [(True, 1), (False, 6)])
    def test_what_the_branch_makes_is_multiplied(self, shared, size):
        b, x = ready(ScaledBranch(SPEC, ConvBNBranch, shared=shared)), image(SPEC, 0, (7, 9))
        inner, scale = b.branch, b.scale.scale
        assert scale.shape == (size,) and scale.requires_grad
        expected = bn(F.conv2d(x, inner.conv.weight, padding=1), inner.norm) * scale.reshape(1, -1, 1, 1)
        assert_close_everywhere(b(x), expected)

    def test_without_a_bias_the_branch_takes_its_own_off(self):
        spec = SPEC.replace(bias=False)
        b, x = ready(ScaledBranch(spec, ConvBNBranch, start=0.5)), image(spec, 0, (7, 9))
        gain = b.scale.scale * b.branch.norm.weight / (b.branch.norm.running_var + b.branch.norm.eps).sqrt()
        assert_close_everywhere(b(x), F.conv2d(x, gain.reshape(-1, 1, 1, 1) * b.branch.conv.weight, padding=1))

    def test_the_start(self):
        assert ScaledBranch(SPEC, ConvBranch, start=0.25).scale.scale.tolist() == [0.25] * 6


class TestSlice:
    def test_the_partial_convolution_of_fasternet(self):
        spec = ConvSpec(8)
        parts = [
            partial(SliceBranch, branch=ConvBranch, channels=(0, 2)),
            partial(SliceBranch, branch=IdentityBranch, channels=(2, 8)),
        ]
        b, x = ready(ReparamBlock(spec, parts)), image(spec, 0, (7, 9))
        conv = b.branches[0].branch.conv
        expected = torch.cat([F.conv2d(x[:, :2], conv.weight, conv.bias, padding=1), x[:, 2:]], 1)
        assert_close_everywhere(b(x), expected)
        assert_close_everywhere(b.to_conv()(x), expected)

    def test_the_depthwise_inception_convolution(self):
        spec = ConvSpec(8, kernel_size=11, groups=8)
        sizes = {(0, 2): (3, 3), (2, 4): (1, 11), (4, 6): (11, 1)}
        parts = [
            partial(SliceBranch, branch=partial(ConvBranch, kernel_size=size), channels=channels)
            for channels, size in sizes.items()
        ]
        parts.append(partial(SliceBranch, branch=IdentityBranch, channels=(6, 8)))
        b, x = ready(ReparamBlock(spec, parts)), image(spec, 0, (12, 13))
        convs = [part.branch.conv for part in b.branches[:3]]
        outs = [
            F.conv2d(x[:, i:j], conv.weight, conv.bias, padding=(h // 2, w // 2), groups=2)
            for conv, ((i, j), (h, w)) in zip(convs, sizes.items())
        ]
        assert_close_everywhere(b(x), torch.cat([*outs, x[:, 6:]], 1), 5)
        assert_close_everywhere(b.to_conv()(x), torch.cat([*outs, x[:, 6:]], 1), 5)

    def test_to_other_channels_than_it_reads(self):
        b = ready(SliceBranch(SPEC, ConvBNBranch, channels=(1, 3), outputs=(2, 6)))
        x = image(SPEC, 0, (7, 9))
        part = bn(F.conv2d(x[:, 1:3], b.branch.conv.weight, padding=1), b.branch.norm)
        assert_close_everywhere(b(x), torch.cat([torch.zeros_like(part[:, :2]), part], 1))

    def test_groups_are_those_of_the_channels(self):
        spec = ConvSpec(6, 9, groups=3)
        b, x = ready(SliceBranch(spec, ConvBranch, channels=(2, 6))), image(spec, 0, (7, 9))
        assert b.branch.spec.groups == 2 and b.outputs == (3, 9)
        part = F.conv2d(x[:, 2:], b.branch.conv.weight, b.branch.conv.bias, padding=1, groups=2)
        assert_close_everywhere(b(x), torch.cat([torch.zeros_like(part[:, :3]), part], 1))

    def test_another_number_of_channels_is_refused_as_by_a_convolution(self):
        b = SliceBranch(SPEC, ConvBranch, channels=(0, 2))
        with pytest.raises(RuntimeError, match="split"):
            b(torch.rand(1, 5, 7, 9))

    def test_weights_of_other_channels_are_not_loaded(self):
        b, other = (SliceBranch(SPEC, ConvBranch, channels=channels) for channels in ((0, 2), (2, 4)))
        with pytest.raises(RuntimeError, match=r"place is \[\[2, 4\], \[2, 4\]\] .*branch is \[\[0, 2\], \[0, 2\]\]"):
            b.load_state_dict(other.state_dict())
        b.load_state_dict({key: value for key, value in other.state_dict().items() if key != "place"}, strict=False)
        assert torch.equal(b.branch.conv.weight, other.branch.conv.weight)


def test_a_small_dilated_convolution_fits_a_large_spec():
    spec = ConvSpec(4, 4, 7)
    stack = ready(SequentialBranch(spec, nn.Conv2d(4, 4, 3, dilation=2)))
    x = image(spec, 0, (9, 8))
    assert_close_everywhere(stack(x), F.conv2d(x, stack.layers[0].weight, stack.layers[0].bias, padding=2, dilation=2))


def test_a_spectral_norm_is_seen():
    conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 6, 3))
    branch = SequentialBranch(SPEC, conv).eval()
    x = torch.randn(1, 4, 6, 6)
    assert_close(branch.to_conv()(x), branch(x))


def test_small_start():
    small, usual = (ExpandSqueezeBranch(ConvSpec(64), bn=True, gain=gain, bn_weight=gain) for gain in (0.1, 1.0))
    assert small.norm.weight[0].item() == pytest.approx(0.1)
    assert (small.squeeze.weight.std() / usual.squeeze.weight.std()).item() == pytest.approx(0.1, rel=0.05)


class WrongShape(Branch):
    def kernel(self):
        return Kernel(torch.zeros(6, 3, 3, 3), torch.zeros(6))


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (
            lambda: SequentialBranch(SPEC, nn.Conv2d(4, 6, 3), nn.ReLU()),
            NotLinearError,
            "stage 1: ReLU is not known to be linear",
        ),
        (lambda: SequentialBranch(SPEC, nn.Conv2d(4, 6, 3, padding=1)), NotLinearError, r"padding=\(1, 1\)"),
        (lambda: SequentialBranch(SPEC, nn.ConvTranspose2d(4, 6, 3)), NotLinearError, "ConvTranspose2d"),
        (lambda: SequentialBranch(SPEC, nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 6, 1)), NotLinearError, "padding=1"),
        (lambda: SequentialBranch(SPEC, nn.AvgPool2d(3, 1, ceil_mode=True)), NotLinearError, "ceil_mode=True"),
        (lambda: SequentialBranch(SPEC, nn.Identity()), NotLinearError, "Identity does nothing"),
        (lambda: SequentialBranch(SPEC, nn.Conv2d(4, 5, 3)), SpecError, "out_channels=5, .* needs out_channels=6"),
        (lambda: SequentialBranch(SPEC, nn.Conv2d(3, 6, 3)), SpecError, "takes 3 channels, but gets 4"),
        (lambda: SequentialBranch(SPEC, nn.Conv2d(4, 6, 3), nn.BatchNorm2d(4)), SpecError, "takes 4 .* gets 6"),
        (
            lambda: SequentialBranch(SPEC, nn.Conv2d(4, 6, 3, stride=2)),
            SpecError,
            r"stride=\(2, 2\), .* stride=\(1, 1\)",
        ),
        (lambda: SequentialBranch(SPEC, nn.Conv2d(4, 6, 5)), SpecError, r"\(5, 5\) taps .* kernel_size=\(3, 3\)"),
        (lambda: SequentialBranch(SPEC.replace(dilation=2, padding=2), nn.Conv2d(4, 6, 3)), SpecError, "dilation"),
        (lambda: SequentialBranch(ConvSpec(4, 6, groups=2), nn.Conv2d(4, 6, 3)), SpecError, "groups=1, which mixes"),
        (lambda: SequentialBranch(SPEC, nn.Conv1d(4, 6, 3)), SpecError, "1 spatial axes, but the spec has ndim=2"),
        (lambda: SequentialBranch(SPEC, nn.BatchNorm1d(4), nn.Conv2d(4, 6, 3)), SpecError, "BatchNorm1d"),
        (lambda: ConvBranch(SPEC, kernel_size=5), SpecError, r"kernel_size=\(3, 3\)"),
        (lambda: IdentityBranch(SPEC), SpecError, "in_channels=4, out_channels=6"),
        (lambda: IdentityBranch(ConvSpec(4, stride=2)), SpecError, r"stride=\(2, 2\)"),
        (lambda: IdentityBranch(ConvSpec(4, kernel_size=2, dilation=2)), SpecError, r"kernel_size=\(2, 2\), dilation"),
        (lambda: LoRABranch(SPEC, rank=0), SpecError, "rank of at least 1, but got rank=0"),
        (lambda: LoRABranch(SPEC, rank=True), SpecError, "rank=True"),
        (lambda: ScaledBranch(SPEC, nn.Identity), SpecError, "Identity.* must return .* returned Identity"),
        (
            lambda: ScaledBranch(SPEC, lambda spec: ConvBranch(ConvSpec(4))),
            SpecError,
            "4 -> 6.* returned one of 4 -> 4",
        ),
        (lambda: SliceBranch(SPEC, ConvBranch, channels=(0, 5)), SpecError, r"<= 4, but got channels=\(0, 5\)"),
        (lambda: SliceBranch(SPEC, ConvBranch, channels=(2, 2)), SpecError, r"channels=\(2, 2\)"),
        (lambda: SliceBranch(SPEC, ConvBranch, channels=(-1, 2)), SpecError, r"channels=\(-1, 2\)"),
        (lambda: SliceBranch(SPEC, ConvBranch, channels=(2,)), SpecError, r"channels=\(2,\)"),
        (
            lambda: SliceBranch(SPEC, ConvBranch, channels=(0, 2), outputs=(4, 7)),
            SpecError,
            r"<= 6, but got outputs=\(4, 7\)",
        ),
        (lambda: SliceBranch(ConvSpec(6, 3), ConvBranch, channels=(2, 4)), SpecError, r"<= 3, .* outputs=\(2, 4\)"),
        (
            lambda: SliceBranch(ConvSpec(6, groups=3), ConvBranch, channels=(1, 4)),
            SpecError,
            r"whole groups of 2, but got channels=\(1, 4\)",
        ),
        (
            lambda: SliceBranch(ConvSpec(6, groups=3), ConvBranch, channels=(2, 4), outputs=(0, 2)),
            SpecError,
            r"determine the outputs \(2, 4\), but got outputs=\(0, 2\)",
        ),
        (lambda: SobelBranch(ConvSpec(4, kernel_size=1)), SpecError, r"3 taps per axis, .* kernel_size=\(1, 1\)"),
        (lambda: SobelBranch(SPEC, axis=0), SpecError, "axis=0"),
        (lambda: AvgPoolBranch(SPEC, conv=False), SpecError, "out_channels=4, .* out_channels=6"),
        (lambda: AvgPoolBranch(ConvSpec(4, dilation=2)), SpecError, "dilation"),
        (lambda: ExpandSqueezeBranch(SPEC, order="3x3-1x1"), SpecError, "order='3x3-1x1'"),
        (lambda: ExpandSqueezeBranch(SPEC, expansion=0.1), SpecError, "expansion=0.1"),
        (lambda: ExpandSqueezeBranch(ConvSpec(4, groups=2), expansion=0.75), SpecError, "3 channels .*groups=2"),
        (lambda: ConvBranch(ConvSpec(4, kernel_size=5, dilation=2), kernel_size=3, dilation=3), SpecError, "dilation"),
        (lambda: SequentialBranch(SPEC, RepSRBlock(4, 6)), NotLinearError, "RepSRBlock pads its input"),
        (lambda: SequentialBranch(SPEC, RepSRBlock(4, 6, padding=0)), NotLinearError, "holds batch norms; put"),
        (lambda: DilatedReparamBlock(4, kernel_size=3), SpecError, r"kernel_size=\(3, 3\); pass small="),
        (lambda: ConvBNBranch(SPEC, bn=nn.InstanceNorm2d), SpecError, "InstanceNorm2d"),
        (lambda: ConvBNBranch(SPEC).kernel(), StatisticsError, "uses batch statistics"),
        (lambda: WrongShape(SPEC)(torch.zeros(1, 4, 5, 5)), SpecError, r"\(6, 3, 3, 3\)"),
    ],
)
def test_refusals(build, error, match):
    with pytest.raises(error, match=match):
        build()


def test_hooks_that_would_not_run_are_refused():
    conv = nn.Conv2d(4, 6, 3)
    conv.register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(NotLinearError, match="Conv2d has forward hooks"):
        SequentialBranch(SPEC, conv)


def test_an_activation_in_a_norm_is_refused():
    from timm.layers import BatchNormAct2d

    with pytest.raises(NotLinearError, match="BatchNormAct2d holds an activation"):
        SequentialBranch(SPEC, nn.Conv2d(4, 6, 3), BatchNormAct2d(6))


def test_a_type_of_ones_own_can_be_registered():
    class Twice(nn.Module):
        pass

    @linear_op.register
    def _(module: Twice, channels, like):
        weight = 2 * like.new_ones(channels, 1, 1, 1)
        return linear_op(nn.Conv2d(1, 1, 1), 1, like)._replace(
            kernel=Kernel(weight, like.new_zeros(channels)), groups=channels
        )

    branch = SequentialBranch(ConvSpec(4, kernel_size=1), Twice())
    x = torch.randn(1, 4, 3, 3)
    assert_close(branch(x), 2 * x)


@pytest.mark.parametrize("options", [{"affine": False}, {"bias": False}, {"eps": 1e-2}])
def test_a_norm_without_weight_or_bias_or_with_another_eps(options):
    branch = ready(ConvBNBranch(SPEC, bn=lambda channels: nn.BatchNorm2d(channels, **options)))
    x = image(SPEC, 0, (7, 9))
    expected = bn(F.conv2d(x, branch.conv.weight, padding=1), branch.norm)
    assert_close_everywhere(branch(x), expected)
    assert_close_everywhere(branch.to_conv()(x), expected)
