"""Freezing statistics: in place, the same Parameters, the affine goes on learning, and everything survives."""

import copy
import pickle

import pytest
import torch
from helpers import assert_close, randomise
from timm.layers import BatchNormAct2d, SyncBatchNormAct, convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, update_bn

from reparam import (
    FrozenStatsBN,
    RepSRBlock,
    StatisticsError,
    create_model,
    freeze_bn_stats,
    recalibrate_bn_stats,
    unfreeze_bn_stats,
)
from reparam.bn._norm import norms


def trained(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = create_model("repsr_m1c6_x2").double()
    for _ in range(3):
        net(torch.rand(2, 3, 8, 9).double())
    return net


def step(net, optimizer, seed):
    x = torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(seed)).double()
    loss = (net(x) - 0.3).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_a_running_adam_goes_on_as_if_bn_were_in_eval():
    frozen, reference = trained(), trained()
    optimizers = [torch.optim.Adam(net.parameters(), 1e-2) for net in (frozen, reference)]
    for seed in range(5):
        for net, optimizer in zip((frozen, reference), optimizers):
            step(net, optimizer, seed)
    parameters = list(frozen.parameters())
    statistics = [bn.running_mean.clone() for _, bn in norms(frozen)]
    freeze_bn_stats(frozen)
    for seed in range(5, 10):
        for _, bn in norms(reference):
            bn.eval()
        for net, optimizer in zip((frozen, reference), optimizers):
            step(net, optimizer, seed)
    assert all(ours is theirs for ours, theirs in zip(frozen.parameters(), parameters))
    for (name, ours), theirs in zip(frozen.state_dict().items(), reference.state_dict().values()):
        assert torch.equal(ours, theirs), name
    for (_, bn), before in zip(norms(frozen), statistics):
        assert torch.equal(bn.running_mean, before)
    moments = [optimizer.state_dict()["state"] for optimizer in optimizers]
    for ours, theirs in zip(moments[0].values(), moments[1].values()):
        assert torch.equal(ours["exp_avg_sq"], theirs["exp_avg_sq"])
        assert ours["step"] == 10


