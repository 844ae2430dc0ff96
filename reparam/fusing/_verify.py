"""Measure how far a fused model is from the original model."""

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
    """A comparison of two outputs: of all their tensors, over all calls, the one that exceeds rounding most."""

    name: str
    """Dotted name of the block; empty for the whole model."""
    max_abs: float
    """max |fused - model|, in the units of the output; NaN if there is one; for integers, how many differ."""
    relative: float
    """`max_abs` divided by max |model|."""
    noise_floor: float
    """The error of rounding alone: max |y - y in float64| of both models, and at least one rounding step. For a model
    in float64, it is the error of rounding to float32, divided by 2^29."""

    @property
    def ok(self) -> bool:
        """Whether the difference is at most ten times that of rounding; False for NaN and overflow."""
        return self.max_abs <= 10 * self.noise_floor < math.inf


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`; prints as a table."""

    blocks: tuple[Difference, ...]
    """One row per block, on the input that it got in the model."""
    total: Difference
    """The whole model, end to end."""
    unreached: tuple[str, ...]
    """Blocks that did not run on these inputs; nothing is known of them."""
    left: tuple[str, ...] = ()
    """Blocks that are still in the fused model."""

    @property
    def ok(self) -> bool:
        """Whether every block ran and differs by no more than rounding."""
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
    """Compare a model with its fused form, block by block and end to end.

    Everything runs on copies, in eval mode and on copies of the inputs; models and inputs are not changed. Outputs may
    be tensors, or lists, dicts, dataclasses or objects that hold tensors.

    Args:
        model: the model with blocks, of this library or of other code, in any mode. Batch norms outside blocks are
            compared end to end only.
        plain: the result of `fuse(model)`, with the same dotted names.
        *inputs: positional arguments of one forward; tensors in the dtype and on the device of the model.
        **keywords: keyword arguments of the same forward, with any names.

    Returns:
        The largest absolute and relative differences, and the error that rounding alone causes.

    Raises:
        FuseError: if nothing of `model` was fused, if `plain` has no module in place of a block, or if the outputs
            differ in structure, shape or dtype or hold no values.

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
        raise FuseError(f"{what} in {type(ours).__name__}; pass the unfused model first and the fused model second")
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
        raise FuseError(
            f"expected the fused model to hold a module at {name!r}, but found nothing; pass what fuse(model) returned"
        ) from None


@contextmanager
def _recorded(blocks: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Inputs]]]:
    """Record the inputs of each block inside the context, before anything writes into them."""
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
    """For each call, the outputs of a block and its fused form, in their own precision and in another one."""
    for given in seen:
        yield [run(block, *given), run(partner, *given), *_in_other_precision(block, partner, given)]


def _in_other_precision(ours: nn.Module, plain: nn.Module, given: Inputs) -> list[Any]:
    """The outputs in float64; for models in float64, which is the highest precision, in float32."""
    dtype = torch.float32 if _is_double(ours) else torch.float64
    return [run_in(dtype, of_dtype(dtype, copy_module(model)), *given) for model in (ours, plain)]


def _is_double(model: nn.Module) -> bool:
    return any(tensor.dtype == torch.float64 for tensor in chain(model.parameters(), model.buffers()))


def _difference(name: str, runs: Iterable[list[Any]], is_double: bool) -> Difference:
    """Compare the outputs of the model and of the fused model, each also in another precision."""
    found = [_compared(name, tensors, is_double) for outputs in runs for _, tensors in tensors_of(*outputs)]
    if not found:
        raise FuseError(f"{f'block {name!r}' if name else 'the model'} returns no numbers that can be compared")
    return max(found, key=_excess)


def _compared(name: str, tensors: tuple[Tensor, ...], is_double: bool) -> Difference:
    ours, plain, *others = tensors
    if ours.dtype != plain.dtype:
        raise FuseError(f"the model returns {ours.dtype}, but the fused model returns {plain.dtype}")
    real = ours.is_floating_point() or ours.is_complex()
    size, far = max_abs(ours) if real else float(ours.numel()), distance(ours, plain)
    noise = largest(map(distance, (ours, plain), others)) * (OF_FLOAT32 if is_double and real else 1.0)
    step = torch.finfo(ours.dtype).eps * size if real else 0.0
    relative = far / size if size else (0.0 if far == 0 else math.inf)
    return Difference(name, far, relative, largest([noise, step]))


def _excess(row: Difference) -> float:
    return math.inf if not row.ok else row.max_abs / row.noise_floor if row.max_abs else 0.0
