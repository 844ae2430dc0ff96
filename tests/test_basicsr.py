"""The hooks for BasicSR and its kin, on model classes that do what theirs do in the methods that matter here.

`python -m tests.hosts` tries them in the codes themselves.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_close
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from reparam import FrozenStatsBN, SpecError, create_model, fuse
from reparam.bn._norm import norms
from reparam.interop.basicsr import register_archs, reparam_model


class Registry:
    """Names and objects, as in BasicSR."""

    def __init__(self) -> None:
        self.known: dict[str, object] = {}

    def register(self, obj=None):
        assert obj.__name__ not in self.known
        self.known[obj.__name__] = obj


class SRModel:
    """A model trained by L1 with an EMA of its parameters; the loop of BasicSR's SRModel in brief."""

    def __init__(self, opt: dict) -> None:
        self.opt = opt
        self.net_g = create_model("repsr_m1c6_x2", gain=1.0, bn_weight=1.0)
        self.net_g_ema = copy.deepcopy(self.net_g).eval()
        self.optimizer = torch.optim.Adam(self.net_g.parameters(), 1e-3)
        self.model_ema(0)

    def optimize_parameters(self, current_iter: int) -> None:
        generator = torch.Generator().manual_seed(current_iter)
        x = torch.rand(4, 3, 8, 8, generator=generator)
        self.optimizer.zero_grad()
        (self.net_g(x) - nn.functional.interpolate(x, scale_factor=2)).abs().mean().backward()
        self.optimizer.step()
        self.model_ema(0.9)

    def model_ema(self, decay: float = 0.999) -> None:
        ours = dict(self.net_g.named_parameters())
        for name, parameter in self.net_g_ema.named_parameters():
            parameter.data.mul_(decay).add_(ours[name].data, alpha=1 - decay)


class Neosr:
    """Two batches make a step, `total_iter` counts steps and `optimize_parameters` batches; the EMA is torch's."""

    accum_iters = 2

    def __init__(self, opt: dict) -> None:
        self.opt = opt
        self.net_g = create_model("repsr_m1c6_x2", gain=1.0, bn_weight=1.0)
        self.net_g_ema = AveragedModel(self.net_g, multi_avg_fn=get_ema_multi_avg_fn(0.9))

    def optimize_parameters(self, current_iter: int) -> None:
        self.net_g(torch.rand(4, 3, 8, 8))
        if current_iter % self.accum_iters == 0:
            self.net_g_ema.update_parameters(self.net_g)


