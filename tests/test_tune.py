"""`tune_fold`: what is measured, what is chosen, and that nothing else is touched."""

import copy
import json
from functools import partial

import pytest
import torch
from torch import nn

from reparam import ECB, ConvSpec, RepSRBlock, RepVGGBlock, SpecError, freeze_bn_stats, set_fold, tune_fold
from reparam.bench._launches import launches
from reparam.blocks import FoldReport, FoldTime, ReparamBlock, _tune
from reparam.blocks._block import PHASES
from reparam.branches import ScaledBranch

BATCH, STORED = PHASES


@pytest.fixture
def clock(monkeypatch):
    """Seconds by what a way does: folded 1, branches 2 on batch statistics; the other way round without them."""
    asked = []

    def race(ways, rounds, device):
        assert device == torch.device("cpu")
        (phase,) = ways[True].args[0][0]._chosen
        for choice, way in ways.items():
            assert all(block._chosen == {phase: choice} for block in way.args[0])
            way()
        blocks, given = ways[True].args
        shapes = [tuple(x.shape) for x in given[0]]
        asked.append((type(blocks[0]).__name__, len(blocks), phase, shapes, rounds))
        return {True: [1.0, 9.0, 1.0], False: [2.0] * 3} if phase == BATCH else {True: [4.0] * 3, False: [3.0] * 3}

    monkeypatch.setattr(_tune, "race", race)
    return asked


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.body = RepVGGBlock(3, 8), nn.Sequential(RepVGGBlock(8), nn.Dropout(0.5), RepVGGBlock(8))
        self.down, self.free, self.unused = RepSRBlock(8, stride=2), ECB(8), RepSRBlock(8)

    def forward(self, x):
        x = self.body(self.first(x))
        return self.free(self.down(self.down(x)))


def test_each_phase_is_chosen_and_blocks_alike_are_measured_together(clock):
    net = Net()
    report = tune_fold(net, torch.rand(2, 3, 16, 12), rounds=3)
    both, stored = {BATCH: True, STORED: False}, {STORED: False}
    expected = {"first": both, "body.0": both, "body.2": both, "down": stored, "free": stored}
    assert report.choices == expected
    assert {name: block._chosen for name, block in net.named_modules() if getattr(block, "_chosen", None)} == expected
    first, body = (1, [(2, 3, 16, 12)]), (2, [(2, 8, 16, 12)])
    assert clock == [("RepVGGBlock", n, phase, shapes, 3) for n, shapes in (first, body) for phase in PHASES] + [
        ("RepSRBlock", 1, STORED, [(2, 8, 16, 12), (2, 8, 8, 6)], 3),
        ("ECB", 1, STORED, [(2, 8, 4, 3)], 3),
    ]
    again = Net()
    assert set_fold(again, json.loads(json.dumps(report.choices))) == list(expected)
    assert again.down._chosen == stored
    rows = {(row.block, row.phase): (row.folded_ms, row.branches_ms, row.folds) for row in report.rows}
    assert rows["down", STORED] == (4000.0, 3000.0, False)
    assert rows["body.2", BATCH] == (500.0, 1000.0, True), "of two blocks that took a step together"


def test_blocks_step_as_they_will_in_the_network(monkeypatch):
    """Kernels of blocks that are alike are computed at once in both."""
    counts = {}
    monkeypatch.setattr(
        _tune,
        "race",
        lambda ways, *_, **__: {key: [(way(), launches(way).total())[1]] for key, way in ways.items()},
    )
    net = nn.Sequential(*(ECB(8) for _ in range(6)))
    report = tune_fold(net, torch.rand(1, 8, 6, 6))

    def step():
        net.zero_grad()
        y = net(torch.rand(1, 8, 6, 6))
        y.backward(torch.ones_like(y))

    for choice in (True, False):
        set_fold(net, choice)
        step()
        counts[choice] = launches(step).total()
    told = sum(row.folded_ms for row in report.rows) / 1000, sum(row.branches_ms for row in report.rows) / 1000
    for estimated, counted in zip(told, (counts[True], counts[False])):
        assert abs(estimated - counted) < 20 < counted - 20, (told, counts)
    assert report.choices == {str(index): {STORED: True} for index in range(6)}


def test_blocks_that_are_alike_are_measured_apart_where_their_images_are_of_other_sizes(clock):
    tune_fold(nn.Sequential(ECB(3), nn.MaxPool2d(2), ECB(3), ECB(3)), image())
    assert [(blocks, shapes) for _, blocks, _, shapes, _ in clock] == [(1, [(2, 3, 16, 12)]), (2, [(2, 3, 8, 6)])]


