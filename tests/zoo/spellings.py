"""One sum of branches in all the ways that people write it, and what looks like one and must stay."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from official import conv_bn
from torch import Tensor, nn

from .animal import IMAGE, Animal
from .detectors import VGGBlock


class Spelled(nn.Module):
    """A forward, as a function of the module and its input, and parts."""

    def __init__(self, forward: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def big(channels: int = 8, out: int = 8, **options: Any) -> nn.Module:
    return conv_bn(channels, out, 3, padding=1, **options)


def small(channels: int = 8, out: int = 8, **options: Any) -> nn.Module:
    return conv_bn(channels, out, 1, **options)


def pair(forward: Callable[..., Tensor], **more: Any) -> Callable[[], nn.Module]:
    """A forward of a big and a small branch, and of more parts, which are given as what makes them."""
    return lambda: Spelled(forward, a=big(), b=small(), **{name: make() for name, make in more.items()})


def number(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.ones(shape))


def branches() -> nn.ModuleList:
    return nn.ModuleList([big(), small(), big(), nn.BatchNorm2d(8)])


def in_place(m, x):
    y = m.a(x)
    y += m.b(x)
    y += x
    return y


def with_methods(m, x):
    y = m.a(x).clone()
    y.add_(m.b(x)).mul_(0.5)
    return y.sub(x)


def zeros_and_a_loop(m, x):
    y = torch.zeros_like(x)
    for branch in m.many:
        y = y + branch(x)
    return y


def list_of_outputs(m, x):
    found = []
    for index, branch in enumerate(m.many):
        found.append(branch(x) * m.weights[index])
    return torch.stack(found, dim=0).sum(dim=0)


def with_padding(m, x):
    padded = m.pad(x)
    return m.a(padded) + m.b(x)


def functional_padding(m, x):
    wide = F.pad(x, (1, 1, 1, 1))
    return F.conv2d(wide, m.weight, m.bias) + F.conv2d(x, m.point.view(8, 8, 1, 1))


def functional_norm(m, x):
    y = F.batch_norm(m.c(x), m.bn.running_mean, m.bn.running_var, m.bn.weight, m.bn.bias, False, 0.1, m.bn.eps)
    return y + m.b(x)


def pools(m, x):
    return m.a(x) + F.avg_pool2d(m.b(x), 1) + F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)


def halves(m, x):
    one, two = x.chunk(2, dim=1)
    return torch.cat([m.a(one) + m.b(one), m.c(two) + two], dim=1)


def slices(m, x):
    one, two = x[:, :4], x[:, 4:]
    return torch.cat((m.a(one) + m.b(one), m.c(two) + two), 1)


def outputs_joined(m, x):
    return m.last(torch.cat([m.a(x), m.b(x), x], dim=1))


def strips(m, x):
    return m.bn(m.square(x) + m.tall(F.pad(x, (0, 0, 2, 2))) + m.wide(x) + m.low(m.high(x)))


def optional(m, x):
    out = m.a(x)
    if m.b is not None:
        out = out + m.b(x)
    return out if m.c is None else out + m.c(x)


def tokens(m, x):
    return x + m.gamma * (m.up(m.down(x)) + m.full(x))


def channels_last(m, x):
    return m.conv(x) + m.point(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TwoInputs(nn.Module):
    """A branch that is called by keyword, with an option that is off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = big().children()

    def forward(self, *, inputs, residual=None):
        y = self.bn(self.conv(inputs))
        return y if residual is None else y + residual


def excluded_pool(m, x):
    return m.a(x) + F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def activated_between(m, x):
    return m.a(x.relu()) + m.b(x)


def gated(m, x):
    return m.a(x) * m.b(x)


def shared(m, x):
    return m.a(m.a(x).relu()) + m.b(x)