def test_the_affine_learns_while_the_statistics_stay():
    net = trained()
    freeze_bn_stats(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    before = copy.deepcopy(net.state_dict())
    step(net, optimizer, 0)
    bn_names = [name for name, _ in norms(net)]
    for name in bn_names:
        after = net.state_dict()
        assert not torch.equal(after[f"{name}.weight"], before[f"{name}.weight"])
        assert torch.equal(after[f"{name}.running_var"], before[f"{name}.running_var"])
        assert torch.equal(after[f"{name}.num_batches_tracked"], before[f"{name}.num_batches_tracked"])


calls: list[type] = []


def note_call(module, args, output):
    """A hook that pickle can find."""
    calls.append(type(module))


KINDS = [
    (nn.BatchNorm1d(4), (3, 4, 6)),
    (nn.BatchNorm1d(4), (7, 4)),
    (nn.BatchNorm2d(4, affine=False), (3, 4, 5, 6)),
    (nn.BatchNorm2d(4, bias=False), (3, 4, 5, 6)),
    (nn.BatchNorm2d(4, eps=1e-2, momentum=None), (3, 4, 5, 6)),
    (nn.BatchNorm3d(4), (2, 4, 3, 4, 5)),
    (nn.SyncBatchNorm(4), (3, 4, 5, 6)),
    (BatchNormAct2d(4), (3, 4, 5, 6)),
    (BatchNormAct2d(4, act_layer=nn.PReLU), (3, 4, 5, 6)),
]


ORIGINALS = {type(bn): type(bn)(4) for bn, _ in KINDS}


@pytest.mark.parametrize(("bn", "shape"), KINDS, ids=[type(bn).__name__ + str(i) for i, (bn, _) in enumerate(KINDS)])
def test_every_kind(bn, shape):
    model = randomise(nn.Sequential(copy.deepcopy(bn)).double(), 0)
    bn, kind = model[0], type(model[0])
    keys = list(model.state_dict())
    x = torch.randn(shape).double()
    expected = model.eval()(x)
    calls.clear()
    bn.register_forward_hook(note_call)
    assert freeze_bn_stats(model.train()) == ["0"]
    assert model[0] is bn and isinstance(bn, FrozenStatsBN) and isinstance(bn, kind)
    assert kind.__name__ in str(bn)
    assert list(model.state_dict()) == keys
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(copied.train()(x), expected)
        assert_close(copied.eval()(x), expected)
    assert len(calls) == 6  # the hook came along each time
    loaded = nn.Sequential(copy.deepcopy(ORIGINALS[kind])).double()
    if bn.affine and bn.bias is not None:
        loaded.load_state_dict(model.state_dict(), strict=not list(bn.children()))
        assert torch.equal(loaded[0].running_var, bn.running_var)
    assert freeze_bn_stats(model) == ["0"]  # again: nothing changes
    assert unfreeze_bn_stats(model) == ["0"]
    assert type(model[0]) is kind and "_unfrozen_class" not in vars(bn)
    assert_close(model.eval()(x), expected)


def pickled_by_0_1_0(bn: nn.Module) -> nn.Module:
    """A frozen norm as version 0.1.0 wrote it: of one class for all, the former one among the attributes."""
    old = FrozenStatsBN.__new__(FrozenStatsBN)
    old.__setstate__({**vars(copy.deepcopy(bn)), "_unfrozen_class": type(bn)})
    return old


def test_pickles_of_version_0_1_0_count_as_what_they_were():
    bn = randomise(nn.Sequential(nn.BatchNorm2d(4)), 0)[0]
    old = pickled_by_0_1_0(bn)
    assert isinstance(old, nn.BatchNorm2d) and isinstance(pickle.loads(pickle.dumps(old)), FrozenStatsBN)
    assert unfreeze_bn_stats(old) == [""] and type(old) is nn.BatchNorm2d
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(old.eval()(x), bn.eval()(x))


def by_kind(net: nn.Module, kind: type) -> list[dict]:
    """The groups of parameters that training codes make."""
    inside = {id(p) for m in net.modules() if isinstance(m, kind) for p in m.parameters()}
    with_decay = [p for p in net.parameters() if id(p) not in inside]
    return [{"params": with_decay}, {"params": [p for p in net.parameters() if id(p) in inside], "weight_decay": 0.0}]


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, _BatchNorm])
def test_groups_of_parameters_are_the_same_in_a_run_that_is_resumed_frozen(kind):
    net = trained()
    before = torch.optim.Adam(by_kind(net, kind), 1e-3)
    sizes = [len(group["params"]) for group in before.param_groups]
    assert min(sizes) > 0
    step(net, before, 0)
    freeze_bn_stats(net)
    after = torch.optim.Adam(by_kind(net, kind), 1e-3)
    after.load_state_dict(before.state_dict())
    assert [len(group["params"]) for group in after.param_groups] == sizes


CONVERTERS = [nn.SyncBatchNorm.convert_sync_batchnorm, convert_sync_batchnorm]


@pytest.mark.parametrize("convert", CONVERTERS, ids=["torch", "timm"])
def test_a_conversion_to_sync_batch_norm_does_not_thaw(convert):
    act = BatchNormAct2d(3)
    net = randomise(
        nn.Sequential(RepSRBlock(3), nn.BatchNorm2d(3), *([act] if "timm" in convert.__module__ else [])), 0
    )
    x = torch.randn(2, 3, 6, 6)
    freeze_bn_stats(net)
    frozen = {name for name, bn in norms(net)}
    expected = net.train()(x)
    converted = convert(net)
    assert {name for name, bn in norms(converted) if isinstance(bn, FrozenStatsBN)} == frozen
    assert not any(type(bn).__name__ in ("FrozenStatsBatchNorm2d", "BatchNorm2d") for _, bn in norms(converted))
    assert_close(converted.train()(x), expected)
    assert set(unfreeze_bn_stats(converted)) == frozen
    assert all(isinstance(bn, (nn.SyncBatchNorm, SyncBatchNormAct)) for _, bn in norms(converted))
    converted[1] = nn.BatchNorm2d(3)  # another one, with statistics of its own, is not frozen
    assert type(converted[1]) is nn.BatchNorm2d


