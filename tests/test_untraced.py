"""Forwards that cannot be traced: a norm inside of their parts goes only if their source uses the part as a whole."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from official import conv_bn, row
from test_foreign import image, norms_in, ready
from torch import nn
from torch.utils.checkpoint import checkpoint

from reparam import fuse
from reparam.fusing._foreign import survey


class Untraced(nn.Module):
    """A forward that looks at its input, and then does what `function` says."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.p, self.q = conv_bn(6, 6, 3, padding=1), conv_bn(6, 6, 1)
        self.many = nn.ModuleList([conv_bn(6, 6, 1), conv_bn(6, 6, 3, padding=1)])
        self.named = nn.ModuleDict({"a": conv_bn(6, 6, 1)})
        self.space = nn.Module()  # which is never called itself
        self.space.one = conv_bn(6, 6, 1)
        self.inner = row(row=conv_bn(6, 6, 1), last=nn.ReLU())
        self.optional = Optional()
        self.plain_list = [self.p, self.q]
        self.flag = self.raw = False
        self.whole = partial(self.call, self.p)

    def forward(self, x):
        return self.function(self, x) if float(x.mean()) > -1e9 else x

    def call(self, part, x):
        return part(x)

    def first_of(self, part, x):
        return part[0](x)

    @property
    def main(self):
        return self.p

    @property
    def heads(self):
        return {"part": self.p}


