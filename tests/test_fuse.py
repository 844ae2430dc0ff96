"""Fusing: everything that should be kept is kept, everything that cannot be fused is refused by name."""

import copy
import re

import pytest
import torch
from helpers import assert_close, randomise
from torch import nn
from torch.optim.swa_utils import AveragedModel

from reparam import ECB, FuseError, RepSRBlock, RepVGGBlock, freeze_bn_stats, fuse, fused, inspect_model, verify
from reparam.branches import Branch


class Zoo(nn.Module):
    """Blocks in every kind of container, one of them used twice, one in a plain list beside its registration."""

    def __init__(self):
        super().__init__()
        self.first = RepVGGBlock(3, 6)
        self.items = nn.ModuleList([RepSRBlock(6), nn.PReLU(6)])
        self.by_name = nn.ModuleDict({"edge": ECB(6), "act": nn.ReLU()})
        self.free = nn.ParameterList([nn.Parameter(torch.ones(6, 1, 1))])
        self.again = self.items[0]
        self.order = [self.first, self.items[0]]

    def forward(self, x):
        for layer in self.order:
            x = layer(x)
        x = self.items[1](x) * self.free[0]
        return self.again(self.by_name["edge"](x))


def zoo() -> Zoo:
    torch.manual_seed(0)
    return randomise(Zoo().double(), 0).eval()


def blocks(model):
    return [m for m in model.modules() if isinstance(m, Branch)]


def test_a_fused_copy_is_the_same_function_and_the_model_is_untouched():
    model, x = zoo(), torch.randn(2, 3, 7, 8).double()
    before = copy.deepcopy(model.state_dict())
    y = model(x)
    plain = fuse(model)
    assert_close(plain(x), y)
    assert not blocks(plain)
    assert len(blocks(model)) > 3
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert_close(model(x), y)
    assert plain.again is plain.items[0] is plain.order[1]
    assert plain.order[0] is plain.first
    assert type(plain.first) is nn.Conv2d


def test_in_place():
    model, x = zoo(), torch.randn(2, 3, 7, 8).double()
    y = model(x)
    model.order = []  # a plain list is beyond the reach of an in-place change
    assert fuse(model, inplace=True) is model
    model.order = [model.first, model.items[0]]
    assert not blocks(model)
    assert model.again is model.items[0]
    assert_close(model(x), y)


def test_fusing_again_gives_a_copy():
    plain = fuse(zoo())
    again = fuse(plain)
    assert again is not plain
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), plain.state_dict().values()))
    assert type(fuse(fuse(randomise(RepSRBlock(4), 0).eval()))) is nn.Conv2d


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_the_root_may_be_a_block(ndim):
    block = randomise(RepVGGBlock(4, ndim=ndim).double(), 0).eval()
    x = torch.randn(2, 4, *(5, 6, 7)[:ndim]).double()
    assert_close(fuse(block)(x), block(x))


@pytest.mark.parametrize(
    "wrap",
    [
        AveragedModel,
        nn.DataParallel,
        lambda m: torch.compile(m, backend="eager"),
        lambda m: AveragedModel(nn.DataParallel(m)),
    ],
)
def test_wrappers_are_taken_off(wrap):
    model = zoo()
    wrapped = wrap(model)
    assert type(fuse(wrapped)) is Zoo
    with pytest.raises(FuseError, match="in place, because the wrapper"):
        fuse(wrapped, inplace=True)
    assert len(blocks(model)) > 3


def test_what_each_convolution_keeps():
    model = zoo().float().to(memory_format=torch.channels_last)
    for parameter in model.by_name["edge"].parameters():
        parameter.requires_grad_(False)
    model.items.train()
    freeze_bn_stats(model.items)
    seen = []
    model.first.register_forward_hook(lambda module, args, y: seen.append(type(module)))
    plain = fuse(model)
    assert plain.first.weight.is_contiguous(memory_format=torch.channels_last)
    assert plain.first.weight.requires_grad and plain.first.bias.requires_grad
    assert not plain.by_name["edge"].weight.requires_grad
    assert not plain.first.training and plain.items[0].training
    plain(torch.randn(1, 3, 5, 5))
    assert seen == [nn.Conv2d]
    model(torch.randn(1, 3, 5, 5))
    assert seen == [nn.Conv2d, RepVGGBlock]