def test_what_training_codes_do_to_batch_norms_leaves_frozen_statistics_alone():
    net = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 0)
    freeze_bn_stats(net)
    x, bn = torch.randn(4, 3, 6, 6), net[1]
    expected, statistics = net(x), (bn.running_mean.clone(), bn.running_var.clone())
    with pytest.warns(UserWarning, match=r"reset_running_stats\(\) of a frozen batch norm has no effect"):
        update_bn([x], net)
    with pytest.warns(UserWarning, match="setting running_mean of a frozen batch norm has no effect"):
        bn.running_mean = torch.zeros_like(bn.running_mean)  # as Lightning's StochasticWeightAveraging does
    with pytest.warns(UserWarning, match="setting running_var of a frozen batch norm"):
        bn.running_var = torch.ones_like(bn.running_var)
    bn.momentum, bn.track_running_stats = 1.0, False
    for mode in (True, False):
        bn.train(mode)
        assert torch.equal(net(x), expected)
    assert torch.equal(bn.running_mean, statistics[0]) and torch.equal(bn.running_var, statistics[1])
    bn.track_running_stats = True
    bn.reset_parameters()  # a fresh start
    assert not bn.running_mean.any() and bool((bn.running_var == 1).all()) and bool((bn.weight == 1).all())


@pytest.mark.parametrize("assign", [False, True])
def test_a_frozen_norm_takes_the_statistics_of_a_state_dict(assign):
    net, other = (randomise(nn.Sequential(nn.BatchNorm2d(4)), seed) for seed in (0, 1))
    freeze_bn_stats(net)
    net.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(net[0].running_mean, other[0].running_mean)
    assert isinstance(net[0], FrozenStatsBN), "what was not frozen when it was saved thaws nothing"


def test_torchs_fusion_takes_a_frozen_norm_for_what_it_was():
    conv, bn = nn.Conv2d(3, 4, 3), randomise(nn.Sequential(nn.BatchNorm2d(4)), 0)[0]
    x = torch.randn(2, 3, 6, 6)
    freeze_bn_stats(bn)
    assert_close(fuse_conv_bn_eval(conv.eval(), bn.eval())(x), bn.train()(conv(x)))


def test_a_frozen_network_is_compiled_and_exported_as_one_graph():
    net = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 0)
    freeze_bn_stats(net)
    x = torch.randn(2, 3, 6, 6)
    expected = net(x)
    assert_close(torch.compile(net, backend="eager", fullgraph=True)(x), expected)
    assert_close(torch.export.export(net, (x,)).module()(x), expected)


def test_a_class_that_was_changed_since_is_not_unfrozen():
    net = randomise(nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4)), 0)
    freeze_bn_stats(net)
    parametrize.register_parametrization(net[1], "weight", nn.Identity())
    with pytest.raises(StatisticsError, match="'1': its class became ParametrizedFrozenStatsBatchNorm2d after it was"):
        unfreeze_bn_stats(net)
    assert all(isinstance(bn, FrozenStatsBN) for bn in net)


def test_unfreezing_goes_on_with_batch_statistics():
    net = trained()
    before = norms(net).__next__()[1].running_mean.clone()
    freeze_bn_stats(net)
    unfreeze_bn_stats(net)
    net.train()(torch.rand(2, 3, 8, 9).double())
    assert not torch.equal(norms(net).__next__()[1].running_mean, before)


def test_built_as_frozen_it_normalizes_and_stays():
    bn = FrozenStatsBN(3, eps=0.1, dtype=torch.float64)
    assert list(bn.state_dict()) == list(nn.BatchNorm2d(3).state_dict())
    x = torch.randn(2, 3, 4).double()
    assert_close(bn(x), x / 1.1**0.5)
    assert unfreeze_bn_stats(bn) == []
    assert isinstance(bn, FrozenStatsBN)


