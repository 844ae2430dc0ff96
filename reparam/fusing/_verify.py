"""How far a fused model is from the model that it came from, in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .._tables import table
from ..blocks._set_fold import set_fold
from ..branches import Branch
from ..errors import FuseError
from ..modules._hooks import copy_module
from ..numerics._compare import cloned, distance, largest, max_abs, tensors_of
from ..numerics._running import of_dtype, run, run_in
from ._find import find_blocks
from ._foreign import find_foreign, foreign_block
from ._fuse import unwrap
from ._prove import OF_FLOAT32, Inputs

_TOO_LARGE = "LARGER THAN ROUNDING"


@dataclass(frozen=True)
class Difference:
    """Two outputs compared: of all tensors in them, and all calls, the one that is farthest beyond rounding."""

    name: str
    """Dotted name of the block; empty for the whole model."""
    max_abs: float
    """max |fused - model|, in the units of the output, NaN if there is one; of integers, how many differ."""
    relative: float
    """The same over max |model|."""
    noise_floor: float
    """What rounding alone does to either model: max |y - y in float64| of both, and at least one rounding step. For a
    model in float64, it is what rounding to float32 does, divided by 2^29."""

    @property
    def ok(self) -> bool:
        """Whether fusing changed no more than rounding does, within a factor of ten; NaN and overflow are not ok."""
        return self.max_abs <= 10 * self.noise_floor < math.inf


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`; printed, it is a table."""

    blocks: tuple[Difference, ...]
    """Each block on the input that it got in the model."""
    total: Difference
    """The whole model, end to end."""
    unreached: tuple[str, ...]
    """Blocks that the inputs did not lead through; nothing is known of them."""
    left: tuple[str, ...] = ()
    """Blocks that are in the fused model as they were."""

    @property
    def ok(self) -> bool:
        """Whether everything was reached and differs by no more than rounding."""
        return not self.unreached and self.total.ok and all(block.ok for block in self.blocks)

    def __str__(self) -> str:
        rows: list[tuple[str | float | None, ...]] = [
            (row.name or "end to end", row.max_abs, row.relative, row.noise_floor, "" if row.ok else _TOO_LARGE)
            for row in (*self.blocks, self.total)
        ]
        rows += [(name, None, None, None, "not reached by these inputs") for name in self.unreached]
        rows += [(name, None, None, None, "not fused") for name in self.left]
        return table({"block": "", "max abs": ".2e", "relative": ".2e", "noise floor": ".2e", "": ""}, rows)


@torch.no_grad()
def verify(model: nn.Module, plain: nn.Module, /, *inputs: Any, **keywords: Any) -> VerifyReport:
    """Compares a model with its fused form, block by block and end to end.

    Everything runs on copies in eval mode, each on a copy of the inputs; neither models nor inputs are changed. Outputs
    may be tensors, or hold them in any way: in lists, dicts, dataclasses or objects.

    Args:
        model: the model with blocks, ours or foreign, in any mode. Batch norms outside of blocks are compared end to
            end only.
        plain: what `fuse` made of it, with the same dotted names.
        *inputs: the arguments of one forward, tensors in the dtype and on the device of the model.
        **keywords: those by keyword, of any name, as the two models are given by position.

    Returns:
        Maximal absolute and relative differences, and the floor that rounding sets.

    Raises:
        FuseError: if nothing of `model` was fused, or `plain` has no module where a block was; if the outputs differ in
            structure, shape or dtype, or hold no numbers.

    Example:
        >>> from reparam import ECB, fuse
        >>> net = nn.Sequential(ECB(3, 8), nn.PReLU(8), ECB(8, 3))
        >>> verify(net, fuse(net), torch.rand(1, 3, 16, 16)).ok
        True
    """
    ours, plain = (copy_module(unwrap(m)).eval() for m in (model, plain))
    for side in (ours, plain):
        set_fold(side, False)  # run the branches: a folded block would be compared with itself
    blocks = _blocks(ours)
    if _kinds(ours) == _kinds(plain):
        what = "nothing was fused" if blocks else "found no block to verify"
        raise FuseError(
            f"{what} in {type(ours).__name__}; pass the unfused model first, and what fuse made of it second"
        )
    partners = {name: _partner(plain, name) for name in blocks}
    given, is_double = (inputs, keywords), _is_double(ours)
    with _recorded(blocks) as seen:
        output = run(ours, *given)
    rows = [
        _difference(name, _runs(block, partners[name], seen[name]), is_double)
        for name, block in blocks.items()
        if seen[name]
    ]
    total = _difference("", [[output, run(plain, *given), *_in_other_precision(ours, plain, given)]], is_double)
    unreached = tuple(name for name in blocks if not seen[name])
    left = tuple(name for name, partner in partners.items() if isinstance(partner, Branch) or foreign_block(partner))
    return VerifyReport(tuple(rows), total, unreached, left)


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    foreign = find_foreign(model).blocks
    return {**find_blocks(model), **{name: block.module for name, block in foreign.items()}}