class Optional(nn.Module):
    """A part with an option that its graph does not show."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv_bn(6, 6, 1).children()

    def forward(self, x, raw=False):
        return self.conv(x) if raw else self.bn(self.conv(x))


def call(part, x):
    return part(x)


def first_of(part, x):
    return part[0](x)


def loop(m, x):
    for part in m.many:
        x = part(x)
    for index, part in enumerate(m.many):
        x = part(x) + m.many[index](x)
    for one, two in zip(m.many, reversed(m.many)):
        x = one(two(x))
    for _, part in m.named.items():
        x = part(x)
    return sum(part(x) for part in [*m.many, *m.named.values()])


def inner_loop(m, x):
    for part in m.p:
        x = part(x)
    return x


def aliases(m, x):
    p, (q, *_) = m.p, m.many
    with torch.no_grad():
        y = q(p(x))
    return p(y) if (z := m.q) is None else z(y)


def alias_of_a_part(m, x):
    p = m.p
    first = p[0]
    return first(x)


def nested(m, x):
    def inner(y):
        return m.p(y)

    return inner(x)


def nested_part(m, x):
    def inner(y):
        return m.p[0](y)

    return inner(x)


def passed_to_nested(m, x):
    def inner(part):
        return part[0](x)

    return inner(m.p)


def kept_for_later(m, x):
    m.later = [m.p]
    return m.later[0][0](x)


def in_a_dict(m, x):
    parts = {}
    parts["p"] = m.p
    return parts["p"][0](x)


def slices(m, x):
    for part in m.many[:-1]:
        x = part(x)
    return m.many[-1](x)


def pairs(m, x):
    for index, (y, part) in enumerate(zip([x, 2 * x], m.many)):
        x = part(y) + index
    for part, y in zip(m.many, (x, x)):
        x = part(y)
    return x


def pairs_with_parts(m, x):
    for y, part in zip([x], m.p):
        x = part(y)
    return x


def spread(m, x):
    return call(x=x, **m.heads)


def spread_to_part(m, x):
    return first_of(x=x, **m.heads)


def perhaps(part, x, raw=False, scale=1.0):
    return (part[0](x) if raw else part(x)) * scale


def changed(part, x, raw=False):
    raw = bool(x.numel()) or raw
    return part[0](x) if raw else part(x)


def any_way(m, x, *args, **kwargs):
    return perhaps(m.p, x, *args, **kwargs)


def set_before(m, x):
    m.raw = True
    return raw_of(m, x)


def raw_of(m, x):
    y = m.first_of(m.p, x) if m.raw else m.p(x)
    m.raw = False
    return y


def appended(m, x):
    parts = [m.q]
    parts.append(m.p)
    return parts[1][0](x)


def turned(m, x):
    parts = [m.p, m.q]
    parts.reverse()
    _, q = parts
    return q[0](x)


class Told:
    """An object that asks for a number of a module, and keeps the module."""

    def __init__(self, model, kind=None):
        self.stride, self.part = model.q.conv.stride[0], model.p

    def __call__(self, x):
        return x + self.stride

    def run(self, x):
        return self.part(x)


class Keeps(Told):
    """One that runs a layer of it."""

    def __init__(self, model):
        super().__init__(model)
        self.layer = model.p.conv

    def __call__(self, x):
        return self.layer(x)


class Late(Told):
    """One that is given a layer after it is made."""

    def __init__(self, model):
        self.part = model.q

    def __enter__(self):
        self.layer = self.part[0]
        return self.layer

    def __exit__(self, *_):
        return None

    def __matmul__(self, x):
        return self.part[0](x)


def made(m, x, kind=Told):
    told = kind(m)
    return told(x) + told.run(x)


def entered(m, x):
    with Late(m) as layer:
        return layer(x)


WITHOUT_SOURCE = eval("lambda m, x: m.p(x)")  # as from a console: nothing can be known of it

WHOLE = {
    "called": lambda m, x: m.p(m.q(x)),
    "loops": loop,
    "by its name": lambda m, x: getattr(m, "p")(x),  # noqa: B009  # the name as text is what is tested
    "a part of a namespace": lambda m, x: m.space.one(x),
    "a part with parts, the whole of one": lambda m, x: m.inner(x) + m.inner.row(x),
    "aliases": aliases,
    "a method": lambda m, x: m.call(m.p, x),
    "a function": lambda m, x: call(m.p, x),
    "a property": lambda m, x: m.main(x),
    "a partial": lambda m, x: m.whole(x),
    "a list": lambda m, x: m.plain_list[0](m.plain_list[1](x)),
    "a nested function": nested,
    "a dtype": lambda m, x: m.p(x.to(next(m.parameters()).dtype).to(m.p.conv.weight.device)),
    "its forward": lambda m, x: m.p.forward(x),
    "a checkpoint": lambda m, x: checkpoint(m.p, x, use_reentrant=False),
    "an optional part as it is traced": lambda m, x: m.optional(x),
    "a slice that is walked": slices,
    "pairs of values and parts": pairs,
    "keywords that are spread": spread,
    "an option that is off": lambda m, x: perhaps(m.p, x),
    "an option that is off by keyword": lambda m, x: perhaps(m.p, x, scale=2.0, raw=False),
    "options that are handed on, and not given": any_way,
    "a flag that is off": lambda m, x: m.p[0](x) if m.flag else m.p(x),
    "a flag that is on": lambda m, x: m.p(x) if not m.flag or m.p is None else m.p[0](x),
    "an object that is made of it": made,
    "asked about": lambda m, x: m.p(x) if isinstance(m.p, nn.Sequential) and len(m.p) and m.q is not None else x,
}
IN_PART = {
    "the first of it": (lambda m, x: m.p[0](x) if x.mean() > 0 else m.p(x), ["p.bn"]),
    "an attribute of it": (lambda m, x: m.p.conv(x), ["p.bn"]),
    "by its name": (lambda m, x: getattr(m.p, "conv")(x), ["p.bn"]),  # noqa: B009  # as above
    "by a name that is worked out": (lambda m, x: getattr(m.p, "co" + "nv")(x), ["p.bn"]),
    "a slice": (lambda m, x: m.p[:1](x), ["p.bn"]),
    "a loop over it": (inner_loop, ["p.bn"]),
    "its children": (lambda m, x: next(m.p.children())(x), ["p.bn"]),
    "spread out": (lambda m, x: nn.Sequential(*m.p)(x), ["p.bn"]),
    "a weight": (lambda m, x: m.p(x) + F.conv2d(x, m.p.conv.weight, padding=1), ["p.bn"]),
    "a statistic": (lambda m, x: m.p(x) + m.p.bn.running_mean.sum(), ["p.bn"]),
    "its parameters": (lambda m, x: m.p(x) * sum(one.sum() for one in m.p.parameters()), ["p.bn"]),
    "an alias": (alias_of_a_part, ["p.bn"]),
    "a method": (lambda m, x: m.first_of(m.p, x), ["p.bn"]),
    "a function": (lambda m, x: first_of(m.p, x), ["p.bn"]),
    "a nested function": (nested_part, ["p.bn"]),
    "handed to one": (passed_to_nested, ["p.bn"]),
    "handed to Python's own": (lambda m, x: next(map(first_of, [m.p], [x])), ["p.bn"]),
    "kept for later": (kept_for_later, ["p.bn"]),
    "kept in a dict": (in_a_dict, ["p.bn"]),
    "an element of a list": (lambda m, x: m.many[1][0](x), ["many.1.bn"]),
    "an option": (lambda m, x: m.optional(x, True), ["optional.bn"]),
    "an option by name": (lambda m, x: m.optional(x, raw=True), ["optional.bn"]),
    "the last of a list": (lambda m, x: m.many[-1][0](x), ["many.1.bn"]),
    "pairs of values and layers": (pairs_with_parts, ["p.bn"]),
    "keywords that are spread": (spread_to_part, ["p.bn"]),
    "arguments that are spread": (lambda m, x: perhaps(*[m.p, x]), ["p.bn"]),
    "an option that is on": (lambda m, x: perhaps(m.p, x, True), ["p.bn"]),
    "an option that is on by keyword": (lambda m, x: perhaps(m.p, x, raw=True), ["p.bn"]),
    "an option that is worked out": (lambda m, x: perhaps(m.p, x, x.mean() > 0), ["p.bn"]),
    "an option that is changed": (lambda m, x: changed(m.p, x), ["p.bn"]),
    "options that are handed on": (lambda m, x: any_way(m, x, True), ["p.bn"]),
    "a flag that is changed": (lambda m, x: set_before(m, x) + raw_of(m, x), ["p.bn"]),
    "appended to a list": (appended, ["p.bn", "q.bn"]),
    "a list that is turned": (turned, ["p.bn", "q.bn"]),
    "an object that keeps a layer": (lambda m, x: made(m, x, Keeps), ["p.bn"]),
    "an object that is entered": (entered, ["q.bn"]),
    "an object that multiplies": (lambda m, x: Late(m) @ x, ["q.bn"]),
    "inside of inside": (lambda m, x: m.inner.row.conv(x), ["inner.row.bn"]),
}


@pytest.mark.parametrize("name", WHOLE)
@torch.no_grad()
def test_a_part_that_is_used_as_a_whole_loses_its_norms(name):
    model, x = ready(nn.Sequential(Untraced(WHOLE[name]), conv_bn(6, 6, 1))), image(1, 6, 7, 6)
    plain = fuse(model)
    assert norms_in(plain) == [] and survey(model, True).left == {}
    for one in (x, -x):
        assert_close(plain(one), model(one))


@pytest.mark.parametrize("name", IN_PART)
@torch.no_grad()
def test_a_part_that_is_used_in_part_keeps_them(name):
    function, stay = IN_PART[name]
    model, x = ready(nn.Sequential(Untraced(function), conv_bn(6, 6, 1))), image(1, 6, 7, 6)
    plain, left = fuse(model), survey(model, True).left
    assert norms_in(plain) == [f"0.{norm}" for norm in stay] == list(left)
    for one in (x, -x):
        assert_close(plain(one), model(one))


@torch.no_grad()
def test_code_without_a_source_may_do_anything():
    model, x = ready(nn.Sequential(Untraced(WITHOUT_SOURCE), conv_bn(6, 6, 1))), image(1, 6, 7, 6)
    plain = fuse(model)
    assert norms_in(plain) == [name for name in norms_in(model) if name.startswith("0.")]
    assert_close(plain(x), model(x))


@torch.no_grad()
def test_what_an_inherited_forward_does_is_followed():
    class First(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if float(x.mean()) > 0 else self[0](x)

    class Second(Untraced):
        def forward(self, x):
            return super().forward(x) if float(x.mean()) < 1e9 else x

    one, two = First(conv_bn(6, 6, 1), conv_bn(6, 6, 1), nn.BatchNorm2d(6)), Second(lambda m, x: m.p[0](x))
    model, x = ready(nn.Sequential(one, two)), image(1, 6, 7, 6)
    plain = fuse(model)
    assert norms_in(plain) == ["0.2", "1.p.bn"]
    for given in (x, -x):
        assert_close(plain(given), model(given))


class ListOfParts(nn.Module):
    """As in detectors: lists of rows inside of a forward that asks for sizes."""

    def __init__(self):
        super().__init__()
        self.first = conv_bn(6, 6, 1)
        self.rows = nn.ModuleList(row(a=conv_bn(3, 3, 3, padding=1), b=conv_bn(3, 3, 1)) for _ in range(2))
        self.last = conv_bn(12, 6, 1)

    def forward(self, x):
        y = list(self.first(x).chunk(2, 1))
        y.extend(part(y[-1]) for part in self.rows)
        return self.last(torch.cat(y, 1))


@torch.no_grad()
def test_containers_are_looked_into():
    model, x = ready(nn.Sequential(ListOfParts(), nn.ReLU(), ListOfParts())), image(1, 6, 7, 6)
    plain = fuse(model)
    assert len(norms_in(model)) == 12 and norms_in(plain) == []
    assert_close(plain(x), model(x))


def test_every_norm_of_torchvisions_ssdlite_goes():
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    with torch.device("meta"):
        model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    assert len(norms_in(model)) == 70 and norms_in(fuse(model)) == []


class Sized(nn.Module):
    """A layer and a norm, in a forward that asks for sizes, so that there is no graph of it."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv_bn(6, 6, 3, padding=1).children()
        self.drop, self.act, self.gate, self.flag = nn.Dropout(0.1), nn.ReLU(), None, False

    def outside(self, x):
        return self.conv(x)