def test_images_too_small_for_moments_leave_no_choice_on_batch_statistics(clock):
    report = tune_fold(nn.Sequential(RepVGGBlock(3, kernel_size=5, padding=2)), torch.rand(4, 3, 1, 1))
    assert report.choices == {"0": {STORED: False}}


def test_it_prints_as_a_table():
    rows = [FoldTime("body.0", BATCH, 2.5, 1.25), FoldTime("body.0", STORED, 1.0, 12.0)]
    assert str(FoldReport(rows)).splitlines() == [
        "block   phase                folded (ms)  branches (ms)  chosen",
        "body.0  batch statistics            2.50           1.25  branches",
        "body.0  no batch statistics         1.00          12.00  folded",
    ]


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_users_changes(training):
    seen = []
    net = Net().train(training)
    set_fold(net, "auto")
    net.body[0].eval()
    net.free.register_forward_hook(lambda *_: seen.append("free"))
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    state = copy.deepcopy(net.state_dict())
    objects = dict([*net.named_parameters(), *net.named_buffers()])
    modes = [module.training for module in net.modules()]
    hooks = [len(module._forward_pre_hooks) for module in net.modules()]
    generator = torch.get_rng_state()
    tune_fold(net, image() if training else (image(),), rounds=1)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())
    assert all(objects[name] is tensor for name, tensor in [*net.named_parameters(), *net.named_buffers()])
    assert all(bool(p.grad.eq(0.5).all()) and p.requires_grad for p in net.parameters())
    assert [module.training for module in net.modules()] == modes
    assert [len(module._forward_pre_hooks) for module in net.modules()] == hooks
    assert seen == ["free"], "the hook saw other runs than that of the model"


def image():
    return torch.ones(2, 3, 16, 12)


def test_buffers_are_put_back_where_the_model_fails():
    net = nn.Sequential(RepVGGBlock(3), nn.Conv2d(4, 4, 1))
    state, hooks = copy.deepcopy(net.state_dict()), len(net[0]._forward_pre_hooks)
    with pytest.raises(RuntimeError, match="expected input.* to have 4 channels"):
        tune_fold(net, image())
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())
    assert len(net[0]._forward_pre_hooks) == hooks


def test_a_frozen_block_is_measured_in_its_one_phase(clock):
    net = nn.Sequential(RepVGGBlock(3))
    net(image())
    freeze_bn_stats(net)
    assert tune_fold(net, image()).choices == {"0": {STORED: False}}


def test_a_block_inside_of_another_is_no_one_of_its_own(clock):
    inner = partial(ReparamBlock, branches=[partial(ScaledBranch, branch=partial(ReparamBlock, branches=[ECB_of]))])
    net = nn.Sequential(ReparamBlock(ConvSpec(3), [inner, ECB_of]))
    assert list(tune_fold(net, image()).choices) == ["0"]


def ECB_of(spec):
    return ReparamBlock(spec, ECB.planned(spec))


def test_a_layer_that_is_not_read_leaves_no_choice(clock):
    net = nn.Sequential(ECB(3), RepVGGBlock(3))
    net[0].branches[0].conv.register_forward_hook(lambda *_: None)
    assert list(tune_fold(net, image()).choices) == ["1"]


def test_dtype_is_that_of_the_run(clock, monkeypatch):
    seen, step = [], _tune._step
    monkeypatch.setattr(
        _tune,
        "_step",
        lambda blocks, given: (seen.extend((x.dtype, x.requires_grad) for [x] in given), step(blocks, given)),
    )
    net = nn.Sequential(ECB(3), ECB(3))
    with torch.autocast("cpu", torch.bfloat16):
        tune_fold(net, image())
    assert set(seen) == {(torch.float32, False), (torch.bfloat16, True)}


@pytest.mark.parametrize(
    ("net", "example", "rounds", "message"),
    [
        (nn.Conv2d(3, 3, 1), image(), 7, r"no block ran while Conv2d ran on the example; its blocks are \[\]"),
        (nn.Sequential(ECB(3)), image()[:0], 7, r"block '0' got \(0, 3, 16, 12\)"),
        (nn.Sequential(ECB(3)), image(), 0, "rounds=0"),
    ],
)
def test_errors(net, example, rounds, message):
    with pytest.raises(SpecError, match=message):
        tune_fold(net, example, rounds=rounds)