class Average(nn.Module):
    """The EMA of ema_pytorch: floats are averaged, counters forgotten."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.online_model, self.ema_model = net, copy.deepcopy(net)

    @torch.no_grad()
    def update(self) -> None:
        ours = self.online_model.state_dict()
        for name, value in self.ema_model.state_dict().items():
            if value.is_floating_point():
                value.lerp_(ours[name], 0.1)


class Redux:
    """traiNNer-redux: options are objects, and `optimize_parameters` is told steps and whether a batch ends one."""

    accum_iters = 2

    def __init__(self, **network_g) -> None:
        self.opt = SimpleNamespace(train=SimpleNamespace(total_iter=10), logger=SimpleNamespace(), network_g=network_g)
        self.net_g = create_model("repsr_m1c6_x2", gain=1.0, bn_weight=1.0)
        self.net_g_ema = Average(self.net_g)

    def optimize_parameters(self, current_iter: int, current_accum_iter: int, apply_gradient: bool) -> None:
        self.net_g(torch.rand(4, 3, 8, 8))
        if apply_gradient:
            self.net_g_ema.update()


class Plain:
    """KAIR: other names, and no end."""

    def __init__(self, train: dict) -> None:
        self.opt = {"train": train}
        self.netG = nn.DataParallel(create_model("repsr_m1c6_x2", gain=1.0, bn_weight=1.0))
        self.netE = copy.deepcopy(self.netG.module).eval()

    def optimize_parameters(self, current_step: int) -> None:
        self.netG(torch.rand(4, 3, 8, 8))
        self.update_E(0.9)

    def update_E(self, decay: float = 0.999) -> None:
        for ema, ours in zip(self.netE.parameters(), self.netG.module.parameters()):
            ema.data.lerp_(ours.data, 1 - decay)


def frozen(*nets: nn.Module) -> set[bool]:
    return {isinstance(bn, FrozenStatsBN) for net in nets for _, bn in norms(net)}


def train(model: SRModel, first: int, last: int) -> SRModel:
    for iteration in range(first, last + 1):
        model.optimize_parameters(iteration)
    return model


def test_networks_are_known_by_name():
    registry = Registry()
    names = register_archs(registry)
    assert names == list(registry.known) and "reparam_repsr" in names
    assert registry.known["reparam_model"](name="repsr_m1c6_x2").channels == 6
    assert registry.known["reparam_ecbsr"](scale=3, num_blocks=1, channels=8).scale == 3


def test_the_ema_follows_the_statistics():
    options = {"train": {"total_iter": 100}}
    forgetful, ours = train(SRModel(options), 1, 60), train(reparam_model(SRModel)(options), 1, 60)
    for model in (forgetful, ours):  # now the network stands still, and its average has to come to it
        model.optimizer.param_groups[0]["lr"] = 0.0
        train(model, 61, 160)
    x = torch.rand(2, 3, 12, 12)

    def distance(model: SRModel) -> float:
        return float((model.net_g_ema(x) - model.net_g.eval()(x)).detach().square().mean())

    assert all(not bn.running_mean.any() for _, bn in norms(forgetful.net_g_ema))
    assert distance(forgetful) > 100 * distance(ours), (distance(ours), distance(forgetful))
    assert {int(bn.num_batches_tracked) for _, bn in norms(ours.net_g_ema)} == {160}
    assert_close(fuse(ours.net_g_ema)(x), ours.net_g_ema(x), 1e-5)


def test_the_average_of_buffers_is_that_of_parameters():
    model = reparam_model(SRModel)({"train": {"total_iter": 10}})
    name = "body.0.branches.0.norm.running_var"
    before = model.net_g_ema.state_dict()[name].clone()
    model.optimize_parameters(1)
    assert_close(model.net_g_ema.state_dict()[name], 0.9 * before + 0.1 * model.net_g.state_dict()[name])


@pytest.mark.parametrize("at", [0.5, 5])
def test_statistics_freeze_on_time_and_after_a_resume(at: float):
    options = {"train": {"total_iter": 10, "freeze_bn_at": at}}
    model = train(reparam_model(SRModel)(options), 1, 4)
    assert not any(isinstance(bn, FrozenStatsBN) for _, bn in norms(model.net_g))
    parameters = list(model.net_g.parameters())
    train(model, 5, 5)
    assert all(isinstance(bn, FrozenStatsBN) for net in (model.net_g, model.net_g_ema) for _, bn in norms(net))
    frozen = {name: bn.running_var.clone() for name, bn in norms(model.net_g)}
    scales = {name: bn.weight.clone() for name, bn in norms(model.net_g)}
    train(model, 6, 8)
    assert all(torch.equal(bn.running_var, frozen[name]) for name, bn in norms(model.net_g))
    assert not any(torch.equal(bn.weight, scales[name]) for name, bn in norms(model.net_g))
    assert all(a is b for a, b in zip(parameters, model.net_g.parameters()))
    resumed = reparam_model(SRModel)(options)
    resumed.net_g.load_state_dict(model.net_g.state_dict())
    resumed.net_g_ema.load_state_dict(model.net_g_ema.state_dict())
    train(resumed, 9, 9)
    assert all(isinstance(bn, FrozenStatsBN) for _, bn in norms(resumed.net_g))


@pytest.mark.parametrize("at", [1, 1.0])
def test_one_is_all_of_the_training_and_not_its_first_step(at: float):
    model = train(reparam_model(SRModel)({"train": {"total_iter": 3, "freeze_bn_at": at}}), 1, 2)
    assert not any(isinstance(bn, FrozenStatsBN) for _, bn in norms(model.net_g))
    assert all(isinstance(bn, FrozenStatsBN) for _, bn in norms(train(model, 3, 3).net_g))


@pytest.mark.parametrize("at", [0, -1, "0.9", True])
def test_a_wrong_schedule_is_refused(at):
    model = reparam_model(SRModel)({"train": {"total_iter": 10, "freeze_bn_at": at}})
    with pytest.raises(
        SpecError, match=f"freeze_bn_at must be a share of total_iter or an optimizer step, but got {at!r}"
    ):
        model.optimize_parameters(1)


def test_a_share_is_one_of_steps_where_a_step_is_several_batches():
    options = {"logger": {"total_iter": 10}, "train": {"freeze_bn_at": 0.9}}
    model = train(reparam_model(Neosr)(options), 1, 16)  # 8 steps
    assert frozen(model.net_g, model.net_g_ema) == {False}
    assert frozen(train(model, 17, 17).net_g) == {True} == frozen(model.net_g_ema)
    train(model, 18, 20)
    for (_, ours), (_, ema) in zip(norms(model.net_g), norms(model.net_g_ema)):
        assert torch.equal(ours.running_var, ema.running_var)


def test_a_share_is_one_of_steps_where_the_code_counts_steps():
    model = reparam_model(Redux)(type="reparam_model", freeze_bn_at=0.9)

    def step(number: int, batches: int = 2) -> set[bool]:
        for batch in range(batches):
            ends = batch == 1
            model.optimize_parameters(number if ends else number - 1, 0 if ends else 1, ends)
        return frozen(model.net_g, model.net_g_ema.ema_model)

    assert [step(number) for number in range(1, 9)] == [{False}] * 8
    assert {int(bn.num_batches_tracked) for _, bn in norms(model.net_g_ema.ema_model)} == {16}
    assert step(9, batches=1) == {True}  # with the first batch of the step
    assert fuse(model.net_g_ema.ema_model.eval())


def test_the_networks_of_kair_freeze_and_average_buffers():
    model = train(reparam_model(Plain)({"freeze_bn_at": 3}), 1, 2)
    before = model.netE.body[0].branches[0].norm.running_var.clone()
    assert frozen(model.netG, model.netE) == {False}
    assert {int(bn.num_batches_tracked) for _, bn in norms(model.netE)} == {2}
    train(model, 3, 3)
    assert frozen(model.netG, model.netE) == {True}
    ours = model.netG.module.body[0].branches[0].norm.running_var
    assert_close(model.netE.body[0].branches[0].norm.running_var, 0.9 * before + 0.1 * ours)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"train": {"freeze_bn_at": 0.9}},
            "freeze_bn_at=0.9 is a share .* options of SRModel of .*test_basicsr have no",
        ),
        (
            {"train": {"freeze_bn_at": 0.5, "total_iter": 10}, "logger": {"total_iter": 20}},
            "of SRModel of .* have 20 under logger and 10 under train; give freeze_bn_at as the number",
        ),
        (
            {"train": {"freeze_bn_at": 0.5, "total_iter": 10}, "network_g": {"freeze_bn_at": 0.9}},
            "freeze_bn_at is 0.5 under train, but 0.9 under network_g",
        ),
    ],
)
def test_a_share_of_nobody_knows_what_is_refused(options, said):
    with pytest.raises(SpecError, match=said):
        reparam_model(SRModel)(options).optimize_parameters(1)


def test_a_code_that_accumulates_in_a_way_of_its_own_is_refused():
    model = reparam_model(SRModel)({"train": {"freeze_bn_at": 0.5, "total_iter": 10}})
    model.accum_iters = 4
    with pytest.raises(
        SpecError, match=r"SRModel of .*test_basicsr accumulates gradients \(accum_iters=4, 1 arguments\)"
    ):
        model.optimize_parameters(1)
    with pytest.raises(SpecError, match=r"accumulates gradients \(accum_iters=4, 2 arguments\)"):
        model.optimize_parameters(1, "more")


def test_the_class_is_known_by_its_own_name():
    assert reparam_model(SRModel).__name__ == "SRModel" and issubclass(reparam_model(SRModel), SRModel)
