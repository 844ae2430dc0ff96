"""Geometry: what is accepted, what is refused and how, and that the plain conv has all of it."""

import pytest
import torch
from helpers import assert_close, image, randomise, slow_conv
from hypothesis import given
from strategies import seeds, specs
from torch import nn

from reparam import ConvSpec, RepSRBlock, SpecError


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"in_channels": 0}, "in_channels=0"),
        ({"in_channels": 4.0}, r"in_channels=4\.0"),
        ({"in_channels": 4, "out_channels": -1}, "out_channels=-1"),
        ({"in_channels": 4, "groups": 3}, "in_channels=4 must be divisible by groups=3"),
        ({"in_channels": 4, "out_channels": 6, "groups": 4}, "out_channels=6 must be divisible by groups=4"),
        ({"in_channels": 4, "groups": 0}, "groups=0"),
        ({"in_channels": 4, "kernel_size": 0}, "kernel_size=0"),
        ({"in_channels": 4, "kernel_size": (3, 3, 3)}, r"kernel_size=\(3, 3, 3\)"),
        ({"in_channels": 4, "stride": 0}, "stride=0"),
        ({"in_channels": 4, "dilation": (1, -2)}, r"dilation=\(1, -2\)"),
        ({"in_channels": 4, "padding": -1}, "padding=-1"),
        ({"in_channels": 4, "padding": "full"}, "padding='full'"),
        ({"in_channels": 4, "padding": "same", "stride": 2}, "padding='same' is not defined for stride"),
        ({"in_channels": 4, "kernel_size": 4, "stride": 2}, "padding=None .* is not defined for stride"),
        ({"in_channels": 4, "padding_mode": "mirror"}, "padding_mode='mirror'"),
        ({"in_channels": 4, "ndim": 4}, "ndim=4"),
    ],
)
def test_refusals_name_the_argument_and_its_value(arguments, match):
    with pytest.raises(SpecError, match=match):
        ConvSpec(**arguments)


@pytest.mark.parametrize("padding", [0, 2, (1, 3), "same", "valid"])
def test_padding_is_torchs(padding):
    conv = nn.Conv2d(3, 4, (3, 4), padding=padding, dilation=(2, 1))
    spec = ConvSpec(3, 4, (3, 4), padding=padding, dilation=(2, 1))
    x = torch.randn(1, 3, 8, 9)
    assert_close(spec.convolve(x, conv.weight, conv.bias), conv(x))


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_usual_padding_keeps_the_size(ndim, size, dilation):
    spec = ConvSpec(2, kernel_size=size, dilation=dilation, ndim=ndim)
    x = torch.randn(1, 2, *(9, 8, 7)[:ndim])
    assert spec.keeps_size
    assert spec.new_conv()(x).shape == x.shape


@given(specs(), seeds)
def test_build_conv_has_the_geometry(spec, seed):
    conv = spec.new_conv().double()
    size = tuple(d * (k - 1) + 4 for k, d in zip(spec.kernel_size, spec.dilation))
    x = image(spec, seed, size)
    bias = torch.zeros(spec.out_channels) if conv.bias is None else conv.bias
    assert_close(conv(x), slow_conv(x, conv.weight, bias, spec))


def test_a_block_is_a_renamed_conv():
    for arguments, options in [
        ((8, 8, 3), {"padding": 1}),
        ((8, 12, 3, 2, 1), {}),
        ((8, 8, 3, 1, 1, 1, 2, False, "reflect"), {}),
        ((8, 8, 5, 1, "same", 2), {"dtype": torch.float64}),
    ]:
        conv, block = nn.Conv2d(*arguments, **options), RepSRBlock(*arguments, **options)
        x = torch.randn(2, 8, 14, 15, dtype=conv.weight.dtype)
        assert block(x).shape == conv(x).shape
        fused = randomise(block, 0).eval().to_conv()
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups", "padding_mode"):
            assert getattr(fused, name) == getattr(conv, name)
        assert (fused.bias is None) == (conv.bias is None)
        assert fused.weight.dtype == conv.weight.dtype


def test_the_device_argument_is_honoured():
    block = RepSRBlock(4, device="meta", dtype=torch.float64)
    assert all(p.is_meta and p.dtype == torch.float64 for p in block.parameters())


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="expnsion"):
        RepSRBlock(4, expnsion=2)
