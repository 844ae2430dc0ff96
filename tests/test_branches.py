"""Each branch against the torch expression that its paper writes, and what each refuses."""

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
    NotLinearError,
    RepSRBlock,
    SequentialBranch,
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
            "stage 1: ReLU is not linear",
        ),
        (lambda: SequentialBranch(SPEC, nn.Conv2d(4, 6, 3, padding=1)), NotLinearError, r"padding=\(1, 1\)"),
        (lambda: SequentialBranch(SPEC, nn.ConvTranspose2d(4, 6, 3)), NotLinearError, "ConvTranspose2d"),
        (lambda: SequentialBranch(SPEC, nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 6, 1)), NotLinearError, "padding=1"),
        (lambda: SequentialBranch(SPEC, nn.AvgPool2d(3, 1, ceil_mode=True)), NotLinearError, "ceil_mode=True"),
        (lambda: SequentialBranch(SPEC, nn.Identity()), NotLinearError, "Identity has nothing to do"),
        (lambda: SequentialBranch(SPEC, nn.Conv2d(4, 5, 3)), SpecError, "out_channels=5, .* asks for out_channels=6"),
        (lambda: SequentialBranch(SPEC, nn.Conv2d(3, 6, 3)), SpecError, "takes 3 channels, but is given 4"),
        (lambda: SequentialBranch(SPEC, nn.Conv2d(4, 6, 3), nn.BatchNorm2d(4)), SpecError, "takes 4 .* given 6"),
        (
            lambda: SequentialBranch(SPEC, nn.Conv2d(4, 6, 3, stride=2)),
            SpecError,
            r"stride=\(2, 2\), .* stride=\(1, 1\)",
        ),
        (lambda: SequentialBranch(SPEC, nn.Conv2d(4, 6, 5)), SpecError, r"\(5, 5\) taps .* kernel_size=\(3, 3\)"),
        (lambda: SequentialBranch(SPEC.replace(dilation=2, padding=2), nn.Conv2d(4, 6, 3)), SpecError, "dilation"),
        (lambda: SequentialBranch(ConvSpec(4, 6, groups=2), nn.Conv2d(4, 6, 3)), SpecError, "groups=1, which mixes"),
        (lambda: SequentialBranch(SPEC, nn.Conv1d(4, 6, 3)), SpecError, "1 spatial axes, the spec ndim=2"),
        (lambda: SequentialBranch(SPEC, nn.BatchNorm1d(4), nn.Conv2d(4, 6, 3)), SpecError, "BatchNorm1d"),
        (lambda: ConvBranch(SPEC, kernel_size=5), SpecError, r"kernel_size=\(3, 3\)"),
        (lambda: IdentityBranch(SPEC), SpecError, "in_channels=4, out_channels=6"),
        (lambda: IdentityBranch(ConvSpec(4, stride=2)), SpecError, r"stride=\(2, 2\)"),
        (lambda: IdentityBranch(ConvSpec(4, kernel_size=2, dilation=2)), SpecError, r"kernel_size=\(2, 2\), dilation"),
        (lambda: SobelBranch(ConvSpec(4, kernel_size=1)), SpecError, r"3 taps per axis, .* kernel_size=\(1, 1\)"),
        (lambda: SobelBranch(SPEC, axis=0), SpecError, "axis=0"),
        (lambda: AvgPoolBranch(SPEC, conv=False), SpecError, "out_channels=4, .* out_channels=6"),
        (lambda: AvgPoolBranch(ConvSpec(4, dilation=2)), SpecError, "dilation"),
        (lambda: ExpandSqueezeBranch(SPEC, order="3x3-1x1"), SpecError, "order='3x3-1x1'"),
        (lambda: ExpandSqueezeBranch(SPEC, expansion=0.1), SpecError, "expansion=0.1"),
        (lambda: ExpandSqueezeBranch(ConvSpec(4, groups=2), expansion=0.75), SpecError, "3 channels .*groups=2"),
        (lambda: ConvBranch(ConvSpec(4, kernel_size=5, dilation=2), kernel_size=3, dilation=3), SpecError, "dilation"),
        (lambda: SequentialBranch(SPEC, RepSRBlock(4, 6)), NotLinearError, "RepSRBlock pads its input"),
        (lambda: SequentialBranch(SPEC, RepSRBlock(4, 6, padding=0)), NotLinearError, "batch norms of its own"),
        (lambda: DilatedReparamBlock(4, kernel_size=3), SpecError, r"kernel_size=\(3, 3\); give small="),
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