def test_moving_a_frozen_model_moves_it_all():
    net = trained()
    freeze_bn_stats(net)
    net.float().to("meta")
    assert {t.device.type for t in net.state_dict().values()} == {"meta"}
    unfreeze_bn_stats(net)
    assert {t.device.type for t in net.state_dict().values()} == {"meta"}


def test_an_averaged_copy_made_before_goes_on():
    net = trained()
    ema = AveragedModel(net, use_buffers=True, avg_fn=lambda average, new, _: 0.5 * average + 0.5 * new)
    freeze_bn_stats(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for seed in range(3):
        step(net, optimizer, seed)
        ema.update_parameters(net)
    x = torch.rand(1, 3, 8, 9).double()
    ema_bn, bn = (next(norms(m))[1] for m in (ema, net))
    assert torch.equal(ema_bn.running_mean, bn.running_mean)
    assert bool(torch.isfinite(ema.eval()(x)).all())


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Sequential(nn.BatchNorm2d(2)), r"'0': it never saw a batch \(num_batches_tracked=0\).*EMA copy"),
        (nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)), "'0': it keeps no running statistics"),
    ],
)
def test_refusals_leave_the_model_as_it_was(model, match):
    seen = nn.BatchNorm2d(2)
    seen(torch.randn(2, 2, 3, 3))
    both = nn.Sequential(seen, *model)
    with pytest.raises(StatisticsError, match=match.replace("'0'", "'1'")):
        freeze_bn_stats(both)
    assert not isinstance(both[0], FrozenStatsBN)


def test_recalibration_gives_population_statistics():
    """Batches of different sizes, pooled value by value: an average of averages would differ."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3)).double()
    batches = [torch.randn(n, 3, 4, 5).double() * (n + 1) + n for n in (1, 4, 2)]
    assert recalibrate_bn_stats(model, [(x, "label") for x in batches]) == 3
    pooled = torch.cat(batches).transpose(0, 1).flatten(1)
    assert_close(model[0].running_mean, pooled.mean(1))
    assert_close(model[0].running_var, pooled.var(1))
    assert int(model[0].num_batches_tracked) == 3


@pytest.mark.parametrize("frozen", [True, False])
def test_recalibration_of_a_block_leaves_out_the_ring(frozen):
    """The statistics that training converges to, also where a k x k follows the norm."""
    from reparam import ConvSpec, ExpandSqueezeBranch

    branch = ExpandSqueezeBranch(ConvSpec(3), order="1x1-kxk", bn=True).double()
    x = torch.randn(2, 3, 6, 7).double() + 2
    branch(x)
    if frozen:
        freeze_bn_stats(branch)
    recalibrate_bn_stats(branch, [x])
    middle = nn.functional.conv2d(x, branch.expand.weight, branch.expand.bias).transpose(0, 1).flatten(1)
    assert_close(branch.norm.running_mean, middle.mean(1).detach())
    assert_close(branch.norm.running_var, middle.var(1).detach())
    assert isinstance(branch.norm, FrozenStatsBN) == frozen


def state(model):
    return [type(m) for m in model.modules()], [m.training for m in model.modules()], copy.deepcopy(model.state_dict())


def same(before, after):
    return before[:2] == after[:2] and all(torch.equal(a, b) for a, b in zip(before[2].values(), after[2].values()))


def test_recalibration_that_fails_restores_everything():
    model = nn.Sequential(RepSRBlock(3), nn.Dropout(), nn.BatchNorm2d(3))
    model(torch.randn(2, 3, 5, 5))
    model[1].eval()
    before = state(model)

    def broken():
        yield torch.randn(2, 3, 5, 5)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        recalibrate_bn_stats(model, broken())
    assert same(before, state(model))
    with pytest.raises(StatisticsError, match=r"'0\.branches\.1\.norm': it got 0 values per channel from 0 b"):
        recalibrate_bn_stats(model, [])
    assert same(before, state(model))
    assert "population" not in vars(model[2])