def _kinds(model: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in model.named_modules()]


def _partner(plain: nn.Module, name: str) -> nn.Module:
    try:
        return plain.get_submodule(name)
    except AttributeError:
        raise FuseError(f"expected the fused model to hold a module at {name!r}, but found nothing") from None


@contextmanager
def _recorded(blocks: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Inputs]]]:
    """Collects the inputs of each block while it lasts, as they are before anything writes into them."""
    seen: dict[str, list[Inputs]] = {name: [] for name in blocks}
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: seen[name].append(cloned((args, kwargs))), with_kwargs=True
        )
        for name, block in blocks.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _runs(block: nn.Module, partner: nn.Module, seen: Iterable[Inputs]) -> Iterator[list[Any]]:
    """For each call: what block and partner return, in their own precision and in the other one."""
    for given in seen:
        yield [run(block, *given), run(partner, *given), *_in_other_precision(block, partner, given)]


def _in_other_precision(ours: nn.Module, plain: nn.Module, given: Inputs) -> list[Any]:
    """The outputs in float64 or, of models in float64, which nothing is more exact than, in float32."""
    dtype = torch.float32 if _is_double(ours) else torch.float64
    return [run_in(dtype, of_dtype(dtype, copy_module(model)), *given) for model in (ours, plain)]


def _is_double(model: nn.Module) -> bool:
    return any(tensor.dtype == torch.float64 for tensor in chain(model.parameters(), model.buffers()))


def _difference(name: str, runs: Iterable[list[Any]], is_double: bool) -> Difference:
    """Compares outputs: the model's, the fused one's, and both in another precision."""
    found = [_compared(name, tensors, is_double) for outputs in runs for _, tensors in tensors_of(*outputs)]
    if not found:
        raise FuseError(f"{f'block {name!r}' if name else 'the model'} returns no numbers that could be compared")
    return max(found, key=_excess)


def _compared(name: str, tensors: tuple[Tensor, ...], is_double: bool) -> Difference:
    ours, plain, *others = tensors
    if ours.dtype != plain.dtype:
        raise FuseError(f"the model returns {ours.dtype}, and the fused one {plain.dtype}")
    real = ours.is_floating_point() or ours.is_complex()
    size, far = max_abs(ours) if real else float(ours.numel()), distance(ours, plain)
    noise = largest(map(distance, (ours, plain), others)) * (OF_FLOAT32 if is_double and real else 1.0)
    step = torch.finfo(ours.dtype).eps * size if real else 0.0
    relative = far / size if size else (0.0 if far == 0 else math.inf)
    return Difference(name, far, relative, largest([noise, step]))


def _excess(row: Difference) -> float:
    return math.inf if not row.ok else row.max_abs / row.noise_floor if row.max_abs else 0.0
