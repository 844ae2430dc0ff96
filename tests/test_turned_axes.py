"""A norm behind a linear layer, with axes turned between the two: it goes only if it counts what the layer makes."""

import pytest
import torch
from helpers import assert_close
from test_foreign import Forward, image, norms_in, ready
from torch import nn

from reparam import FuseError, fuse


def module(forward, norm, **parts):
    return ready(Forward(forward, linear=nn.Linear(6, 6), norm=norm(6), **parts))


TURNED = {
    "permute": (lambda m, x: m.norm(m.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), nn.BatchNorm2d, 4),
    "a tuple": (lambda m, x: m.norm(torch.permute(m.linear(x.permute(0, 2, 3, 1)), (0, -1, 1, 2))), nn.BatchNorm2d, 4),
    "a list": (lambda m, x: m.norm(m.linear(x.movedim(1, -1)).permute(dims=[0, 3, 1, 2])), nn.BatchNorm2d, 4),
    "transpose": (lambda m, x: m.norm(m.linear(x.transpose(1, 2)).transpose(1, 2)).transpose(1, 2), nn.BatchNorm1d, 3),
    "from the end": (lambda m, x: m.norm(m.linear(x.mT).transpose(-1, -2)), nn.BatchNorm1d, 3),
    "volumes": (lambda m, x: m.norm(m.linear(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)), nn.BatchNorm3d, 5),
    "twice": (
        lambda m, x: m.norm(m.linear(x.permute(0, 2, 3, 1)).transpose(1, 2).permute(0, 3, 1, 2)),
        nn.BatchNorm2d,
        4,
    ),
}
OTHER_AXES = {
    "none turned": (lambda m, x: m.norm(m.linear(x)), nn.BatchNorm2d, 4),
    "others turned": (lambda m, x: m.norm(m.linear(x).permute(0, 1, 3, 2)), nn.BatchNorm2d, 4),
    "to another place": (lambda m, x: m.norm(m.linear(x).permute(0, 2, 3, 1)), nn.BatchNorm2d, 4),
    "and turned back": (lambda m, x: m.norm(m.linear(x).transpose(1, 2).transpose(1, 2)), nn.BatchNorm1d, 3),
    "read before it is turned": (
        lambda m, x: m.norm((y := m.linear(x)).permute(0, 3, 1, 2)) + y.permute(0, 3, 1, 2),
        nn.BatchNorm2d,
        4,
    ),
}


def example(axes):
    return image(2, *[6] * (axes - 1))  # as many of everything, so that a wrong axis shows in the numbers alone


@pytest.mark.parametrize("name", TURNED)
@torch.no_grad()
def test_it_goes(name):
    forward, norm, axes = TURNED[name]
    model, x = module(forward, norm), example(axes)
    plain = fuse(model)
    assert norms_in(plain) == []
    assert_close(plain(x), model(x))


@pytest.mark.parametrize("name", OTHER_AXES)
@torch.no_grad()
def test_it_stays(name):
    forward, norm, axes = OTHER_AXES[name]
    model, x = module(forward, norm), example(axes)
    model(x)
    with pytest.raises(FuseError, match=r"found no block to fuse in Forward[^$]*\n  norm: "):
        fuse(model)


@pytest.mark.parametrize("turn", [lambda y: y.permute(0, 2, 1, 3), lambda y: y.transpose(1, 3)])
def test_what_a_convolution_makes_is_counted_only_where_it_is(turn):
    model = ready(Forward(lambda m, x: m.norm(turn(m.conv(x))), conv=nn.Conv2d(6, 6, 1), norm=nn.BatchNorm2d(6)))
    with pytest.raises(FuseError, match=r"makes other channels than it normalizes"):
        fuse(model)
