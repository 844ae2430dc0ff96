"""The hooks for BasicSR, on a model class that does what BasicSR's does in the methods that matter here."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import assert_close
from torch import nn

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


def test_the_class_is_known_by_its_own_name():
    assert reparam_model(SRModel).__name__ == "SRModel" and issubclass(reparam_model(SRModel), SRModel)