def test_hooks_stay_in_place():
    model = zoo()
    seen = []
    handle = model.first.register_forward_pre_hook(lambda module, args: seen.append(type(module)))
    fuse(model, inplace=True)
    model.first(torch.randn(1, 3, 5, 5).double())
    assert seen == [nn.Conv2d]
    assert handle.id in model.first._forward_pre_hooks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_kept_and_rounded_once(dtype):
    block = randomise(RepSRBlock(4).to(dtype), 0).eval()
    weight, bias = copy.deepcopy(block).double().kernel()
    conv = fuse(block)
    assert torch.equal(conv.weight, weight.to(dtype))
    assert torch.equal(conv.bias, bias.to(dtype))


def test_a_bn_that_stayed_in_float_is_fine():
    model = randomise(nn.Sequential(RepSRBlock(4)), 0).eval().bfloat16()
    for bn in (model[0].branches[1].norm, model[0].branches[2].norm):
        bn.float()
    assert fuse(model)[0].weight.dtype == torch.bfloat16


def test_the_meta_device():
    model = randomise(nn.Sequential(RepSRBlock(4)), 0).eval().to("meta")
    assert fuse(model)[0].weight.is_meta


class TestRefusals:
    def test_batch_statistics(self):
        model = zoo().train()
        before = copy.deepcopy(model)
        match = r"first\.branches\.0\.norm: it uses batch statistics \(train mode\): call model\.eval\(\) or freeze_bn"
        for inplace in (False, True):
            with pytest.raises(FuseError, match=match):
                fuse(model, inplace=inplace)
        assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]

    def test_every_norm_is_named(self):
        with pytest.raises(FuseError) as caught:
            fuse(zoo().train())
        assert len(re.findall(r"^  .*norm: ", str(caught.value), re.MULTILINE)) == 4

    def test_never_saw_a_batch(self):
        model = nn.Sequential(RepSRBlock(4)).eval()
        with pytest.raises(FuseError, match=r"0\.branches\.1\.norm: it never saw a batch \(num_batches_tracked=0\)"):
            fuse(model)

    def test_an_ema_of_parameters_only(self):
        """The copy that BasicSR keeps: parameters averaged, buffers forgotten."""
        net = nn.Sequential(RepSRBlock(4))
        ema = copy.deepcopy(net)
        net(torch.randn(2, 4, 5, 5))
        for average, new in zip(ema.parameters(), net.parameters()):
            average.data.lerp_(new.data, 0.1)
        fuse(net.eval())
        with pytest.raises(FuseError, match="copy the buffers as well as the parameters"):
            fuse(ema.eval())

    def test_no_running_statistics(self):
        block = RepSRBlock(4, bn=lambda c: nn.BatchNorm2d(c, track_running_stats=False)).eval()
        with pytest.raises(FuseError, match="keeps no running statistics"):
            fuse(block)

    def test_no_block(self):
        with pytest.raises(FuseError, match="found no block to fuse in Sequential"):
            fuse(nn.Sequential(nn.Conv2d(3, 3, 3)))

    def test_the_root_in_place(self):
        block = randomise(RepSRBlock(4), 0).eval()
        with pytest.raises(FuseError, match=r"itself a block \(RepSRBlock\)"):
            fuse(block, inplace=True)

    def test_to_conv_names_the_norm(self):
        with pytest.raises(FuseError, match=r"RepSRBlock: 'branches\.1\.norm': it uses batch statistics"):
            RepSRBlock(4).to_conv()


def test_fused_in_the_middle_of_training():
    model = zoo().train()
    x = torch.randn(2, 3, 7, 8).double()
    modes = [m.training for m in model.modules()]
    with pytest.warns(DeprecationWarning, match=r"use fuse\(model.eval\(\)\)") as told:
        plain = fused(model).__enter__()
    assert told[0].filename == __file__
    assert not blocks(plain) and not plain.training
    y = plain(x)
    assert [m.training for m in model.modules()] == modes
    assert_close(y, model.eval()(x))
    assert_close(fuse(model.eval())(x), y)
    assert [m.training for m in model.train().modules()] == modes


def test_timm_fuses_models_made_of_blocks():
    from timm.models import reparameterize_model

    model, x = nn.Sequential(zoo().first, nn.ReLU(), zoo().items), torch.randn(2, 3, 7, 8).double()
    model = nn.Sequential(model[0], model[1], *model[2])
    plain = reparameterize_model(model)
    assert not blocks(plain)
    assert_close(plain(x), model(x))


