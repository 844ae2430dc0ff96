"""Multiply-adds of the fused form, by the formula of a convolution, whatever a block runs to train."""

from math import prod

import pytest
import torch
from helpers import image
from hypothesis import given
from strategies import KINDS, cases
from torch import nn

from reparam import FuseError, RepSRBlock, SpecError, create_model, freeze_bn_stats, fuse, macs, swap_convs
from reparam.sr import PlainSR


@given(cases())
def test_of_every_block_it_is_what_its_convolution_takes(case):
    kind, spec, seed, size = case
    block, x = KINDS[kind](spec).double(), image(spec, seed, size)
    positions = spec.convolve(x, *block.eval()._full(block.kernel())).shape[2:]
    taps = spec.out_channels * (spec.in_channels // spec.groups) * prod(spec.kernel_size)
    for mode in (True, False):  # of a block that no batch has seen
        assert macs(nn.Sequential(block.train(mode)), x) == len(x) * prod(positions) * taps
    assert macs(nn.Sequential(block), tuple(x.shape)) == len(x) * prod(positions) * taps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_of_a_network_it_is_that_of_the_plain_one_and_the_network_stays_as_it_was(dtype):
    net = create_model("repsr_m2c8_x2").to(dtype)
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    by_hand = 2 * 20 * 30 * 9 * (3 * 8 + 2 * 8 * 8 + 8 * 12)
    assert macs(net, (2, 3, 20, 30)) == macs(PlainSR(num_blocks=2, channels=8), (2, 3, 20, 30)) == by_hand
    assert net.training and not calls
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    net(torch.rand(2, 3, 8, 8).to(dtype))
    freeze_bn_stats(net)
    assert macs(net, torch.rand(2, 3, 20, 30).to(dtype)) == macs(fuse(net), (2, 3, 20, 30)) == by_hand


def test_other_layers_and_other_codes_blocks_are_counted_as_they_are_fused():
    net = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(192, 5))
    assert macs(net, (2, 3, 3, 4)) == 2 * (3 * 4 * 3 * 4 * 4 + 192 * 5)
    row = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    assert macs(row, (1, 3, 5, 6)) == 5 * 6 * 3 * 4 * 9


def test_swapping_changes_nothing():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, stride=2))
    before = macs(net, (1, 3, 9, 9))
    swap_convs(net, RepSRBlock)
    assert macs(net, (1, 3, 9, 9)) == before == 7 * 7 * 12 * 9 + 3 * 3 * 12 * 9


class Asks(nn.Module):
    """A forward that looks at its numbers, and takes more than one input."""

    def __init__(self) -> None:
        super().__init__()
        self.block = RepSRBlock(3)

    def forward(self, x, factor=1):
        return self.block(x * factor if float(x.sum()) < 1e9 else x)


@pytest.mark.parametrize("example", [(torch.rand(1, 3, 5, 6), 2.0), {"x": torch.rand(1, 3, 5, 6)}, (1, 3, 5, 6)])
def test_a_forward_that_looks_at_numbers_is_run_with_them(example):
    assert macs(Asks(), example) == 5 * 6 * 9 * 9


def test_without_any_numbers():
    with torch.device("meta"):
        net = create_model("repsr_m2c8_x2")
    assert macs(net, (1, 3, 4, 4)) == 16 * 9 * (3 * 8 + 2 * 8 * 8 + 8 * 12)


@pytest.mark.parametrize("shape", [(1, 3, 0, 4), (1, 3, 4.0, 4), [1, 3, -4, 4]])
def test_what_is_no_shape_is_refused(shape):
    with pytest.raises(SpecError, match=r"the shape of an input must consist of integers above 0, but got \(1, 3, "):
        macs(RepSRBlock(3), shape)


def test_what_cannot_be_fused_is_refused_by_name():
    net = nn.Sequential(RepSRBlock(3, bn=lambda channels: nn.BatchNorm2d(channels, track_running_stats=False)))
    with pytest.raises(FuseError, match=r"0\.branches\.1\.norm: it keeps no running statistics"):
        macs(net, (1, 3, 4, 4))
