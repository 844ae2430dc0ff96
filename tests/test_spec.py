"""Geometry: what is accepted, what is refused and how, and that the plain conv has all of it."""

import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from helpers import _NUMPY_MODE, assert_close, image, randomise, slow_conv
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds, specs
from torch import nn

from reparam import ConvSpec, RepSRBlock, SpecError
from reparam.algebra._axes import CONV
from reparam.algebra._spec import PADDING_MODES, pad


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


@given(specs())
def test_keeps_size_is_whether_the_size_is_kept(spec):
    sizes = [tuple(d * (k - 1) + add for k, d in zip(spec.kernel_size, spec.dilation)) for add in (8, 11)]
    conv = spec.new_conv().to("meta")
    kept = [conv(torch.empty(1, spec.in_channels, *size, device="meta")).shape[2:] == size for size in sizes]
    assert spec.keeps_size == all(kept)


@given(specs())
def test_parameters_are_those_of_the_convolution(spec):
    assert spec.parameters == sum(parameter.numel() for parameter in spec.new_conv().parameters())


@pytest.mark.parametrize("mode", ["zeros", *PADDING_MODES])
@given(low=st.integers(-2, 3), high=st.integers(-2, 3), ndim=st.integers(1, 3), seed=seeds)
def test_pad_is_numpys_and_a_crop(mode, low, high, ndim, seed):
    x = torch.randn(1, 2, *(6, 5, 4)[:ndim], generator=torch.Generator().manual_seed(seed))
    pads = ((low, high), (high, 0), (1, low))[:ndim]
    grown = np.pad(x.numpy(), [(0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in pads)], mode=_NUMPY_MODE[mode])
    window = tuple(slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(pads, grown.shape[2:]))
    assert torch.equal(pad(x, pads, mode), torch.from_numpy(grown[(..., *window)]))


USUAL = {"stride": 1, "dilation": 1, "groups": 1, "bias": True, "padding_mode": "zeros"}
UNUSUAL = {"stride": 2, "dilation": 3, "groups": 2, "bias": False, "padding_mode": "reflect", "padding": 0}


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("name", UNUSUAL)
def test_printed_a_spec_says_what_is_unusual_and_nothing_else(name, ndim):
    assert str(ConvSpec(4, 6, ndim=ndim, **USUAL)) == f"4 -> 6, {'x'.join('3' * ndim)}"
    spec = ConvSpec(4, 6, ndim=ndim, **{name: UNUSUAL[name]})
    said = dict.fromkeys([name, *["padding"] * (not spec.keeps_size)])
    assert str(spec) == f"4 -> 6, {'x'.join('3' * ndim)}" + "".join(f", {key}={getattr(spec, key)}" for key in said)


def test_equal_geometry_is_equal_and_stays():
    spec, same = ConvSpec(4, 4, 3, padding=1), ConvSpec(4, kernel_size=(3, 3))
    assert spec == same and hash(spec) == hash(same)
    assert all(spec != spec.replace(**{name: value}) for name, value in UNUSUAL.items())
    with pytest.raises(FrozenInstanceError, match="stride"):
        spec.stride = (2, 2)


FIELDS = {
    "in_channels": st.sampled_from([6, 12]),
    "out_channels": st.sampled_from([6, 12]),
    "kernel_size": st.integers(1, 6),
    "stride": st.integers(1, 3),
    "padding": st.sampled_from([0, 1, 3, "valid", None]),
    "dilation": st.integers(1, 3),
    "groups": st.sampled_from([1, 2, 3]),
    "bias": st.booleans(),
    "padding_mode": st.sampled_from(PADDING_MODES),
}


@given(specs(), st.fixed_dictionaries({}, optional=FIELDS))
def test_replaced_all_else_stays_and_the_usual_padding_stays_the_usual_one(spec, changes):
    """Whatever fields change; the padding stays a number of pixels only if it was not the one that keeps the size."""
    fields = {name: getattr(spec, name) for name in spec.__dataclass_fields__} | {"in_channels": 6, "out_channels": 6}
    spec = ConvSpec(**fields)  # channels that all groups divide
    totals = [(k - 1) * d for k, d in zip(spec.kernel_size, spec.dilation)]
    was_usual = [low for low, _ in spec.pads] == [t // 2 for t in totals] and list(map(sum, spec.pads)) == totals
    expected = {**fields, **({"padding": None} if was_usual else {}), **changes}
    try:
        whole = ConvSpec(**expected)
    except SpecError as error:
        with pytest.raises(SpecError, match=re.escape(str(error))):
            spec.replace(**changes)
    else:
        assert spec.replace(**changes) == whole
    assert spec.replace() == spec


def test_replaced_a_padding_that_keeps_the_size_goes_on_keeping_it():
    assert [ConvSpec(8).replace(kernel_size=k).keeps_size for k in range(1, 8)] == [True] * 7
    assert ConvSpec(8, stride=2).replace(kernel_size=(5, 7), dilation=2).padding == (4, 6)
    assert ConvSpec(8, kernel_size=4).replace(kernel_size=3).padding == (1, 1)
    assert ConvSpec(8, padding=2).replace(kernel_size=5, stride=2).padding == (2, 2)
    assert ConvSpec(8, kernel_size=5, padding=1).replace(kernel_size=3, stride=2).padding == (1, 1)
    with pytest.raises(SpecError, match=r"padding=None .* not defined for stride=\(2, 2\) with \(3, 3\) pixels"):
        ConvSpec(8, stride=2).replace(kernel_size=4)
    with pytest.raises(SpecError, match=r"kernel_size must be .* 1 of them, but got kernel_size=\(3, 3\)"):
        ConvSpec(8).replace(ndim=1)
    assert ConvSpec(8).replace(ndim=1, kernel_size=5, stride=1, dilation=1) == ConvSpec(8, kernel_size=5, ndim=1)
    with pytest.raises(TypeError, match="kernelsize"):
        ConvSpec(8).replace(kernelsize=5)


@given(specs())
def test_inside_of_a_branch_nothing_is_padded(spec):
    inner, point = spec.unpadded(), spec.pointwise(out_channels=5 * spec.groups)
    assert not any(map(any, inner.pads)) and not any(map(any, point.pads))
    assert inner == spec.replace(padding=0, padding_mode="zeros")
    x = torch.rand(1, spec.in_channels, *(7, 6, 5)[: spec.ndim])
    assert point.new_conv()(x).shape == (1, 5 * spec.groups, *x.shape[2:])
    assert (point.groups, point.bias) == (spec.groups, spec.bias)


@given(specs(), seeds)
def test_a_new_convolution_starts_as_torchs(spec, seed):
    torch.manual_seed(seed)
    conv = spec.new_conv()
    torch.manual_seed(seed)
    given = {name: getattr(spec, name) for name in spec.__dataclass_fields__ if name != "ndim"}
    expected = CONV[spec.ndim](**given)
    assert conv.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in conv.state_dict().items())
    assert all(parameter.requires_grad for parameter in conv.parameters())
    assert str(conv) == str(expected)


@given(specs(), st.booleans(), st.booleans())
def test_build_conv_holds_these_very_tensors(spec, of_weight, of_bias):
    shape = (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel_size)
    weight, bias = torch.randn(shape, requires_grad=of_weight), torch.randn(shape[0], requires_grad=of_bias)
    conv = spec.build_conv(weight, bias)
    pairs = [(conv.weight, weight), *[(conv.bias, bias)] * spec.bias]
    assert all(mine.data_ptr() == given.data_ptr() for mine, given in pairs)
    assert all(mine.requires_grad == given.requires_grad for mine, given in pairs)


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
