"""The papers' blocks against torch expressions of the papers, where no golden file says it, and what they refuse."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, assert_close_everywhere, image, randomise

from reparam import ConvSpec, OREPABlock, OREPARepVGGBlock, SpecError, set_fold
from reparam.blocks.orepa import cosines


def ready(block):
    block = randomise(block.double(), 1).eval()
    set_fold(block, False)
    return block


def bn(x, norm):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


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

    def test_scales_are_one_per_term(self):
        assert OREPABlock(4, scales=(1, 0, 0, 0, 0, 0)).branches[0].layers[1].scale.unique().tolist() == [1.0]
        with pytest.raises(SpecError, match=r"scales must hold 6 numbers, .* scales=\(1, 0\)"):
            OREPABlock(4, scales=(1, 0))
        with pytest.raises(SpecError, match="scales must hold 5 numbers"):
            OREPARepVGGBlock(4, scales=(1, 0, 0, 0, 0, 0))

    def test_without_a_bias_there_is_no_norm_after_the_sum(self):
        with pytest.raises(SpecError, match="bn needs a spec with bias=True"):
            OREPABlock(4, bias=False)
        assert_close(*(block(torch.ones(1, 4, 5, 5)) for block in [OREPABlock(4, bias=False, sum_bn=False)] * 2))
