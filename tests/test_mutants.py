"""Planted mistakes, each one that a real merge has made: the contract must reject every one of them."""

import pytest
import torch
import torch.nn.functional as F
from contract import check_dtype, check_equals_its_convolution, check_gradients, check_is_affine
from helpers import assert_close, assert_close_everywhere, image, randomise

from reparam import Branch, ConvBNBranch, ConvSpec, ExpandSqueezeBranch, Kernel
from reparam.bn._norm import scale_shift

SPEC = ConvSpec(4, 6, 3, groups=2)


class EpsOmitted(ConvBNBranch):
    def kernel(self):
        return self.kernel_with(lambda bns, *_: scale_shift(bns, bns[0].running_mean, bns[0].running_var - bns[0].eps))


class UnbiasedVariance(ConvBNBranch):
    def kernel(self):
        return self.kernel_with(lambda bns, *_: scale_shift(bns, bns[0].running_mean, bns[0].running_var * 1200 / 1199))


class Flipped(ConvBNBranch):
    def kernel(self):
        weight, bias = super().kernel()
        return Kernel(weight.flip(2, 3), bias)


class BiasLost(ConvBNBranch):
    def kernel(self):
        weight, bias = super().kernel()
        return Kernel(weight, torch.zeros_like(bias))


class GroupsMixed(ConvBNBranch):
    def kernel(self):
        weight, bias = super().kernel()
        return Kernel(weight.roll(1, 0), bias.roll(1, 0))


class PaddedOffByOne(ConvBNBranch):
    def forward(self, x):
        return super().forward(x.roll(1, -1))


class ZerosAroundABiased1x1(ExpandSqueezeBranch):
    def forward(self, x):
        middle = F.conv2d(x, self.expand.weight, self.expand.bias, groups=2)
        return F.conv2d(middle, self.squeeze.weight, self.squeeze.bias, padding=1, groups=2)


class NotLinear(ConvBNBranch):
    def forward(self, x):
        return super().forward(x).abs()


class GradientLost(ConvBNBranch):
    def forward(self, x):
        return self.spec.convolve(x, *(tensor.detach() for tensor in self.kernel()))


class LowPrecision(ConvBNBranch):
    def kernel(self):
        weight, bias = super().kernel()
        return Kernel(weight.float().to(weight), bias)


for planted in (*ConvBNBranch.__subclasses__(), ZerosAroundABiased1x1):
    for name in ("forward", "kernel", "kernel_with"):  # as if written for each other, or the guard refuses them first
        setattr(planted, name, getattr(planted, name))


def build(mutant: type[Branch]) -> tuple[Branch, torch.Tensor]:
    options = {"order": "1x1-kxk"} if issubclass(mutant, ExpandSqueezeBranch) else {}
    branch = randomise(mutant(SPEC, **options).double(), 3).eval()
    return branch, image(SPEC, 4, (7, 9))


@pytest.mark.parametrize(
    "mutant",
    [
        EpsOmitted,
        UnbiasedVariance,
        Flipped,
        BiasLost,
        GroupsMixed,
        PaddedOffByOne,
        ZerosAroundABiased1x1,
        NotLinear,
        LowPrecision,
    ],
)
def test_a_wrong_function_is_rejected(mutant):
    with pytest.raises(AssertionError, match="relative error"):
        check_equals_its_convolution(*build(mutant))


def test_a_mistake_at_the_border_is_seen_at_the_border():
    with pytest.raises(AssertionError, match="border"):
        check_equals_its_convolution(*build(ZerosAroundABiased1x1))


def test_a_nonlinear_branch_is_rejected():
    with pytest.raises(AssertionError, match="relative error"):
        check_is_affine(*build(NotLinear))


def test_a_lost_gradient_is_rejected():
    with pytest.raises(AssertionError, match="gradient differs"):
        check_gradients(*build(GradientLost))


def test_a_lost_bias_is_rejected_in_single_precision():
    with pytest.raises(AssertionError, match="rounding steps"):
        check_dtype(*build(BiasLost), torch.float32)


def test_the_unmutated_branch_passes():
    check_equals_its_convolution(*build(ConvBNBranch))


@pytest.mark.parametrize(
    ("a", "b", "match"),
    [
        (torch.ones(2), torch.ones(3), "shapes differ"),
        (torch.ones(2), torch.ones(2).double(), "dtypes differ"),
        (torch.ones(2), torch.tensor([1.0, 1.0001]), "exceeds"),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), "not finite"),
    ],
)
def test_the_comparison_can_fail(a, b, match):
    with pytest.raises(AssertionError, match=match):
        assert_close(a, b)


def test_the_comparison_sees_each_border():
    for row, column in [(0, 3), (4, 3), (2, 0), (2, 6)]:
        y = torch.ones(1, 1, 5, 7).double()
        wrong = y.clone()
        wrong[..., row, column] += 1e-9
        with pytest.raises(AssertionError, match="border"):
            assert_close_everywhere(wrong, y)
