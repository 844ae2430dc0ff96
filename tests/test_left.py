"""What stays: named, with the reason, by `inspect_model` and by `fuse(strict=True)`; and what is asked to stay."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from helpers import assert_close, randomise
from test_timm import statistics
from timm.layers import BatchNormAct2d
from timm.models import byobnet
from torch import nn

import reparam.fusing._find
from reparam import ECB, FuseError, RepSRBlock, RepVGGBlock, fuse, inspect_model, swap_convs, verify
from reparam.fusing._foreign import blocks

X = torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(0)).double()


class Timm(nn.Module):
    """Two blocks of timm, and a convolution with a norm."""

    def __init__(self):
        super().__init__()
        self.stem = byobnet.RepVggBlock(3, 6)
        self.body = byobnet.RepVggBlock(6, 6)
        self.head = nn.Sequential(nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x):
        return self.head(self.body(self.stem(x)))


def timm_net() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Timm().double(), 0).eval()


@pytest.fixture
def odd(monkeypatch):
    """As if the survey had left a part."""
    found = reparam.fusing._find.survey
    left = {"head.0": "it uses torch.stack, which is not known to be linear"}
    monkeypatch.setattr(reparam.fusing._find, "survey", lambda *args: replace(found(*args), find_left=lambda: left))


class TestWhatWasLeft:
    def test_it_is_listed_with_the_reason(self, odd):
        report = inspect_model(timm_net())
        assert report.left == {"head.0": "it uses torch.stack, which is not known to be linear"}
        assert "head.0 stays: it uses torch.stack" in str(report)

    def test_strict_refuses_and_changes_nothing(self, odd):
        model = timm_net()
        keys = list(model.state_dict())
        for inplace in (False, True):
            with pytest.raises(FuseError, match=r"cannot fuse all of the model .*\n  head.0: it uses torch.stack"):
                fuse(model, strict=True, inplace=inplace)
        assert list(model.state_dict()) == keys
        fuse(model)
        fuse(model, strict=True, skip="head")  # asked for

    def test_nothing_to_fuse_says_what_stays(self, odd):
        model = nn.Sequential()
        model.head = nn.Sequential(nn.Conv2d(3, 3, 3))
        with pytest.raises(
            FuseError, match=r"found no block to fuse in Sequential.*What stays, and why:\n  head.0: it"
        ):
            fuse(model)

    def test_a_model_that_is_fused_whole_has_nothing_left(self):
        plain = fuse(timm_net(), strict=True)
        report = inspect_model(plain)
        assert not (report.left or report.blocks or report.batch_norms)

    def test_what_stands_in_two_places_is_looked_at_once(self, monkeypatch):
        looked_at, look = [], blocks._look_at
        monkeypatch.setattr(blocks, "_look_at", lambda module, *args: looked_at.append(module) or look(module, *args))
        model = timm_net()
        model.again = nn.Sequential(model.body, model.head, RepVGGBlock(6))
        assert list(blocks.find_foreign(model)[0]) == ["stem", "body"]
        assert len(set(map(id, looked_at))) == len(looked_at)
        assert model.again[2] in looked_at and not any(part in looked_at for part in model.again[2].branches)

    def test_norms_beside_blocks_of_ours_stay_unless_asked_for(self):
        model = randomise(nn.Sequential(ECB(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double(), 0).eval()
        assert list(inspect_model(model).left) == ["2"]
        with pytest.raises(FuseError, match=r"\n  2: batch norms outside blocks stay .* batch_norms=True merges"):
            fuse(model, strict=True)
        assert type(fuse(model, strict=True, batch_norms=False)[2]) is nn.BatchNorm2d
        assert type(fuse(model, strict=True, batch_norms=True, example=X)[2]) is nn.Identity
        assert not inspect_model(nn.Sequential(QuietBlock())).left


class QuietBlock(RepVGGBlock):
    """Its norms are inside of a block."""

    def __init__(self):
        super().__init__(4)


SKIPS = {
    "stem": ("stem",),
    "st*": ("stem",),
    "stem.conv_kxk.bn": ("stem",),
    ("stem", "head.1"): ("stem", "head"),
    "head": ("head",),
    "head.0": ("head",),
    byobnet.RepVggBlock: ("stem", "body"),
    (lambda name, module: name == "body"): ("body",),
}


class TestSkip:
    @pytest.mark.parametrize("skip", SKIPS, ids=lambda skip: getattr(skip, "__name__", str(skip)))
    def test_what_is_named_stays_as_it_is_and_the_rest_goes_on(self, skip):
        model = timm_net()
        kept = SKIPS[skip]
        plain = fuse(model, skip=skip, example=X)
        for name in ("stem", "body", "head"):
            same = list(getattr(plain, name).state_dict()) == list(getattr(model, name).state_dict())
            assert same == (name in kept), name
        assert_close(plain(X), model(X))
        assert verify(model, plain, X).ok

    def test_blocks_of_ours(self):
        model = randomise(nn.Sequential(RepSRBlock(3), ECB(3), nn.Sequential(RepVGGBlock(3))).double(), 0).eval()
        for skip in ("0", "0.branches.1", RepSRBlock, ["0*"]):
            assert [type(m) for m in fuse(model, skip=skip, example=X)[:2]] == [RepSRBlock, nn.Conv2d]

    def test_norms_that_hang_together_stay_together(self):
        """The second norm would go past the first, into a layer that stays as it is."""
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        )
        randomise(model.double(), 0).eval()
        for skip in ("0", "1", "2"):
            plain = fuse(model, skip=skip, example=X)
            assert [type(layer) for layer in plain] == [*map(type, model[:4]), nn.Identity]

    def test_if_all_stays_there_is_nothing_to_fuse(self):
        with pytest.raises(FuseError, match="found no block to fuse"):
            fuse(timm_net(), skip=nn.BatchNorm2d)

    def test_a_name_that_is_nowhere(self):
        with pytest.raises(FuseError, match="skip='haed' matches no module of Timm"):
            fuse(timm_net(), skip="haed")


class TestAfterSwapping:
    def test_the_original_class_loads_the_result(self):
        model = timm_net()
        before, keys = model(X), list(model.state_dict())
        swap_convs(model, RepSRBlock, match="stem.conv_kxk.conv", calibrate=[torch.rand(2, 3, 9, 8).double()])
        for changed in (model, copy.deepcopy(model), nn.Sequential(model)):
            plain = fuse(changed, example=X)
            inner = plain[0] if isinstance(plain, nn.Sequential) else plain
            assert list(inner.state_dict()) == keys
            loaded = Timm().double().eval()
            loaded.load_state_dict(inner.state_dict(), strict=True)
            assert_close(loaded(X), before)

    def test_the_rest_may_be_asked_for(self):
        model = timm_net()
        before = model(X)
        swap_convs(model, RepSRBlock, match="stem.conv_kxk.conv", calibrate=[torch.rand(2, 3, 9, 8).double()])
        left = inspect_model(model).left
        assert re.match("it is not a block of this library, .*foreign=True fuses", left["body"]) and "head.1" in left
        with pytest.raises(FuseError, match=r"\n  body: it is not a block of"):
            fuse(model, strict=True)
        plain = fuse(model, foreign=True, batch_norms=True, example=X)
        assert type(plain.body.reparam_conv) is nn.Conv2d and type(plain.head[1]) is nn.Identity
        assert_close(plain(X), before)

    def test_foreign_blocks_beside_ours_that_nobody_swapped_are_fused(self):
        model = randomise(nn.Sequential(ECB(3), byobnet.RepVggBlock(3, 3)).double(), 0).eval()
        assert type(fuse(model, example=X)[1].reparam_conv) is nn.Conv2d
        assert hasattr(fuse(model, foreign=False)[1], "conv_kxk")


def test_everything_that_was_trainable_is_and_nothing_else():
    """Of blocks of timm, layers that take norms in, and norms with an activation."""
    model = statistics(byobnet.repvgg_a0(num_classes=3)).eval()
    plain = fuse(model)
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in plain.parameters() if p.requires_grad)
    assert all(p.is_leaf for p in plain.parameters())
    frozen = fuse(model.requires_grad_(False))
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("frozen", ["stem", "body", "head"])
def test_what_was_frozen_stays_frozen(frozen):
    model = timm_net()
    getattr(model, frozen).requires_grad_(False)
    plain = fuse(model)
    for name, parameter in plain.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name


def with_activations() -> nn.Module:
    """Of norms and of blocks, and with numbers of their own."""
    norm, ours = BatchNormAct2d(4, act_layer=nn.PReLU), nn.Sequential(ECB(4), nn.PReLU(4))
    return randomise(nn.Sequential(nn.Conv2d(3, 4, 3), norm, ours).double(), 0).eval()


@pytest.mark.parametrize(
    "build",
    [timm_net, lambda: nn.Sequential(timm_net(), randomise(ECB(4).double(), 0).eval()), with_activations],
)
def test_a_fused_copy_shares_nothing_with_its_original(build):
    model = build()
    skips = [{"skip": name} for name, _ in model.named_modules() if name.endswith("body")]
    for options in ({}, *skips, {"batch_norms": True}, {"example": X}):
        plain = fuse(model, **options)
        assert not {id(m) for m in model.modules()} & {id(m) for m in plain.modules()}
        theirs = {t.untyped_storage().data_ptr() for t in model.state_dict().values() if t.numel()}
        assert not theirs & {t.untyped_storage().data_ptr() for t in plain.state_dict().values() if t.numel()}


@pytest.mark.parametrize("batch_norms", [False, True])
def test_what_became_of_it_is_noted_so_that_fusing_again_is_no_mistake(batch_norms):
    model = timm_net() if not batch_norms else randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 0).eval()
    plain = fuse(model, batch_norms=batch_norms)
    made = {m.fused_from for m in plain.modules() if "fused_from" in vars(m)}
    assert made == ({"Conv2d"} if batch_norms else {"RepVggBlock"})
    again = fuse(plain, batch_norms=False)
    assert all(map(torch.equal, again.state_dict().values(), plain.state_dict().values()))


class Counter:
    """A hook with a state of its own, as profilers and quantizers have."""

    def __init__(self):
        self.calls = []

    def __call__(self, module, *args, **kwargs):
        self.calls.append((type(module), len(args)))


class TestHooks:
    def test_each_copy_has_its_own(self):
        model, hook = timm_net(), Counter()
        model.body.register_forward_hook(hook)
        ours = randomise(nn.Sequential(ECB(3)).double(), 0).eval()
        ours[0].register_forward_hook(hook)
        for net in (model, ours):
            plain = fuse(net)
            plain(X)
            assert not hook.calls, "the original's hook was called by the copy"
            (own,) = [h for m in plain.modules() for h in m._forward_hooks.values()]
            assert len(own.calls) == 1
            net(X)
            assert len(hook.calls) == 1
            hook.calls.clear()

    @pytest.mark.parametrize("inplace", [False, True])
    def test_keywords_are_passed_and_failures_are_told(self, inplace):
        model, seen = randomise(nn.Sequential(ECB(3)).double(), 0).eval(), []
        model[0].register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
        model[0].register_forward_hook(lambda module, args, kwargs, y: seen.append(kwargs), with_kwargs=True)
        model[0].register_forward_hook(lambda module, args, y: seen.append("always"), always_call=True)
        plain = fuse(model, inplace=inplace)
        plain[0](input=X)
        assert [*map(type, seen)] == [dict, dict, str] and all("input" in given for given in seen[:2])
        seen.clear()
        with pytest.raises(RuntimeError, match="to have 3 channels"):
            plain[0](input=X[:, :1])
        assert seen[-1] == "always"