class AsInMobileNet(Sized):
    def forward(self, x):
        if int(x.shape[-1]) % 2:
            x = F.pad(x, (0, 1, 0, 1))
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        if self.gate is not None:
            x = self.gate(x)
        return self.act(x)


class Nested(Sized):
    def forward(self, x):
        return self.act(self.bn(self.drop(self.conv(x)))) * int(x.shape[0])


class InALoop(Sized):
    def forward(self, x, keep: bool = True):
        y: torch.Tensor = x
        for _ in range(int(x.shape[0]) + 1):
            made = self.conv(y)
            y = self.act(self.bn(made)) if self.bn is not None else made
        return y


class InAWay(Sized):
    def forward(self, x):
        with torch.no_grad():
            if int(x.shape[0]) > 5:
                y = self.conv(x)
                y = self.bn(y)
            else:
                y = x
        return y


class AlsoWithout(Sized):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y * int(x.shape[0])


class OrWithout(Sized):
    def forward(self, x):
        y = self.conv(x)
        if int(x.shape[0]) > 1:
            y = self.bn(y)
        return y


class OrOther(Sized):
    def forward(self, x):
        y = self.conv(x) if int(x.shape[0]) > 1 else x
        return self.bn(y)


class AddedTo(Sized):
    def forward(self, x):
        y = self.conv(x)
        y += int(x.shape[0])
        return self.bn(y)