class TestInspect:
    def test_it_says_what_is_there(self):
        model = zoo()
        freeze_bn_stats(model.items)
        model.train()
        first, again, edge = inspect_model(model).blocks
        assert (first.name, again.name, edge.name) == ("first", "items.0", "by_name.edge")
        assert (first.kind, first.frozen, first.ready) == ("RepVGGBlock", False, False)
        assert (again.kind, again.frozen, again.ready) == ("RepSRBlock", True, True)
        assert (edge.frozen, edge.ready) == (None, True)
        assert list(first.problems) == ["first.branches.0.norm", "first.branches.1.norm"]
        assert not inspect_model(model).ready

    def test_the_parameter_counts_are_those_of_the_fused_model(self):
        report = inspect_model(zoo())
        assert report.ready
        assert report.fused_parameters == sum(p.numel() for p in fuse(zoo()).parameters())

    def test_it_prints_a_table(self):
        text = str(inspect_model(zoo().train()))
        assert "multiply-adds" not in text, "an empty column"
        assert re.search(r"^by_name.edge +ECB +6 -> 6, 3x3 +\S+ +\S+ +none +ready$", text, re.MULTILINE)
        assert "NOT READY" in text and "first.branches.0.norm: it uses batch statistics" in text

    def test_a_model_without_blocks(self):
        report = inspect_model(nn.ReLU())
        assert not report.ready and str(report).startswith("0 blocks, 0 parameters")


class TestVerify:
    def test_a_good_fusion_is_within_rounding(self):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            model = zoo().to(dtype)
            report = verify(model, fuse(model), torch.randn(2, 3, 9, 8).to(dtype))
            assert report.ok, report
            assert [block.name for block in report.blocks] == ["first", "items.0", "by_name.edge"]
            assert 0 < report.total.max_abs <= 10 * report.total.noise_floor

    def test_a_wrong_fusion_is_seen_where_it_is(self):
        model = zoo().float()
        plain = fuse(model)
        with torch.no_grad():
            plain.items[0].weight[1, 2, 0, 1] += 1e-3
        report = verify(model, plain, torch.randn(2, 3, 9, 8))
        assert [block.ok for block in report.blocks] == [True, False, True]
        assert not report.total.ok and not report.ok
        assert re.search(r"^items.0 .* LARGER THAN ROUNDING$", str(report), re.MULTILINE)

    def test_train_mode_is_looked_at_as_eval_and_left_alone(self):
        model = zoo()
        plain = fuse(model)
        model.train()
        before = copy.deepcopy(model.state_dict())
        assert verify(model, plain, torch.randn(2, 3, 9, 8).double()).ok
        assert model.training
        assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))

    def test_a_block_that_is_not_reached_is_not_called_fine(self):
        model = zoo()
        model.order = [model.order[0]]
        model.items[0] = nn.Identity()
        model.again = nn.Identity()
        model.spare = randomise(RepSRBlock(3).double(), 0).eval()
        report = verify(model, fuse(model), torch.randn(1, 3, 6, 6).double())
        assert report.unreached == ("spare",) and not report.ok
        assert "not reached" in str(report)

    def test_the_two_models_are_given_by_position(self):
        class Named(nn.Module):
            def __init__(self):
                super().__init__()
                self.block = ECB(3)

            def forward(self, model, plain):
                return self.block(model) + plain

        model, x = Named(), torch.randn(1, 3, 5, 5)
        assert verify(model, fuse(model), model=x, plain=1).ok
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'plain'"):
            verify(model, fused=fuse(model), model=x)

    def test_outputs_may_be_nested(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.block = ECB(3)

            def forward(self, x, factor):
                return {"y": self.block(x), "z": [factor * x]}

        model = Two()
        assert verify(model, fuse(model), torch.randn(1, 3, 5, 5), 2).ok

    def test_no_block(self):
        with pytest.raises(FuseError, match="found no block to verify in ReLU"):
            verify(nn.ReLU(), nn.ReLU(), torch.zeros(1))

    def test_nothing_fused(self):
        with pytest.raises(FuseError, match="nothing was fused in Zoo; pass the unfused model first"):
            verify(zoo(), zoo(), torch.zeros(1, 3, 5, 5).double())

    def test_what_was_skipped_is_named(self):
        model = zoo()
        report = verify(model, fuse(model, skip="by_name.*"), torch.randn(1, 3, 6, 6).double())
        assert (
            report.ok
            and report.left == ("by_name.edge",)
            and re.search(r"^by_name.edge +not fused$", str(report), re.MULTILINE)
        )

    def test_no_partner(self):
        with pytest.raises(FuseError, match="a module at 'first', but found nothing"):
            verify(zoo(), nn.ReLU(), torch.zeros(1, 3, 5, 5).double())
