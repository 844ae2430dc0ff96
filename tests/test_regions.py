"""Regions of forwards: what must not go wrong where a convolution is put in the place of layers."""

from __future__ import annotations

import copy
import io
import re

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, randomise
from official import conv_bn
from torch import nn
from torch.fx import GraphModule

from reparam import ECB, FuseError, fuse, inspect_model, verify

X = torch.rand(2, 6, 9, 8, generator=torch.Generator().manual_seed(0)).double()


def ready(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return randomise(module.double(), 0).eval()


def convs_in(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d) for part in module.modules())


class Sum(nn.Module):
    """Two branches, an option, and attributes that a network walks by."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.act = conv_bn(6, 6, 3, padding=1), conv_bn(6, 6, 1), nn.SiLU()
        self.i, self.f, self.names = 3, [-1, 4], ("a", "b")

    def forward(self, x, scale=None):
        y = self.act(self.conv1(x) + self.conv2(x))
        return y if scale is None else y * scale


class Gate(Sum):
    """What is left of it is no row of modules."""

    def forward(self, x):
        return x * self.act(self.conv1(x) + self.conv2(x))


class Row(Sum):
    def forward(self, x):
        return self.act(self.conv1(x) + self.conv2(x))


@pytest.mark.parametrize("kind", [Row, Gate])
@torch.no_grad()
def test_what_a_rewritten_module_keeps(kind):
    model = ready(nn.Sequential(kind(), nn.Conv2d(6, 6, 1)))
    plain = fuse(model, strict=True)
    assert list(plain.state_dict()) == ["0.conv.weight", "0.conv.bias", "1.weight", "1.bias"]
    assert (plain[0].i, plain[0].f, plain[0].names) == (3, [-1, 4], ("a", "b"))
    assert plain[0].f is not model[0].f
    assert plain[0].conv.fused_from == kind.__name__
    assert_close(plain(X), model(X))
    assert verify(model, plain, X).ok
    assert_close(copy.deepcopy(plain)(X), model(X))
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    assert_close(torch.load(file, weights_only=False)(X), model(X))
    assert list(fuse(plain).state_dict()) == list(plain.state_dict())
    assert torch.compile(plain, backend="eager")(X).shape == X.shape
    other = copy.deepcopy(model)
    assert fuse(other, inplace=True) is other
    assert_close(other(X), model(X))


@torch.no_grad()
def test_hooks_of_a_rewritten_module_go_on():
    model, seen = ready(nn.Sequential(Gate())), []
    model[0].register_forward_hook(lambda module, args, y: seen.append(type(module)))
    fuse(model)(X)
    assert len(seen) == 1 and issubclass(seen[0], GraphModule)


@pytest.mark.parametrize("where", ["0.conv1", "0.conv1.conv", "0.conv2.bn"])
@torch.no_grad()
def test_a_hook_inside_keeps_a_branch_apart(where):
    model, seen = ready(nn.Sequential(Row())), []
    model.get_submodule(where).register_forward_hook(lambda *_: seen.append(1))
    plain = fuse(model)
    seen.clear()
    assert_close(plain(X), model(X))
    assert len(seen) == 2  # in either


@torch.no_grad()
def test_a_forward_that_was_replaced_is_not_read_as_its_class_says():
    model = ready(nn.Sequential(Row(), conv_bn(6, 6, 1)))
    model[0].forward = lambda x: x.abs()
    plain = fuse(model)
    assert_close(plain(X), model(X))


class Caller(nn.Module):
    """Calls a part as a parameter says."""

    def __init__(self, call):
        super().__init__()
        self.part, self.call, self.last = Sum(), call, conv_bn(6, 6, 1)

    def forward(self, x):
        return self.last(self.call(self.part, x).relu())


@pytest.mark.parametrize(
    "call",
    [lambda part, x: part(x, 2.0), lambda part, x: part(x=x), lambda part, x: part(x, scale=x)],
    ids=["option", "keyword", "value"],
)
@torch.no_grad()
def test_a_module_that_is_called_otherwise_stays_what_it_is(call):
    model = ready(Caller(call))
    plain = fuse(model)
    assert type(plain.part) is Sum
    assert_close(plain(X), model(X))


@torch.no_grad()
def test_a_layer_whose_weight_is_read_elsewhere_is_not_replaced_in_place():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(6, 12, 3, padding=1), nn.Conv2d(12, 6, 1)

        def forward(self, x):
            return self.b(self.a(x)).relu() + F.conv2d(x, self.a.weight[:6], padding=1)

    model = ready(nn.Sequential(Tied(), conv_bn(6, 6, 1)))
    assert_close(fuse(model)(X), model(X))


@torch.no_grad()
def test_a_layer_whose_weight_is_read_around_its_row_is_not_replaced_in_place():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(6, 12, 3, padding=1), nn.Conv2d(12, 6, 1))

        def forward(self, x):
            return self.inner(x).relu() + F.conv2d(x, self.inner[0].weight[:6], padding=1)

    model = ready(nn.Sequential(Outer(), conv_bn(6, 6, 1)))
    assert_close(fuse(model)(X), model(X))


@torch.no_grad()
def test_what_is_written_into_meanwhile_is_read_before():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)

        def forward(self, x):
            y = x - 0.5
            a, b = self.a(y), self.b(y)
            y.relu_()
            return (a + b).sigmoid() + y

    model = ready(nn.Sequential(Writes(), conv_bn(6, 6, 1)))
    assert_close(fuse(model)(X), model(X))


def swapped(m, x):
    one, two = x.chunk(2, 1)
    y = torch.cat([two, one], 1)
    return m.conv1(y) + m.conv2(y)


def folded_over(m, x):
    y = x[:, :3] + x[:, 3:]
    return m.half1(y) + m.half2(y)


def doubled(m, x):
    y = torch.cat([x, x], 1)
    return m.twice1(y) + m.twice2(y)


@pytest.mark.parametrize("forward", [swapped, folded_over, doubled], ids=lambda forward: forward.__name__)
@torch.no_grad()
def test_channels_that_change_places_before_any_layer(forward):
    class Channels(nn.Module):
        def __init__(self):
            super().__init__()
            for name, inputs in (("conv", 6), ("half", 3), ("twice", 12)):
                setattr(self, f"{name}1", nn.Conv2d(inputs, 6, 3, padding=1))
                setattr(self, f"{name}2", nn.Conv2d(inputs, 6, 1))

        def forward(self, x):
            return forward(self, x).relu()

    model = ready(nn.Sequential(Channels(), conv_bn(6, 6, 1)))
    plain = fuse(model)
    assert convs_in(plain) == 2
    assert_close(plain(X), model(X))


@torch.no_grad()
def test_layers_in_a_row_become_the_first_unless_the_forward_asks_for_their_geometry():
    class Asks(nn.Sequential):
        def forward(self, x):
            return super().forward(x).reshape(x.shape[0], self[0].out_channels, -1)

    layers = nn.Conv2d(6, 12, 3, padding=1), nn.Conv2d(12, 12, 1)
    model = ready(nn.Sequential(nn.Sequential(*layers), nn.ReLU()))
    plain = fuse(model)
    assert [type(part) for part in plain[0]] == [nn.Conv2d, nn.Identity]
    assert_close(plain(X), model(X))
    assert inspect_model(model).blocks[0].replaces == ("0.0", "0.1")
    asks = ready(nn.Sequential(Asks(*layers), nn.ReLU()))
    with pytest.raises(FuseError, match="found no block"):
        fuse(asks)


RESIDUALS = {
    "before": lambda m, x, y: x + m.conv1(y) + m.conv2(y),
    "between": lambda m, x, y: m.conv1(y) + x + m.conv2(y) + y,
    "in place": lambda m, x, y: m.conv1(y).add_(x).add_(m.conv2(y)),
    "nested": lambda m, x, y: (x + m.conv1(y)) + (m.conv2(y) + x.abs()) + y,
    "methods": lambda m, x, y: x.add(m.conv1(y)).add(y).add(m.conv2(y)),
}


@pytest.mark.parametrize("name", RESIDUALS)
@torch.no_grad()
def test_branches_of_one_value_among_other_summands(name):
    class Residual(Sum):
        def forward(self, x):
            return RESIDUALS[name](self, x, x.sigmoid())

    model = ready(nn.Sequential(Residual()))
    plain = fuse(model, strict=True)
    assert convs_in(plain) == 1
    assert_close(plain(X), model(X))


def overwritten_between(m, x, y):
    total = x.exp() + (kept := y.sin()) + m.conv1(y)
    kept.relu_()
    return total + m.conv2(y) + kept


def overwritten_by_a_part(m, x, y):
    one, two = m.conv1(y), m.conv2(y)
    other = m.inside(y)  # whose activation works in place
    return (one + two).sigmoid() + other


@pytest.mark.parametrize("forward", [overwritten_between, overwritten_by_a_part], ids=lambda one: one.__name__)
@torch.no_grad()
def test_what_is_added_up_first_is_not_written_into_meanwhile(forward):
    class Writes(Sum):
        def __init__(self):
            super().__init__()
            self.inside = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(6, 6, 1))

        def forward(self, x):
            return forward(self, x, (x - 0.5).tanh())  # of both signs

    model = ready(nn.Sequential(Writes(), conv_bn(6, 6, 1)))
    assert_close(fuse(model)(X), model(X))


SPELLINGS = {
    "narrow": lambda m, x: (m.conv1(x) + m.conv2(x)).narrow(1, 2, 3),
    "cat from the end": lambda m, x: m.twice(torch.cat([m.conv1(x), m.conv2(x)], -3)),
    "dropout2d": lambda m, x: F.dropout2d(m.conv1(x), 0.5, m.training) + m.conv2(x),
}


@pytest.mark.parametrize("name", SPELLINGS)
@torch.no_grad()
def test_more_spellings(name):
    class Spelled(Sum):
        def __init__(self):
            super().__init__()
            self.twice = nn.Conv2d(12, 6, 1)

        def forward(self, x):
            return SPELLINGS[name](self, x).relu()

    model = ready(nn.Sequential(Spelled(), nn.ReLU()))
    plain = fuse(model, strict=True)
    assert convs_in(plain) == 1
    assert_close(plain(X), model(X))


@torch.no_grad()
def test_products_with_matrices():
    class Vectors(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.rand(6, 4)), nn.Parameter(torch.rand(6, 4))
            self.bias, self.norm = nn.Parameter(torch.rand(4)), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(x @ self.a + torch.addmm(self.bias, x, self.b)).relu()

    model, x = ready(nn.Sequential(Vectors())), torch.rand(5, 6).double()
    plain = fuse(model, strict=True)
    assert sum(isinstance(part, nn.Linear) for part in plain.modules()) == 1
    assert_close(plain(x), model(x))


@torch.no_grad()
def test_what_is_fused_stays_as_it_is():
    """A block of ours and a convolution behind it could be one, and are two after the first time as well."""
    model = ready(nn.Sequential(ECB(6, 6), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)))
    once = fuse(model, batch_norms=True)
    assert list(fuse(once).state_dict()) == list(once.state_dict()) and not inspect_model(once).blocks
    assert_close(fuse(once)(X), model(X))


@torch.no_grad()
def test_a_whole_model_is_not_rewritten_for_a_small_part():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(*(part for _ in range(4) for part in (conv_bn(6, 6, 1), nn.ReLU())))
            self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)

        def forward(self, x):
            y = self.body(x)
            return self.a(y) + self.b(y)

    model = ready(Net())
    plain = fuse(model)
    assert type(plain) is Net and convs_in(plain) == 6
    assert_close(plain(X), model(X))
    assert "would rewrite that forward" in inspect_model(model).left[""]
    with pytest.raises(FuseError, match="the model itself: .*lose its class"):
        fuse(model, strict=True)


@torch.no_grad()
def test_integer_buffers_are_the_users_own():
    class Counting(Row):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    model = ready(nn.Sequential(Counting()))
    fuse(model)
    inspect_model(model)
    assert int(model[0].calls) == 0


@torch.no_grad()
def test_a_buffer_that_tells_a_dtype_does_not_make_float64():
    class Asking(Gate):
        def __init__(self):
            super().__init__()
            self.register_buffer("like", torch.zeros(1))

        def forward(self, x):
            return super().forward(x.to(self.like.dtype))

    model = ready(nn.Sequential(Asking())).float()
    assert fuse(model)(X.float()).dtype == torch.float32


@torch.no_grad()
def test_a_region_costs_no_more_than_its_layers():
    class Net(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x):
            return (self.first(x) + self.second(x)).relu()

    tall, wide = nn.Conv2d(6, 6, (7, 1), padding=(3, 0)), nn.Conv2d(6, 6, (1, 7), padding=(0, 3))
    report = inspect_model(ready(nn.Sequential(Net(tall, wide), conv_bn(6, 6, 1))))
    assert "one convolution would take 1,764 multiply-adds per pixel of its input" in report.apart["0"]
    assert "0 is cheaper unfused" in str(report)
    square = nn.Conv2d(6, 6, 7, padding=3)
    report = inspect_model(ready(nn.Sequential(Net(square, wide))))
    assert re.search(r"fused  multiply-adds  .*\n.*  2,022 -> 1,764 ", str(report))
    (block,) = report.blocks
    assert (block.multiply_adds, block.fused_multiply_adds) == (49 * 36 + 7 * 36 + 6, 49 * 36)
    assert block.replaces == ("0.first", "0.second")


class Padded(nn.Module):
    """A branch that widens its input and then pads, beside a 3x3."""

    def __init__(self, forward, wide=12, bias=True):
        super().__init__()
        self.expand, self.squeeze = nn.Conv2d(6, wide, 1, bias=bias), nn.Conv2d(wide, 6, 3, padding=1)
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(wide)
        self.taps = nn.Conv2d(6, wide, 3, padding=1, bias=False)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


BORDERS = {
    "identity": lambda m, x: (x + 0.1 * m.squeeze(m.expand(x))).relu(),
    "convolution": lambda m, x: (m.conv(x) + m.squeeze(m.expand(x)) + x).relu(),
    "norm": lambda m, x: (m.conv(x) + m.squeeze(m.norm(m.expand(x)))).relu(),
    "taps": lambda m, x: (x + m.squeeze(m.taps(x))).relu(),
    "stack": lambda m, x: torch.stack([m.conv(x), m.squeeze(m.expand(x))]).sum(0).relu(),
}


WHY = {"taps": "a padded operation follows one with taps or a stride"}


@pytest.mark.parametrize("name", BORDERS)
@torch.no_grad()
def test_branches_that_only_their_borders_keep_apart_are_named(name):
    """W * pad(V x + v) is a convolution of x inside, but not at the border, where zeros take the place of v."""
    model = ready(nn.Sequential(nn.Conv2d(3, 6, 3), Padded(BORDERS[name])))
    left = inspect_model(model).left
    why = WHY.get(name, "zero padding follows a bias")
    assert f"{why}, so the border would differ; pad before the first of them" in left["1"]
    with pytest.raises(FuseError):
        fuse(model, strict=True)


@torch.no_grad()
def test_branches_whose_borders_agree_or_that_pay_not_are_not_named():
    agree = ready(nn.Sequential(nn.Conv2d(3, 6, 3), Padded(BORDERS["convolution"], bias=False)))
    assert not inspect_model(agree).left and convs_in(fuse(agree, strict=True)) == 2
    for function in (
        lambda m, x: (x + m.conv(m.conv(x))).relu(),  # 5x5
        lambda m, x: (m.conv(x) + m.squeeze(m.expand(x).relu())).relu(),
    ):
        assert not inspect_model(ready(nn.Sequential(nn.Conv2d(3, 6, 3), Padded(function)))).left
    few = ready(nn.Sequential(nn.Conv2d(3, 6, 3), Padded(BORDERS["identity"], wide=1)))
    assert not inspect_model(few).left