class WrittenInto(Sized):
    def forward(self, x):
        y = self.conv(x)
        y[:, : int(x.shape[0])] = 1.0
        return self.bn(y)


class ChangedByAMethod(Sized):
    def forward(self, x):
        y = z = self.conv(x)
        z.add_(int(x.shape[0]))
        return self.bn(y)


class TheOtherWayRound(Sized):
    def forward(self, x):
        for _ in range(int(x.shape[0]) + 1):
            x = self.bn(x)
            x = self.conv(x)
        return x


class LeftBefore(Sized):
    def forward(self, x):
        y = x
        for _ in range(int(x.shape[0])):
            y = self.conv(x)
            if float(x.mean()) > 0:
                break
            y = self.bn(y)
        return y


class GoneOnBefore(Sized):
    def forward(self, x):
        y = x
        for index in range(int(x.shape[0]) + 1):
            y = self.conv(y)
            if index:
                continue
            y = self.bn(y)
        return y


class ReadByAFunction(Sized):
    def forward(self, x):
        def scale(z):
            return z + y * int(x.shape[0])

        y = self.conv(x)
        return scale(self.bn(y))


class ReadByAComprehension(Sized):
    def forward(self, x):
        y = self.conv(x)
        return sum([y for _ in range(int(x.shape[0]))], self.bn(y))


class Kept(Sized):
    def forward(self, x):
        self.last = self.conv(x)
        y = self.bn(self.last)
        return y + self.last * int(x.shape[0])


class KeptLater(Sized):
    def forward(self, x):
        y = self.conv(x)
        self.last = y
        return self.bn(y) + self.last * int(x.shape[0])


class OrTheInput(Sized):
    def forward(self, x):
        if int(x.shape[0]) > 1:
            x = self.conv(x)
        return self.bn(x)


class NoTimes(Sized):
    def forward(self, x):
        y = x
        for _ in range(int(x.shape[0]) - 1):
            y = self.conv(x)
        return self.bn(y)


class NextTime(Sized):
    def forward(self, x):
        z = self.conv(x)
        for _ in range(int(x.shape[0])):
            y = self.bn(z)
            z = y * 2
        return y


