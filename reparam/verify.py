"""How far a fused model is from the model that it came from, in numbers."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .block import set_fold
from .branches import Branch
from .errors import FuseError
from .foreign import find_foreign, foreign_block
from .fuse import unwrap
from .inspect import find_blocks
from .precision import float64_device, in_float64, module_in_float64


@dataclass(frozen=True)
class Difference:
    """Two outputs compared, max over all values."""

    name: str
    """Dotted name of the block; empty for the whole model."""
    max_abs: float
    """max |fused - model|, in the units of the output."""
    relative: float
    """The same over max |model|."""
    noise_floor: float
    """What rounding alone does to either model: max |y - y in float64| of both, and at least one rounding step."""

    @property
    def ok(self) -> bool:
        """Whether fusing changed no more than rounding does, within a factor of ten."""
        return self.max_abs <= 10 * self.noise_floor


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`; printed, it is a table."""

    blocks: tuple[Difference, ...]
    """Each block on the input that it got in the model."""
    total: Difference
    """The whole model, end to end."""
    unreached: tuple[str, ...]
    """Blocks that the inputs did not lead through; nothing is known of them."""

    @property
    def ok(self) -> bool:
        """Whether everything was reached and differs by no more than rounding."""
        return not self.unreached and self.total.ok and all(block.ok for block in self.blocks)

    def __str__(self) -> str:
        rows = [*self.blocks, self.total]
        width = max(len("end to end"), *(len(row.name) for row in rows))
        lines = [f"{'':{width}}  {'max abs':>9}  {'relative':>9}  {'noise floor':>11}"]
        lines += [
            f"{row.name or 'end to end':{width}}  {row.max_abs:9.2e}  {row.relative:9.2e}  {row.noise_floor:11.2e}"
            + ("" if row.ok else "  LARGER THAN ROUNDING")
            for row in rows
        ]
        return "\n".join(lines + [f"{name:{width}}  not reached by these inputs" for name in self.unreached])


@torch.no_grad()
def verify(model: nn.Module, fused: nn.Module, *inputs: Any) -> VerifyReport:
    """Compares a model with its fused form, block by block and end to end.

    Everything runs on copies in eval mode; neither model is changed.

    Args:
        model: the model with blocks, ours or foreign, in any mode. Batch norms outside of blocks are compared end to
            end only.
        fused: what `fuse` made of it, with the same dotted names.
        *inputs: the arguments of one forward, tensors in the dtype and on the device of the model.

    Returns:
        Maximal absolute and relative differences, and the floor that rounding sets.

    Raises:
        FuseError: if nothing of `model` was fused, or `fused` lacks what belongs to a block.

    Example:
        >>> from reparam import ECB, fuse
        >>> net = nn.Sequential(ECB(3, 8), nn.PReLU(8), ECB(8, 3))
        >>> verify(net, fuse(net), torch.rand(1, 3, 16, 16)).ok
        True
    """
    ours, plain = (copy.deepcopy(unwrap(m)).eval() for m in (model, fused))
    set_fold(ours, False)  # run the branches: a folded block would be compared with itself
    blocks: dict[str, nn.Module] = {**find_blocks(ours)}
    blocks |= {name: block.module for name, block in find_foreign(ours).items()}
    if not blocks and _kinds(ours) == _kinds(plain):
        raise FuseError(f"found no block to verify in {type(ours).__name__}; pass the unfused model first")
    partners = {name: _partner(plain, name) for name in blocks}
    with _recorded(blocks) as seen:
        output = ours(*inputs)
    differences = []
    for name, block in blocks.items():
        exact, exact_conv = (module_in_float64(copy.deepcopy(module)) for module in (block, partners[name]))
        runs = [(block(x), partners[name](x), exact(in_float64(x)), exact_conv(in_float64(x))) for x in seen[name]]
        if runs:
            differences.append(_difference(name, *zip(*runs)))
    outputs = (output, plain(*inputs))
    exact_inputs = tree_map(_double, inputs)
    total = _difference("", *outputs, *(module_in_float64(m)(*exact_inputs) for m in (ours, plain)))
    return VerifyReport(tuple(differences), total, tuple(name for name in blocks if not seen[name]))


def _kinds(model: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in model.named_modules()]


def _partner(plain: nn.Module, name: str) -> nn.Module:
    try:
        module = plain.get_submodule(name)
    except AttributeError:
        module = None
    if module is None or isinstance(module, Branch) or foreign_block(module):
        came = "nothing" if module is None else type(module).__name__
        raise FuseError(f"expected the fused model to hold a plain convolution at {name!r}, but found {came}")
    return module


@contextmanager
def _recorded(blocks: dict[str, Any]) -> Iterator[dict[str, list[Tensor]]]:
    """Collects the inputs of each block while it lasts."""
    seen: dict[str, list[Tensor]] = {name: [] for name in blocks}
    hooks = [
        block.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].clone()))
        for name, block in blocks.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _double(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return in_float64(value) if value.is_floating_point() else value.to(float64_device(value.device))


def _difference(name: str, ours: Any, plain: Any, ours_exact: Any, plain_exact: Any) -> Difference:
    """Compares outputs, which are tensors or any nesting of them."""
    sides = (tree_leaves(side) for side in (ours, plain, ours_exact, plain_exact))
    leaves = list(zip(*([leaf for leaf in side if isinstance(leaf, Tensor)] for side in sides)))
    size = max(_max_abs(a) for a, *_ in leaves)
    max_abs = max(_distance(a, b) for a, b, *_ in leaves)
    step = max(torch.finfo(a.dtype).eps for a, *_ in leaves) * size
    noise = max(max(_distance(a, c), _distance(b, d)) for a, b, c, d in leaves)
    relative = max_abs / size if size else (0.0 if max_abs == 0 else math.inf)
    return Difference(name, max_abs, relative, max(noise, step))


def _distance(a: Tensor, b: Tensor) -> float:
    return _max_abs(in_float64(a) - in_float64(b))


def _max_abs(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0
