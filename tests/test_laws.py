"""Laws of what surrounds a block, each of which a small change of the code once broke without a test that saw it."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from helpers import assert_close, image, randomise
from torch import nn

from reparam import (
    ECBSR,
    BNFreezeSchedule,
    CheckpointError,
    ConvSpec,
    ExpandSqueezeBranch,
    OptionError,
    ReparamBlock,
    RepSR,
    RepSRBlock,
    SpecError,
    StatisticsError,
    bn_gap,
    create_model,
    freeze_bn_stats,
    recalibrate_bn_stats,
    save_checkpoint,
    swap_convs,
    unfreeze_bn_stats,
)
from reparam.bn._norm import norms
from reparam.folding.moments import _grid_for, _remembered_grid

NETWORKS = [
    "plain_m1c4_x2",
    "repsr_m1c4_x2",
    "ecbsr_m1c4_x2",
    "repvggsr_m1c4_x2",
    "qarepvggsr_m1c4_x2",
    "collapsiblesr_m1c4_x2",
    "sesr_m3_x2",
    "edsr_m1c4_x2",
]


class TestOnMeta:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_networks_built_on_meta_and_loaded_are_the_same_function(self, name):
        options = {"block": RepSRBlock} if name.startswith("edsr") else {}
        net = randomise(create_model(name, **options), 0).eval()
        x = torch.rand(1, net.colors, 9, 8)
        with torch.device("meta"):
            assigned, emptied = create_model(name, **options), create_model(name, **options)
        assigned.load_state_dict(copy.deepcopy(net.state_dict()), strict=True, assign=True)
        emptied.to_empty(device="cpu")
        for tensor in [*emptied.parameters(), *emptied.buffers()]:
            tensor.data.fill_(float("nan") if tensor.is_floating_point() else 77)
        emptied.load_state_dict(net.state_dict(), strict=True)
        for loaded in (assigned.eval(), emptied.eval()):
            assert torch.equal(loaded(x), net(x))

    def test_assigned_weights_of_another_dtype_are_followed(self):
        net = randomise(RepSRBlock(3), 0).eval().bfloat16()
        fresh = RepSRBlock(3).eval()
        fresh.load_state_dict(net.state_dict(), assign=True)
        assert fresh.to_conv().weight.dtype == torch.bfloat16
        assert torch.equal(fresh(torch.ones(1, 3, 5, 5).bfloat16()), net(torch.ones(1, 3, 5, 5).bfloat16()))


class Strange(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) ** 2


def of_object(bn):
    bn.forward = lambda x: x


class TestBatchNormsOfOnesOwn:
    """What is not batch norm is not turned into one."""

    def net(self, alter) -> nn.Module:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), Strange(4) if alter is None else nn.BatchNorm2d(4))
        net(torch.rand(2, 3, 9, 9))
        if alter is not None:
            alter(net[1])
        return net

    @pytest.mark.parametrize(
        ("alter", "why"),
        [
            (None, "Strange has a forward of its own"),
            (of_object, "the forward of this BatchNorm2d was replaced on the object"),
            (lambda bn: bn.add_module("observer", nn.ReLU()), r"this BatchNorm2d holds modules \(observer\)"),
            (lambda bn: nn.utils.parametrize.register_parametrization(bn, "weight", nn.Softplus()), "is computed"),
        ],
    )
    def test_they_are_refused_by_name(self, alter, why):
        net, x = self.net(alter), torch.rand(2, 3, 9, 9)
        kind, before = type(net[1]), net.eval()(x)
        for what, do in (
            ("freeze", lambda: freeze_bn_stats(net)),
            ("recalibrate", lambda: recalibrate_bn_stats(net, [x])),
            ("measure the gap of", lambda: bn_gap(net, x)),
            ("freeze", lambda: BNFreezeSchedule(net, 10)),
        ):
            with pytest.raises(StatisticsError, match=f"cannot {what} batch norm '1': {why}|parametrizations"):
                do()
            assert type(net[1]) is kind
            assert torch.equal(net(x), before)
        assert unfreeze_bn_stats(net) == []

    def test_those_of_timm_that_are_known(self):
        layers = pytest.importorskip("timm.layers")
        net = nn.Sequential(layers.BatchNormAct2d(4), layers.SyncBatchNormAct(4))
        for _, bn in norms(net):
            bn.num_batches_tracked.fill_(1)
        assert freeze_bn_stats(net) == ["0", "1"] and unfreeze_bn_stats(net) == ["0", "1"]
        split = layers.SplitBatchNorm2d(4)  # of its own statistics for parts of a batch
        with pytest.raises(StatisticsError, match="SplitBatchNorm2d has a forward of its own"):
            freeze_bn_stats(split)


class TestArguments:
    def test_integers_of_any_kind(self):
        spec = ConvSpec(
            np.int64(4), torch.tensor(8), [np.int32(3), 5], np.array([1, 2]), (np.uint8(1), 2), groups=np.int64(2)
        )
        assert spec == ConvSpec(4, 8, (3, 5), (1, 2), (1, 2), groups=2)
        assert all(type(n) is int for n in (spec.in_channels, spec.out_channels, spec.groups, *spec.kernel_size))
        assert RepSRBlock(np.int64(4), bias=1)(torch.rand(2, 4, 6, 6)).shape == (2, 4, 6, 6)

    @pytest.mark.parametrize("bias", [1, 0, np.True_, np.False_, None])
    def test_a_bias_is_whatever_is_true(self, bias):
        assert RepSRBlock(4, bias=bias).spec.bias is bool(bias)

    @pytest.mark.parametrize(("name", "value"), [("kernel_size", 2.5), ("stride", (1, 2.0)), ("dilation", True)])
    def test_what_is_no_integer(self, name, value):
        with pytest.raises(SpecError, match=f"{name} must be one integer >= 1, or 2 of them, but got {name}="):
            ConvSpec(4, **{name: value})

    @pytest.mark.parametrize("name", ["bn", "sum_bn"])
    @pytest.mark.parametrize("choice", [None, 1, "batch"])
    def test_what_makes_no_batch_norm(self, name, choice):
        with pytest.raises(SpecError, match=f"bn must be True, False or a callable .*, but got bn={choice!r}"):
            RepSRBlock(4, **{name: choice})
        with pytest.raises(SpecError, match="bn must make a batch norm, but .* made a GroupNorm"):
            RepSRBlock(4, **{name: lambda channels: nn.GroupNorm(1, channels)})

    def test_an_unknown_option_is_named_with_those_that_exist(self):
        with pytest.raises(OptionError, match=r"RepSRBlock has no option 'pathz'; it takes in_channels, .*, paths"):
            RepSRBlock(3, 16, pathz=3)
        with pytest.raises(TypeError, match=r"RepSR has no option 'pathz'; .* of RepSRBlock: expansion, paths"):
            RepSR(pathz=3)
        with pytest.raises(OptionError, match="ECBSR has no option 'paths'"):
            create_model("ecbsr_m1c4_x2", paths=2)
        assert ECBSR(identity=None, padding_mode="reflect", fold=False) is not None

    def test_an_extra_state_that_is_no_tensor(self, tmp_path):
        class Extra(nn.Conv2d):
            def get_extra_state(self):
                return {"seen": 3}

        with pytest.raises(CheckpointError, match=r"0\._extra_state of Sequential \(get_extra_state\) holds a dict"):
            save_checkpoint(nn.Sequential(Extra(1, 1, 1)), tmp_path / "a.pth")
        assert not list(tmp_path.iterdir())


class TestWhatConvolutionsAreGiven:
    @pytest.mark.parametrize("weight", [True, False])
    @pytest.mark.parametrize("bias", [True, False])
    def test_build_conv_keeps_what_is_trained(self, weight, bias):
        conv = ConvSpec(2).build_conv(
            torch.zeros(2, 2, 3, 3).requires_grad_(weight), torch.zeros(2).requires_grad_(bias)
        )
        assert (conv.weight.requires_grad, conv.bias.requires_grad) == (weight, bias)

    def test_a_block_that_is_trained_in_part_gives_a_trained_convolution(self):
        block = randomise(RepSRBlock(3), 0).eval()
        block.branches[1].requires_grad_(False)
        assert all(p.requires_grad for p in block.to_conv().parameters())
        block.requires_grad_(False)
        assert not any(p.requires_grad for p in block.to_conv().parameters())

    def test_swapped_convolutions_stay_frozen_and_shared_biases_stay_shared(self):
        net = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(4)))
        net[0].requires_grad_(False)
        net[2].bias = net[3].bias
        report = swap_convs(net, RepSRBlock)
        assert report.swapped == ("0", "1") and set(report.skipped) == {"2", "3"}
        assert not any(p.requires_grad for p in net[0].parameters())
        assert all(p.requires_grad for p in net[1].parameters())

    def test_a_replaced_forward_is_not_swapped(self):
        net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
        net[0].forward = lambda x: x
        assert "was replaced on the object" in swap_convs(net, RepSRBlock).skipped["0"]


class TestTraining:
    @pytest.mark.parametrize("fold", [True, False])
    def test_statistics_that_are_no_longer_tracked_stay(self, fold):
        block, x = RepSRBlock(3, fold=fold), torch.rand(4, 3, 16, 16)
        block(x)
        for _, bn in norms(block):
            bn.track_running_stats = False
        before, twin = copy.deepcopy(block.state_dict()), copy.deepcopy(block)
        twin.fold = not fold
        assert_close(block(x), twin(x))
        for key, value in block.state_dict().items():
            assert torch.equal(value, before[key]), key

    @pytest.mark.parametrize("how", ["frozen", "eval", "eps", "sync"])
    def test_paths_of_other_statistics_are_not_stacked(self, how):
        path = partial(ExpandSqueezeBranch, bn=True)
        block = randomise(ReparamBlock(ConvSpec(3), [path, path], fold=False).double(), 0).train()
        if how == "frozen":
            freeze_bn_stats(block.branches[0])
        elif how == "eval":
            block.branches[0].eval()
        elif how == "eps":
            block.branches[0].norm.eps = 0.1
        else:  # which differs where several processes train
            nn.SyncBatchNorm.convert_sync_batchnorm(block.branches[0])
        assert len(block._parts()) == 2
        x, literal = image(block.spec, 1, (7, 8)), copy.deepcopy(block)
        assert_close(block(x), literal.branches[0](x) + literal.branches[1](x))

    @pytest.mark.parametrize("mode", ["batch", "frozen"])
    def test_without_a_bias_every_parameter_has_a_gradient_all_the_same(self, mode):
        """DDP waits for all of them."""
        block = RepSRBlock(3, bias=False, fold=True)
        block(torch.rand(4, 3, 16, 16))
        if mode == "frozen":
            freeze_bn_stats(block)
        block.zero_grad()
        block(torch.rand(4, 3, 16, 16)).sum().backward()
        assert all(p.grad is not None for p in block.parameters())

    @pytest.mark.parametrize("size", [(2, 4000), (4000, 2)])
    def test_a_large_kernel_on_a_narrow_image(self, size):
        block, x = randomise(RepSRBlock(8, kernel_size=7).double(), 0), torch.rand(2, 8, *size).double()
        twin = copy.deepcopy(block)
        twin.fold = False
        assert_close(block(x), twin(x), 1e-11)
        block.fold = True
        with pytest.raises(SpecError, match="at least half the kernel"):
            block(x)

    def test_weights_that_come_with_the_package_leave_random_numbers_to_the_user(self, monkeypatch):
        seeded = []
        monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
        drawn = []
        for seed in (1, 2):
            torch.default_generator.manual_seed(seed)
            create_model("repsr_m6c32_x2", pretrained=True)
            drawn.append(torch.rand(3))
        assert not torch.equal(*drawn) and not seeded


class TestRememberedGrids:
    def test_what_was_made_in_inference_mode_can_be_differentiated_twice(self):
        block, x = RepSRBlock(2, fold=True).double(), torch.rand(2, 2, 11, 13).double().requires_grad_()
        _remembered_grid.cache_clear()
        with torch.inference_mode():
            block(x)
        (first,) = torch.autograd.grad(block(x).pow(3).sum(), x, create_graph=True)
        first.square().sum().backward()
        assert bool(x.grad.isfinite().all())

    def test_many_sizes_in_turn_are_remembered(self):
        _remembered_grid.cache_clear()
        for _ in range(2):
            for height in range(5, 75):
                _grid_for(torch.empty(1, 1, height, 9), (3, 3))
        assert _remembered_grid.cache_info().hits == 70