class TriedAnother(Sized):
    def forward(self, x):
        y = self.conv(x)
        try:
            y = x[: int(x.shape[0])]
        except IndexError:
            y = y[:1]
        return self.bn(y)


class Renewed(Sized):
    def renew(self):
        self.bn = nn.Identity()

    def forward(self, x):
        self.renew()
        return self.bn(self.conv(x)) * int(x.shape[0])


class Tried(Sized):
    def forward(self, x):
        y = self.conv(x)
        try:
            y = y[: int(x.shape[0]), :, :, :1000000] if y.shape[0] > 1000 else self.bn(y)
        except IndexError:
            return y
        return y


class CalledOutside(Sized):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.outside(x) * int(x.shape[0])


class CalledTwice(Sized):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv(x) * int(x.shape[0])


class ReadItsWeight(Sized):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv.weight.sum() * int(x.shape[0])


class Exchanged(Sized):
    def __init__(self):
        super().__init__()
        self.spare = nn.Conv2d(6, 6, 1)

    def exchange(self):
        self.conv, self.spare = self.spare, self.conv

    def forward(self, x):
        self.exchange()
        return self.bn(self.conv(x)) * int(x.shape[0])


class OtherChannels(Sized):
    """Of a linear layer's images, the norm counts another axis."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Linear(6, 6)

    def forward(self, x):
        return self.bn(self.conv(x[..., :6])) * int(x.shape[0])


@pytest.mark.parametrize("kind", [AsInMobileNet, Nested, InALoop, InAWay])
@torch.no_grad()
def test_a_norm_goes_where_only_the_source_says_that_it_follows_a_layer(kind):
    model, x = ready(nn.Sequential(kind(), conv_bn(6, 6, 1))), image(2, 6, 7, 6)
    plain = fuse(model)
    assert norms_in(plain) == [] and survey(model, True).left == {}
    for one in (x, -x, x[..., :5], x.repeat(3, 1, 1, 1)):
        assert_close(plain(one), model(one))


KEPT = [AlsoWithout, OrWithout, OrOther, AddedTo, WrittenInto, ChangedByAMethod, TheOtherWayRound, LeftBefore]
KEPT += [GoneOnBefore, ReadByAFunction, ReadByAComprehension, Kept, Tried, CalledOutside, CalledTwice, ReadItsWeight]
KEPT += [Exchanged, OtherChannels, KeptLater, OrTheInput, NoTimes, NextTime, TriedAnother]


@pytest.mark.parametrize("kind", KEPT)
@torch.no_grad()
def test_a_norm_stays_where_what_it_follows_is_read_otherwise(kind):
    model, x = ready(nn.Sequential(kind(), conv_bn(6, 6, 1))), image(2, 6, 6, 6)
    plain = fuse(model)
    assert norms_in(plain) == ["0.bn"] == list(survey(model, True).left)
    for one in (x, -x, x[:1], x.repeat(3, 1, 1, 1)):
        assert_close(copy.deepcopy(plain)(one), copy.deepcopy(model)(one))


@torch.no_grad()
def test_a_norm_stays_where_a_forward_puts_another_in_its_place():
    model, x = ready(nn.Sequential(Renewed(), conv_bn(6, 6, 1))), image(2, 6, 6, 6)
    plain = fuse(model)
    assert norms_in(plain) == ["0.bn"]
    assert_close(plain(x), model(x))


@torch.no_grad()
def test_a_norm_stays_where_another_module_calls_what_it_follows():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = AsInMobileNet()

        def forward(self, x):
            return self.inner(x) + F.pad(self.inner.conv(x), (0, int(x.shape[-1]) % 2) * 2)

    model, x = ready(nn.Sequential(Other(), conv_bn(6, 6, 1))), image(2, 6, 7, 7)
    plain = fuse(model)
    assert norms_in(plain) == ["0.inner.bn"]
    assert_close(plain(x), model(x))


@torch.no_grad()
def test_a_part_that_is_called_twice_loses_its_norm():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.part, self.other = conv_bn(6, 6, 3, padding=1), conv_bn(6, 6, 1)

        def forward(self, x):
            return self.part(self.part(x).relu()) * self.other(x)

    model, x = ready(Twice()), image(2, 6, 7, 7)
    plain = fuse(model)
    assert norms_in(plain) == []
    assert_close(plain(x), model(x))
