"""What cannot be read stays, with the reason, and does not keep the rest from being fused."""

import copy
import re
import threading

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from official import RepVGGBlock, conv_bn
from test_foreign import Forward, bn, conv, image, norms_in, ready
from torch import nn
from torch.fx import GraphModule

from reparam import FuseError, Kernel, fuse, inspect_model, kernel_of
from reparam.fusing._foreign import survey
from reparam.fusing._foreign.leaves import _REGISTERED


class Branches(nn.Module):
    """Two branches, a method that says so, and what is done with them."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.a, self.b = conv(), conv(1)

    def fuse(self):
        raise NotImplementedError

    def forward(self, x):
        return self.function(self, x)


def two_inputs(module, x):
    return module.a(input=x) + module.b(x)


ODD = {
    "stack": (lambda m, x: torch.stack([m.a(x), m.b(x)]).sum(0), nn.Conv2d),
    "by keyword": (two_inputs, nn.Conv2d),
    "an option": (lambda m, x: F.interpolate(m.a(x) + m.b(x), scale_factor=2.0), GraphModule),
    "an activation": (lambda m, x: (m.a(x) + m.b(x)).relu(), GraphModule),
    "causal": (lambda m, x: m.b(m.a(F.pad(x, (2, 0, 2, 0)))), Branches),  # in place: b does nothing any more
}
UNREADABLE = {
    "another option": (lambda m, x: torch.add(m.a(x), m.b(x), out=None), "add cannot be read: .* argument 'out'"),
    "values": (lambda m, x: m.a(x) + m.b(x) if x.sum() != 0 else x, "the forward of Branches cannot be traced"),
}


@pytest.mark.parametrize("name", ODD)
@torch.no_grad()
def test_what_a_forward_becomes(name):
    function, kind = ODD[name]
    model, x = ready(nn.Sequential(RepVGGBlock(6, 6), Branches(function), conv_bn(6, 6, 1))), image(1, 6, 7, 6)
    plain = fuse(model, strict=True)
    assert isinstance(plain[1], kind) and not norms_in(plain)
    assert sum(isinstance(part, nn.Conv2d) for part in plain[1].modules()) == 1
    assert_close(plain(x), model(x))
    assert fuse(plain).state_dict().keys() == plain.state_dict().keys()
    assert_close(copy.deepcopy(plain)(x), model(x))


@pytest.mark.parametrize("name", UNREADABLE)
@torch.no_grad()
def test_one_odd_part_does_not_stop_the_others(name):
    function, why = UNREADABLE[name]
    model, x = ready(nn.Sequential(RepVGGBlock(6, 6), Branches(function), conv_bn(6, 6, 1))), image(1, 6, 7, 6)
    plain = fuse(model)
    assert type(plain[1]) is Branches and not norms_in(plain) and hasattr(plain[0], "rbr_reparam")
    assert_close(plain(x), model(x))
    left = survey(model, True).left
    assert re.search(why, left["1"]), left
    assert inspect_model(model).ready


@torch.no_grad()
def test_a_difference_with_a_factor_is_read():
    block = Branches(lambda m, x: torch.sub(m.a(x), m.b(x), alpha=2) - torch.sub(x, 1, alpha=0.5))
    model, x = ready(nn.Sequential(block)), image(1, 6, 7, 6)
    assert type(fuse(model)[0]) is nn.Conv2d and survey(model, True).left == {}
    assert_close(fuse(model)(x), model(x))


@torch.no_grad()
def test_a_norm_without_statistics_is_left_where_others_go():
    block = RepVGGBlock(6, 6)
    block.rbr_identity = nn.BatchNorm2d(6, track_running_stats=False)
    model, x = nn.Sequential(block, conv_bn(6, 6, 1)), image(1, 6, 7, 6)
    for part in (block.rbr_dense, block.rbr_1x1, model[1]):
        ready(part)
    plain = fuse(model.double().eval())
    assert norms_in(plain) == ["0.rbr_identity"]
    assert_close(plain(x), model(x))
    assert "batch statistics" in survey(model, True).left["0"]


def hooked(put):
    model = conv_bn(6, 6, 3)
    getattr(model.conv, put)(lambda *_: None)
    return model


STAYS = {
    "before an activation": (
        lambda: nn.Sequential(nn.ReLU(), bn(), nn.ReLU(), conv(1)),
        "0.1",
        "it follows ReLU '0.0', not a layer .*; it is followed by ReLU '0.2', not a layer",
    ),
    "a concatenation": (
        lambda: Forward(lambda m, x: m.bn(torch.cat([x, x], 1)).relu(), bn=bn(12)),
        "0.bn",
        "it follows cat, not a layer that it can be merged into; it is followed by relu",
    ),
    "pads": (lambda: nn.Sequential(nn.ReLU(), bn(), conv()), "0.1", "the layer after it, Conv2d '0.2', pads its input"),
    "used by two": (
        lambda: Forward(lambda m, x: m.bn(y := m.conv(x)) + y.abs(), bn=bn(), conv=conv()),
        "0.bn",
        "the layer before it, Conv2d '0.conv', is also used without it",
    ),
    "called twice": (
        lambda: Forward(lambda m, x: m.bn(m.conv(x)) + m.conv(x).relu(), bn=bn(), conv=conv()),
        "0.bn",
        "the layer before it, Conv2d '0.conv', is also used without it, or its weight is",
    ),
    "untraceable": (
        lambda: Forward(lambda m, x: m.bn(m.conv(x)) if x.sum() != 0 else x, bn=bn(), conv=conv()),
        "0.bn",
        "the forward of Forward around it cannot be traced, so it is not known",
    ),
    "a hook": (lambda: hooked("register_forward_hook"), "0.bn", "the layer before it, Conv2d '0.conv', has a hook"),
    "a pre-hook": (lambda: hooked("register_forward_pre_hook"), "0.bn", "has a hook, which sees the value between"),
    "by keyword": (
        lambda: Forward(lambda m, x: m.bn(input=m.conv(x)), bn=bn(), conv=conv()),
        "0.bn",
        "it is called with more than one input, or by keyword",
    ),
    "a hook in between": (
        lambda: nn.Sequential(conv(), doubling(nn.Identity()), bn()),
        "0.2",
        "it follows Identity '0.1'",
    ),
    "an identity of ones own": (
        lambda: nn.Sequential(conv(), Doubled(), bn()),
        "0.2",
        "it follows Doubled '0.1', not a layer",
    ),
}  # fmt: skip


class Doubled(nn.Identity):
    def forward(self, x):
        return 2 * x if float(x.sum()) != 0 else x


def doubling(module):
    module.register_forward_hook(lambda module, args, y: 2 * y)
    return module


@pytest.mark.parametrize("name", STAYS)
@torch.no_grad()
def test_a_norm_that_stays_says_why(name):
    build, norm, why = STAYS[name]
    wide = 12 if name == "a concatenation" else 6
    model, x = ready(nn.Sequential(build(), nn.Sigmoid(), conv_bn(wide, 6, 1))), image(1, 6, 7, 6)
    plain = fuse(model)
    assert norms_in(plain) == [norm]
    assert_close(plain(x), model(x))
    left = survey(model, True).left
    assert list(left) == [norm]
    assert re.search(why, left[norm]), left


class Frozen(nn.Module):
    """A frozen norm whose eps is nowhere but in its forward, as in DETR (1e-5) and maskrcnn-benchmark (none)."""

    def __init__(self, change=lambda y: y, small=0.0):
        super().__init__()
        self.change, self.small = change, small
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(6) + 0.1)

    def forward(self, x):
        scale = (self.weight * (self.running_var + self.small).rsqrt())[:, None, None]
        return self.change(x * scale + (self.bias[:, None, None] - self.running_mean[:, None, None] * scale))


Frozen.__name__ = "FrozenBatchNorm2d"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("small", [0.0, 1e-5, 1e-3])
@torch.no_grad()
def test_frozen_norms_that_keep_their_eps_to_themselves(small, dtype):
    model = ready(nn.Sequential(conv(padding=0), Frozen(small=small), nn.ReLU(), Frozen(small=small), conv(1))).to(
        dtype
    )
    exact, x = fuse(model.double()), image(1, 6, 7, 6)
    assert not norms_in(exact)
    assert_close(exact(x), model(x))
    plain = fuse(model.to(dtype))
    assert all(torch.equal(value, exact.state_dict()[key].to(dtype)) for key, value in plain.state_dict().items())


@torch.no_grad()
def test_frozen_norms_are_known_by_what_their_name_ends_in():
    kind = type("DetrFrozenBatchNorm2d", (Frozen,), {})  # as DETR's ports have it
    model, x = ready(nn.Sequential(conv(), kind(small=1e-5))), image(1, 6, 7, 6)
    plain = fuse(model)
    assert norms_in(model) == ["1"] and norms_in(plain) == []
    assert_close(plain(x), model(x))


@pytest.mark.parametrize("change", [torch.relu, lambda y: y - y.mean(), lambda y: y[..., :1]])
@torch.no_grad()
def test_a_frozen_norm_that_does_something_else_stays(change):
    model, x = ready(nn.Sequential(conv(), Frozen(change), conv_bn(6, 6, 1))), image(1, 6, 7, 6)
    plain = fuse(model)
    assert norms_in(plain) == ["1"]
    assert_close(plain(x), model(x))
    assert survey(model, True).left == {"1": "the forward of FrozenBatchNorm2d is not a scale and shift per channel"}


class Log:
    """Something that cannot be copied, as a lock, an open file or a connection cannot."""

    def __init__(self):
        self.lock, self.seen = threading.Lock(), []

    def note(self, module, args, y):
        with self.lock:
            self.seen.append(type(module))


class Counter:
    """Something that can: a copy of the model has a copy of it."""

    def __init__(self, module):
        self.module, self.seen = module, 0

    def note(self, module, args, y):
        self.seen += 1


@pytest.mark.parametrize("run", [fuse, lambda model: fuse(model, inplace=True)])
@torch.no_grad()
def test_hooks_that_cannot_be_copied_go_on_as_they_are(run):
    model, x, log = ready(nn.Sequential(RepVGGBlock(6, 6), nn.ReLU(), conv_bn(6, 6, 1))), image(1, 6, 7, 6), Log()
    for part in (model, model[0], model[1], model[2].bn):
        part.register_forward_hook(log.note)
    plain = run(model)
    plain(x)
    assert log.seen == [RepVGGBlock, nn.ReLU, nn.Identity, nn.Sequential]


@torch.no_grad()
def test_hooks_that_can_be_copied_are():
    model, x = ready(nn.Sequential(conv_bn(6, 6, 1))), image(1, 6, 7, 6)
    counter = Counter(model[0].bn)
    model[0].bn.register_forward_hook(counter.note)
    plain = fuse(model)
    plain(x)
    copied = next(iter(plain[0].bn._forward_hooks.values())).__self__
    assert (counter.seen, copied.seen) == (0, 1)
    assert copied.module is plain[0].bn and counter.module is model[0].bn


class Activated(nn.Conv2d):
    """A convolution and, what a kernel cannot say, an activation."""

    change = staticmethod(F.relu)

    def forward(self, x):
        return self.change(super().forward(x)) if float(x.sum()) != 0 else x


@pytest.fixture
def activated():
    kernel_of.register(Activated)(lambda module: Kernel(module.weight, module.bias))
    yield
    del _REGISTERED[Activated]  # as if nobody had


@pytest.mark.usefixtures("activated")
class TestRegisteredTypes:
    @pytest.mark.parametrize("change", [F.relu, F.relu6, F.silu, lambda y: y.round(), lambda y: y[..., 1:]])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_a_kernel_that_is_not_the_forward_is_refused_by_name(self, change, dtype, monkeypatch):
        monkeypatch.setattr(Activated, "change", staticmethod(change))
        model = ready(nn.Sequential(conv_bn(6, 6, 1), Activated(6, 4, 3, 2, 1))).to(dtype)
        with pytest.raises(
            FuseError, match=r"1: Activated: its forward differs from the kernel .*inputs of shape \(3, 6, 9"
        ):
            fuse(model)
        with pytest.raises(FuseError, match="cannot fuse the model:\n  1: Activated"):
            fuse(model[1:])  # which is nothing else
        report = inspect_model(model)
        assert not report.ready and report.problems["1"] == survey(model, True).left["1"]

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_a_kernel_that_is_the_forward_is_taken(self, dtype, monkeypatch):
        monkeypatch.setattr(Activated, "change", staticmethod(lambda y: y))
        model = ready(nn.Sequential(Activated(6, 4, (3, 1), 2, 1, padding_mode="reflect"))).to(dtype)
        assert type(fuse(model)[0]) is nn.Conv2d

    def test_one_that_computes_in_single_precision_is_taken(self, monkeypatch):
        monkeypatch.setattr(Activated, "change", staticmethod(lambda y: y.float().double()))
        assert type(fuse(ready(nn.Sequential(Activated(6, 4, 3))))[0]) is nn.Conv2d

    def test_its_hooks_are_not_run(self, monkeypatch):
        monkeypatch.setattr(Activated, "change", staticmethod(lambda y: y))
        model, seen = ready(nn.Sequential(Activated(6, 4, 3))), []
        model[0].register_forward_hook(lambda *_: seen.append(1))
        fuse(model)
        assert seen == [] and model[0]._forward_hooks

    def test_inside_of_another_block(self):
        block = Branches(lambda m, x: m.a(x) + m.b(x))
        block.a = Activated(6, 6, 3, 1, 1)
        model = ready(nn.Sequential(block))
        with pytest.raises(FuseError, match="0.a: Activated: its forward differs from the kernel that is registered"):
            fuse(model)

    def test_on_the_meta_device_there_is_nothing_to_run(self):
        model = ready(nn.Sequential(Activated(6, 4, 3))).to("meta")
        assert fuse(model)[0].weight.is_meta
