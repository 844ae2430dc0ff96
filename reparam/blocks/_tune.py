"""Measure for every block of a network whether folding or running its branches is faster."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._tables import table
from .._timing import race
from ..bn._norm import norms, uses_batch_stats
from ..errors import SpecError, check_model
from ..folding.moments import reaches_across
from ..modules._guard import all_read
from ..modules._hooks import leave_hooks_out
from ..modules._shards import why_not_whole
from ._block import PHASES, ReparamBlock
from ._set_fold import set_fold


class FoldTime(NamedTuple):
    """The times of a training step of one block in one phase: forward and backward on all its inputs of one run."""

    block: str
    """Dotted name of the block."""
    phase: str
    """"batch statistics" or "no batch statistics" (frozen, in eval mode, or without batch norms)."""
    folded_ms: float
    """Milliseconds, as one convolution."""
    branches_ms: float
    """Milliseconds, branch by branch."""

    @property
    def folds(self) -> bool:
        """The choice: whether one convolution is faster."""
        return self.folded_ms <= self.branches_ms


@dataclass(frozen=True)
class FoldReport:
    """The result of `tune_fold`: times and choices; prints as a table."""

    rows: Sequence[FoldTime]

    @property
    def choices(self) -> dict[str, dict[str, bool]]:
        """The choices for `set_fold`, as plain dicts that JSON can store."""
        chosen: dict[str, dict[str, bool]] = {}
        for row in self.rows:
            chosen.setdefault(row.block, {})[row.phase] = row.folds
        return chosen

    def __str__(self) -> str:
        columns = {"block": "", "phase": "", "folded (ms)": ".2f", "branches (ms)": ".2f", "chosen": ""}
        return table(columns, [(*row, "folded" if row.folds else "branches") for row in self.rows])


def tune_fold(model: nn.Module, example: Any, *, rounds: int = 5) -> FoldReport:
    """Time every block folded and branch by branch, and make `fold="auto"` use the faster way.

    The model runs once on the example, under autocast if that is on, to record the inputs of its blocks. Then copies of
    the blocks run training steps on these inputs, both ways in turns. They do so in train mode (on batch statistics)
    and in eval mode (without them, as after `freeze_bn_stats`). Identical blocks run together, because their kernels
    are computed at once; see `set_fold`.

    Afterwards nothing is measured any more: in each phase a block follows its choice, whatever the size of its input,
    until its `fold` is set. In eval mode without gradients on a CPU, a block caches its kernel and always folds. Blocks
    without a choice are not changed: those that did not run, or that hold a layer which the algebra cannot read.

    Parameters, gradients, buffers, modes and the random state are unchanged.

    Args:
        model: the model on its training device, before `torch.compile` and before several processes train it. Give all
            processes the same `choices`, because they must decide the same way.
        example: the input of the model: a batch as large as in training, or a tuple of arguments.
        rounds: how often each way is timed; the medians are compared.

    Returns:
        The times, and the choices, which `set_fold(model, report.choices)` applies again.

    Raises:
        SpecError: if no block runs or one runs on an empty batch, for less than one round, or for a model that is
            sharded over processes, because its blocks cannot be copied: tune first, then shard.

    Example:
        >>> from reparam import RepSRBlock
        >>> net = nn.Sequential(RepSRBlock(4), nn.PReLU(), RepSRBlock(4))
        >>> report = tune_fold(net, torch.rand(2, 4, 8, 8), rounds=1)
        >>> list(report.choices), set_fold(net, report.choices)
        (['0', '2'], ['0', '2'])
    """
    check_model(model)
    if rounds < 1:
        raise SpecError(f"tune_fold needs at least one round, but got rounds={rounds}")
    if why_not_whole(model):
        raise SpecError(
            f"cannot time copies of the blocks of a {type(model).__name__} that is sharded: tune first, then shard"
        )
    blocks = dict(_outermost(model))
    calls = _calls(model, blocks, example)
    alike: dict[Hashable, list[str]] = {}
    for name, inputs in calls.items():
        alike.setdefault((_kind(blocks[name]), *map(_look, inputs)), []).append(name)
    measured: dict[str, list[FoldTime]] = {}
    for names in alike.values():
        times = _both_ways([blocks[name] for name in names], [calls[name] for name in names], rounds)
        for name in names:
            measured[name] = [FoldTime(name, *row) for row in times]
    report = FoldReport([row for name in blocks for row in measured[name]])
    set_fold(model, report.choices)
    return report


def _outermost(model: nn.Module) -> Iterator[tuple[str, ReparamBlock]]:
    """The blocks that are not inside another block."""
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, ReparamBlock) and module not in inside:
            inside.update(module.modules())
            yield name, module


def _calls(model: nn.Module, blocks: Mapping[str, ReparamBlock], example: Any) -> dict[str, list[Tensor]]:
    """The inputs of each block while the model runs on the example; the model is unchanged."""
    calls: dict[str, list[Tensor]] = {name: [] for name in blocks}
    arguments = example if isinstance(example, tuple) else (example,)

    def record(name: str, _module: nn.Module, given: tuple[Tensor, ...]) -> None:
        calls[name].append(given[0].detach().clone().requires_grad_(given[0].requires_grad))

    with ExitStack() as stack:
        stack.enter_context(_unchanged(model))
        stack.enter_context(torch.enable_grad())  # shows which blocks pass gradients to their input
        for name, block in blocks.items():
            hook = block.register_forward_pre_hook(partial(record, name))
            stack.callback(hook.remove)
        model(*arguments)
    if not any(calls.values()):
        raise SpecError(f"no block ran while {type(model).__name__} ran on the example; its blocks are {list(blocks)}")
    for name, inputs in calls.items():
        if any(not x.numel() for x in inputs):
            raise SpecError(f"block {name!r} got {tuple(inputs[0].shape)}; the example must not be empty")
    return calls


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Restore buffers and the random state afterwards."""
    kept = [
        (table, name, buffer, buffer.clone())
        for table in (module._buffers for module in model.modules())
        for name, buffer in table.items()
        if buffer is not None
    ]
    cuda = {tensor.device.index for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng([index for index in cuda if index is not None]):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffers, name, buffer, value in kept:
                    buffers[name] = buffer.copy_(value)


def _kind(block: ReparamBlock) -> Hashable:
    """A key that is equal for blocks that take the same time."""
    tensors = [(name, t.shape, t.dtype, t.requires_grad) for name, t in block.named_parameters()]
    modules = [(type(module), module.training) for module in block.modules()]
    return type(block), block.spec, all_read(block), tuple(tensors), tuple(modules)


def _look(x: Tensor) -> Hashable:
    return x.shape, x.stride(), x.dtype, x.device


class _Together(nn.ModuleList):
    """Blocks side by side, each on its own inputs."""

    def forward(self, given: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [block(x) for block, inputs in zip(self, given) for x in inputs]


def _both_ways(
    blocks: Sequence[ReparamBlock], given: Sequence[Sequence[Tensor]], rounds: int
) -> list[tuple[str, float, float]]:
    """Per phase in which identical blocks have a choice: milliseconds per block, folded and branch by branch."""
    rows: list[tuple[str, float, float]] = []
    if not given[0] or not all_read(blocks[0]):
        return rows
    device = given[0][0].device
    for training in (True, False):
        copies = [_bare_copy(block).train(training) for block in blocks]
        together = _Together(copies)
        on_batch = any(uses_batch_stats(bn) for block in copies for _, bn in norms(block.branches))
        across = any(reaches_across(blocks[0].spec, tuple(x.shape[2:])) for x in given[0])
        phase = PHASES[not on_batch]
        if (on_batch and (blocks[0]._no_moments or across)) or phase in [row[0] for row in rows]:
            continue
        ways: dict[Hashable, Callable[[], None]] = {}
        for choice in (True, False):
            way = copy.deepcopy(together)
            set_fold(way, {str(index): {phase: choice} for index in range(len(blocks))})
            ways[choice] = partial(_step, way, given)
        times = race(ways, rounds, device=device)
        folded, branches = (1000 * median(times[choice]) / len(blocks) for choice in (True, False))
        rows.append((phase, folded, branches))
    return rows


def _bare_copy(block: ReparamBlock) -> ReparamBlock:
    """A copy without hooks, which may act on the user's objects."""
    memo: dict[int, Any] = {}
    leave_hooks_out(block, memo)
    return copy.deepcopy(block, memo)


@torch.enable_grad()
def _step(blocks: _Together, given: Sequence[Sequence[Tensor]]) -> None:
    """Run forward, and backward to everything that requires a gradient."""
    leaves = [[x.detach().requires_grad_(x.requires_grad) for x in inputs] for inputs in given]
    ends = [y for y in blocks(leaves) if y.requires_grad]
    torch.autograd.backward(ends, [torch.ones_like(y) for y in ends])
    blocks.zero_grad()
