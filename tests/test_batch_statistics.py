"""Blocks on batch statistics: torch's BatchNorm, and the ring around a k x k that follows."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, image, randomise
from torch import nn

from reparam import (
    ConvBNBranch,
    ConvSpec,
    ExpandSqueezeBranch,
    ReparamBlock,
    RepSRBlock,
    SequentialBranch,
    StatisticsError,
)
from reparam.bn._norm import batch_moments, norms
from reparam.bn._running import move_running_stats

SPEC = ConvSpec(4, 6, 3)


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("bias", [True, False])
def test_the_running_statistics_are_torchs(momentum, bias):
    """With bias=False the library normalizes by itself, and must do to the buffers what torch does."""
    spec = SPEC.replace(bias=bias)
    branch = randomise(ConvBNBranch(spec).double(), 0)
    branch.norm.momentum = momentum
    theirs = copy.deepcopy(branch.norm)
    for seed in range(3):
        x = image(spec, seed, (5, 6))
        branch(x), theirs(F.conv2d(x, branch.conv.weight, padding=1))
    for ours, torchs in zip(branch.norm.buffers(), theirs.buffers()):
        torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("momenta", [(0.1, 0.1), (0.1, 0.3, 1.0), (None, 0.2), (0.0, None)])
def test_norms_side_by_side_keep_their_momenta(momenta, fold):
    """Paths of one shape are one to the statistics, but each norm moves by itself; one that keeps none stays."""
    kinds = [{"momentum": momentum} for momentum in momenta] + [{"track_running_stats": False}]
    norm = [partial(nn.BatchNorm2d, **kind) for kind in kinds]
    paths = [partial(ExpandSqueezeBranch, bn=one) for one in norm]
    block = ReparamBlock(SPEC, paths, fold=fold).double()
    literal = copy.deepcopy(block)
    for seed in range(3):
        x = image(SPEC, seed, (5, 6))
        block(x)
        for branch in literal.branches:
            branch.norm(branch.expand(F.pad(x, (1, 1, 1, 1))))
    for (name, ours), torchs in zip(block.named_buffers(), literal.buffers()):
        torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-13, msg=name)


def test_no_running_statistics_are_kept_if_not_asked_for():
    branch = ConvBNBranch(SPEC.replace(bias=False), bn=lambda c: nn.BatchNorm2d(c, track_running_stats=False))
    branch(torch.randn(2, 4, 5, 5))
    branch.eval()(torch.randn(2, 4, 5, 5))
    assert branch.norm.running_mean is None


def test_without_bias_the_sum_loses_exactly_its_bias():
    with_bias = randomise(RepSRBlock(4, 6).double(), 0)
    without = RepSRBlock(4, 6, bias=False).double()
    without.load_state_dict(with_bias.state_dict())
    x = image(SPEC, 1, (7, 8))
    difference = with_bias(x) - without(x)
    constant = difference[:1, :, :1, :1].expand_as(difference)
    assert_close(difference, constant, 1e-12)
    assert bool(constant[0, :, 0, 0].abs().min() > 1e-3)
    for one, other in zip(with_bias.buffers(), without.buffers()):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_statistics_before_a_spatial_operation_are_those_of_the_output_grid():
    """As in DBB: the 1x1's output on the image itself is what counts, not the ring that the padding adds."""
    branch = randomise(ExpandSqueezeBranch(SPEC, order="1x1-kxk", bn=True).double(), 0).train()
    x = image(SPEC, 1, (7, 8))
    middle = F.conv2d(x, branch.expand.weight, branch.expand.bias)
    mean, var, _ = batch_moments(middle)
    scale = branch.norm.weight / (var + branch.norm.eps).sqrt()
    shift = branch.norm.bias - mean * scale
    framed = (shift + scale * branch.expand.bias).reshape(1, -1, 1, 1).expand(2, -1, 9, 10).clone()
    framed[:, :, 1:-1, 1:-1] = middle * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)
    theirs = copy.deepcopy(branch.norm)
    theirs(middle)
    assert_close(branch(x), F.conv2d(framed, branch.squeeze.weight, branch.squeeze.bias))
    for ours, torchs in zip(branch.norm.buffers(), theirs.buffers()):
        torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_the_function_of_a_batch_is_the_kernel_with_its_statistics(mode):
    spec = SPEC.replace(padding_mode=mode)
    layers = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)
    branch = randomise(SequentialBranch(spec, *layers).double(), 0).train()
    x = image(spec, 1, (6, 7))
    y = branch(x)
    as_eval = copy.deepcopy(branch).eval()
    count = 2 * 6 * 7
    for _, bn in norms(branch):
        bn.momentum = 1.0
    branch(x)
    for (_, bn), (_, seen) in zip(norms(as_eval), norms(branch)):
        bn.running_mean.copy_(seen.running_mean)
        bn.running_var.copy_(seen.running_var * (count - 1) / count)  # the batch normalizes with the biased variance
    assert_close(as_eval(x), y, 1e-11)
    assert_close(as_eval.to_conv()(x), y, 1e-11)


def test_one_value_per_channel_is_refused():
    bn = nn.BatchNorm2d(2)
    with pytest.raises(StatisticsError, match="more than one value per channel in training, but got 1"):
        move_running_stats([bn], torch.zeros(2), torch.zeros(2), 1)