def animals() -> Iterator[tuple[str, Animal]]:
    yield "+", Animal(pair(lambda m, x: m.a(x) + m.b(x) + x), IMAGE)
    yield "+=", Animal(pair(in_place), IMAGE)
    yield "- and a number", Animal(pair(lambda m, x: 2 * m.a(x) - m.b(x) / 3 + 1.0), IMAGE)
    yield "methods in place", Animal(pair(with_methods), IMAGE)
    yield (
        "sum of a generator",
        Animal(lambda: Spelled(lambda m, x: sum(branch(x) for branch in m.many), many=branches()), IMAGE),
    )
    yield (
        "sum of a list with a start",
        Animal(lambda: Spelled(lambda m, x: sum([branch(x) for branch in m.many], x), many=branches()), IMAGE),
    )
    yield (
        "reduce",
        Animal(
            lambda: Spelled(lambda m, x: functools.reduce(operator.add, [f(x) for f in m.many]), many=branches()), IMAGE
        ),
    )
    yield (
        "stack and sum",
        Animal(lambda: Spelled(lambda m, x: torch.stack([f(x) for f in m.many]).sum(0), many=branches()), IMAGE),
    )
    yield (
        "stack and mean",
        Animal(
            lambda: Spelled(lambda m, x: torch.mean(torch.stack([f(x) for f in m.many], dim=1), 1), many=branches()),
            IMAGE,
        ),
    )
    yield (
        "a list of scaled outputs",
        Animal(lambda: Spelled(list_of_outputs, many=branches(), weights=number(4)()), IMAGE),
    )
    yield "zeros and a loop", Animal(lambda: Spelled(zeros_and_a_loop, many=branches()), IMAGE)
    yield "torch.add with alpha", Animal(pair(lambda m, x: torch.add(m.a(x), m.b(x), alpha=0.3)), IMAGE)
    yield "torch.lerp", Animal(pair(lambda m, x: torch.lerp(m.a(x), m.b(x), 0.3)), IMAGE)
    yield "torch.lerp, learned", Animal(pair(lambda m, x: torch.lerp(m.a(x), m.b(x), m.t), t=number(1)), IMAGE)
    yield (
        "torch.sub and torch.mul",
        Animal(pair(lambda m, x: torch.sub(torch.mul(m.a(x), m.g.view(1, -1, 1, 1)), m.b(x)), g=number(8)), IMAGE),
    )
    yield "addcmul", Animal(pair(lambda m, x: torch.addcmul(m.a(x), m.b(x), m.g), g=number(8, 1, 1)), IMAGE)
    yield (
        "scales per channel",
        Animal(
            pair(
                lambda m, x: m.a(x).mul(m.g.reshape(1, -1, 1, 1)) + m.h[:, None, None] * m.b(x),
                g=number(8),
                h=number(8),
            ),
            IMAGE,
        ),
    )
    yield (
        "softmax of learned scales",
        Animal(pair(lambda m, x: (m.t.softmax(0)[0] * m.a(x)) + m.t.softmax(0)[1] * m.b(x), t=number(2)), IMAGE),
    )
    yield "a gated scalar", Animal(pair(lambda m, x: torch.tanh(m.t) * m.a(x) + m.b(x), t=number(1)), IMAGE)
    yield "ZeroPad2d", Animal(lambda: Spelled(with_padding, pad=nn.ZeroPad2d(1), a=conv_bn(8, 8, 3), b=small()), IMAGE)
    yield (
        "ReflectionPad2d",
        Animal(
            lambda: Spelled(
                lambda m, x: m.a(m.pad(x)) + m.b(x), pad=nn.ReflectionPad2d(1), a=conv_bn(8, 8, 3), b=small()
            ),
            IMAGE,
        ),
    )
    yield (
        "functional convolutions",
        Animal(
            lambda: Spelled(functional_padding, weight=number(8, 8, 3, 3)(), bias=number(8)(), point=number(8, 8)()),
            IMAGE,
        ),
    )
    yield (
        "F.batch_norm",
        Animal(
            lambda: Spelled(functional_norm, c=nn.Conv2d(8, 8, 3, padding=1), bn=nn.BatchNorm2d(8), b=small()), IMAGE
        ),
    )
    yield "F.avg_pool2d", Animal(pair(pools), IMAGE)
    yield "chunk and cat", Animal(lambda: Spelled(halves, a=big(4, 4), b=small(4, 4), c=big(4, 4)), IMAGE)
    yield "slices and cat", Animal(lambda: Spelled(slices, a=big(4, 4), b=small(4, 4), c=big(4, 4)), IMAGE)
    yield (
        "outputs joined by a 1x1",
        Animal(lambda: Spelled(outputs_joined, a=big(), b=small(), last=nn.Conv2d(24, 8, 1)), IMAGE),
    )
    yield (
        "PixelUnshuffle first",
        Animal(
            lambda: Spelled(
                lambda m, x: m.a(m.down(x)) + m.b(m.down(x)), down=nn.PixelUnshuffle(2), a=big(32), b=small(32)
            ),
            (2, 8, 12, 10),
        ),
    )
    yield (
        "strips",
        Animal(
            lambda: Spelled(
                strips,
                square=nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False),
                tall=nn.Conv2d(8, 8, (5, 1), groups=8),
                wide=nn.Conv2d(8, 8, (1, 5), padding=(0, 2), groups=8),
                high=nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=8, bias=False),
                low=nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=8),
                bn=nn.BatchNorm2d(8),
            ),
            IMAGE,
        ),
    )
    yield (
        "dropout in eval",
        Animal(
            pair(lambda m, x: m.drop(m.a(x)) + F.dropout(m.b(x), 0.2, m.training), drop=lambda: nn.Dropout2d(0.1)),
            IMAGE,
        ),
    )
    yield (
        ".to(dtype) and contiguous",
        Animal(pair(lambda m, x: (m.a(x.contiguous()) + m.b(x)).to(x.dtype).type_as(x)), IMAGE),
    )
    yield "branches that are None", Animal(lambda: Spelled(optional, a=big(), b=small(), c=None), IMAGE)
    yield (
        "a ModuleDict",
        Animal(
            lambda: Spelled(
                lambda m, x: sum(f(x) for f in m.many.values()), many=nn.ModuleDict({"big": big(), "small": small()})
            ),
            IMAGE,
        ),
    )
    yield "branches by name", Animal(pair(lambda m, x: sum(getattr(m, name)(x) for name in ("a", "b"))), IMAGE)
    yield (
        "called by keyword",
        Animal(
            lambda: Spelled(lambda m, x: m.a(inputs=x) + m.b(inputs=x, residual=x), a=TwoInputs(), b=TwoInputs()), IMAGE
        ),
    )
    yield (
        "linear layers of vectors",
        Animal(
            lambda: Spelled(
                lambda m, x: m.norm(m.full(x) + m.up(m.down(x))),
                full=nn.Linear(8, 8),
                down=nn.Linear(8, 4),
                up=nn.Linear(4, 8),
                norm=nn.BatchNorm1d(8),
            ),
            (5, 8),
        ),
    )
    yield (
        "linear layers of tokens",
        Animal(
            lambda: Spelled(
                tokens, full=nn.Linear(8, 8), down=nn.Linear(8, 2, bias=False), up=nn.Linear(2, 8), gamma=number(8)()
            ),
            (2, 5, 8),
        ),
    )
    yield (
        "a linear layer in channels last",
        Animal(lambda: Spelled(channels_last, conv=nn.Conv2d(8, 8, 3, padding=1), point=nn.Linear(8, 8)), IMAGE),
    )
    yield "a lambda of lambdas", Animal(pair(lambda m, x: (lambda f: f(m.a) + f(m.b))(lambda layer: layer(x))), IMAGE)
    yield (
        "two regions with an activation between",
        Animal(lambda: nn.Sequential(VGGBlock(8, 8), Spelled(lambda m, x: x + m.a(x), a=big())), IMAGE, fewest=2),
    )
    yield (
        "a row of convolutions that is cheaper as one",
        Animal(lambda: nn.Sequential(nn.Conv2d(8, 32, 1, bias=False), nn.Conv2d(32, 8, 3, padding=1)), IMAGE),
    )
    yield (
        "a bottleneck, which is cheaper as two",
        Animal(
            lambda: Spelled(lambda m, x: m.up(m.down(x)), down=conv_bn(8, 1, 1), up=nn.Conv2d(1, 8, 3)), IMAGE, fewest=2
        ),
    )
    yield (
        "a separable convolution, which is cheaper as two",
        Animal(lambda: nn.Sequential(conv_bn(8, 8, 3, padding=1, groups=8), conv_bn(8, 8, 1)), IMAGE, fewest=2),
    )
    yield "an activation in a branch", Animal(pair(activated_between), IMAGE, fewest=2)
    yield (
        "a pool that does not count its padding",
        Animal(lambda: Spelled(excluded_pool, a=big()), IMAGE, fewest=2, stays=True),
    )
    yield "a product of branches", Animal(pair(gated), IMAGE, fewest=2)
    yield "a branch that is used twice", Animal(pair(shared), IMAGE, fewest=3, stays=True)
    yield (
        "atrous branches, which are cheaper apart",
        Animal(
            lambda: Spelled(
                lambda m, x: sum(conv(x) for conv in m.convs),
                convs=nn.ModuleList(nn.Conv2d(8, 4, 3, padding=rate, dilation=rate) for rate in (2, 3, 5)),
            ),
            IMAGE,
            fewest=3,
            stays=True,
        ),
    )
