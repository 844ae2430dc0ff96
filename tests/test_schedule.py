"""When statistics are frozen: the schedule by itself, resumed, and as a callback of Lightning and transformers."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from reparam import (
    BNFreezeSchedule,
    FrozenStatsBN,
    RepSRBlock,
    SpecError,
    StatisticsError,
    freeze_bn_stats,
    swap_convs,
)
from reparam.bn._norm import norms
from reparam.interop import transformers
from reparam.interop.lightning import BNFreezeCallback


def is_frozen(model: nn.Module) -> bool:
    kinds = {isinstance(bn, FrozenStatsBN) for _, bn in norms(model)}
    assert len(kinds) == 1
    return kinds.pop()


def net() -> nn.Module:
    return nn.Sequential(RepSRBlock(3), nn.PReLU(), nn.BatchNorm2d(3))


def batch(step: int) -> torch.Tensor:
    return torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize(
    ("total", "fraction", "first"), [(10, 0.9, 9), (10, 0.75, 8), (100, 0.29, 29), (7, 1, None), (3, 0.5, 2)]
)
def test_the_first_frozen_step(total, fraction, first):
    model = net()
    schedule = BNFreezeSchedule(model, total, fraction=fraction)
    frozen = []
    for step in range(total):
        schedule.step()
        model(batch(step))
        frozen.append(is_frozen(model))
        assert schedule.frozen == frozen[-1]
    assert frozen == [first is not None and step >= first for step in range(total)]


def test_fraction_zero_freezes_what_was_trained_before_and_refuses_what_was_not():
    model = net()
    with pytest.raises(StatisticsError, match=r"'0\.branches\.1\.norm': it never saw a batch"):
        BNFreezeSchedule(model, 5, fraction=0).step()
    assert not is_frozen(model)
    model(batch(0))
    BNFreezeSchedule(model, 5, fraction=0).step()
    assert is_frozen(model)


def test_a_model_without_batch_norm_is_left_as_it_is():
    model = nn.Conv2d(3, 3, 3)
    schedule = BNFreezeSchedule(model, 2, fraction=0.5)
    for _ in range(2):
        schedule.step()
    assert type(model) is nn.Conv2d


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"total_steps": 0}, "total_steps=0"),
        ({"total_steps": 5, "fraction": 1.2}, r"fraction=1\.2"),
        ({"total_steps": 5, "fraction": -0.1}, r"fraction=-0\.1"),
        ({"total_steps": 5, "fraction": float("nan")}, "fraction=nan"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(SpecError, match=match):
        BNFreezeSchedule(net(), **arguments)


@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("saved_at", [3, 7, 8, 9])
def test_a_resumed_run_freezes_at_the_same_step(saved_at, model_first):
    def run(model, schedule, start, stop):
        for step in range(start, stop):
            schedule.step()
            model(batch(step))
        return model

    torch.manual_seed(0)
    fresh = net()
    model = copy.deepcopy(fresh)
    schedule = BNFreezeSchedule(model, 10, fraction=0.8)
    run(model, schedule, 0, saved_at)
    states = copy.deepcopy((model.state_dict(), schedule.state_dict()))
    whole = run(model, schedule, saved_at, 10)

    resumed = copy.deepcopy(fresh)
    again = BNFreezeSchedule(resumed, 10, fraction=0.8)
    loads = [lambda: resumed.load_state_dict(states[0]), lambda: again.load_state_dict(states[1])]
    for load in loads if model_first else reversed(loads):
        load()
    run(resumed, again, saved_at, 10)
    assert is_frozen(resumed)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_state_dict_of_the_model_alone_says_that_it_was_frozen(tmp_path):
    model = net()
    model(batch(0))
    torch.save(model.state_dict(), tmp_path / "before.pth")
    freeze_bn_stats(model)
    torch.save(model.state_dict(), tmp_path / "after.pth")
    for name in ("before", "after"):
        resumed = net()
        BNFreezeSchedule(resumed, 10)  # whose own state is lost
        resumed.load_state_dict(torch.load(tmp_path / f"{name}.pth", weights_only=True))
        assert is_frozen(resumed) == (name == "after")
    blocks = net()
    with pytest.warns(UserWarning, match=r"2 batch norms of RepSRBlock are frozen now.*unfreeze_bn_stats"):
        blocks.load_state_dict(model.state_dict())
    assert is_frozen(blocks[0]) and not is_frozen(blocks[2]), "nobody asked for the norm outside of the block"
    plain = net()
    BNFreezeSchedule(plain, 10)
    plain.load_state_dict(dict(model.state_dict()))
    assert not is_frozen(plain), "a dict says nothing"


def test_a_swapped_network_is_resumed_frozen_and_loads_into_plain_torch():
    def swapped() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
        swap_convs(model, RepSRBlock)
        return model

    first, resumed = swapped(), copy.deepcopy(swapped())
    first(batch(0))
    freeze_bn_stats(first)
    saved = first.state_dict()
    assert resumed.load_state_dict(saved, strict=True).missing_keys == []
    assert is_frozen(resumed)
    for bn, theirs in zip(norms(first), norms(resumed)):
        assert torch.equal(bn[1].running_var, theirs[1].running_var)
    plain = nn.BatchNorm2d(3)
    plain.load_state_dict(first[1].state_dict(), strict=True)
    assert type(plain) is nn.BatchNorm2d


def test_a_name_that_is_no_batch_norm_any_more_is_passed_over():
    model = net()
    model(batch(0))
    freeze_bn_stats(model)
    other = nn.Sequential(RepSRBlock(3), nn.PReLU(), nn.BatchNorm2d(3, track_running_stats=False), nn.Identity())
    BNFreezeSchedule(other, 10)
    other.load_state_dict(model.state_dict(), strict=False)
    assert is_frozen(other[0]) and not is_frozen(other[2])


def test_going_back_before_the_freeze_unfreezes_what_it_froze():
    model = net()
    schedule = BNFreezeSchedule(model, 4, fraction=0.5)
    for step in range(3):
        schedule.step()
        model(batch(step))
    schedule.load_state_dict({"steps": 1})
    schedule.step()
    assert not is_frozen(model) and not schedule.frozen
    schedule.step()
    assert is_frozen(model)


@pytest.mark.parametrize("start", [0, 3, 9])
def test_the_callback_of_transformers_counts_steps_of_the_optimizer(start):
    """With what a Trainer calls it; `python -m tests.hosts transformers` does it in one."""
    model, seen = net(), []
    callback = transformers.BNFreezeCallback(0.75)
    callback.on_train_begin(None, SimpleNamespace(max_steps=12), None, model=model, optimizer=None)
    model(batch(0))
    for step in range(start, 12):
        callback.on_step_begin(None, SimpleNamespace(global_step=step), None, model=model)
        seen.append(is_frozen(model))
    assert seen == [step >= 9 for step in range(start, 12)]


lightnings_own = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec:FutureWarning")
"""Its advice on workers, and its use of what torch deprecates."""


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.frozen: list[tuple[int, bool]] = []

    def training_step(self, images, index):
        loss = self.net(images).square().mean()
        self.frozen.append((self.trainer.global_step, is_frozen(self)))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(module, folder, callback, checkpoint=None, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=folder, callbacks=[callback], enable_checkpointing=False, **quiet, **options)
    loader = DataLoader([batch(step)[0] for step in range(24)], batch_size=2)
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=False) if checkpoint else trainer.fit(module, loader)
    return trainer


@lightnings_own
@pytest.mark.parametrize("accumulated", [1, 3])
def test_the_callback_counts_steps_of_the_optimizer(tmp_path, accumulated):
    module = Module()
    fit(module, tmp_path, BNFreezeCallback(0.5), max_epochs=1, accumulate_grad_batches=accumulated)
    steps = 12 // accumulated
    assert module.frozen == [(i // accumulated, i // accumulated >= steps / 2) for i in range(12)]


@lightnings_own
def test_the_callback_in_a_resumed_run(tmp_path):
    first = Module()
    fit(first, tmp_path, BNFreezeCallback(0.75, total_steps=12), max_steps=10).save_checkpoint(tmp_path / "at_10.ckpt")
    resumed = Module()
    fit(resumed, tmp_path, BNFreezeCallback(0.75), checkpoint=tmp_path / "at_10.ckpt", max_steps=12)
    assert first.frozen == [(step, step >= 9) for step in range(10)]
    assert resumed.frozen == [(10, True), (11, True)]


@lightnings_own
def test_the_callback_refuses_a_training_without_an_end(tmp_path):
    with pytest.raises(
        SpecError, match=r"fraction 0\.9 of a training run without an end \(max_steps=-1, max_epochs=-1\)"
    ):
        fit(Module(), tmp_path, BNFreezeCallback(0.9), max_epochs=-1)
