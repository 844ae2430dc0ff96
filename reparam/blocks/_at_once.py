"""Compute the kernels of all blocks of a network at once.

The algebra of kernels needs no image. Identical branches, in one block or in many, have the same algebra with different
values. So one pass computes all their kernels, with as many launches as for a single one.

    block 0   expand-squeeze a, b, identity        0a 0b
    block 1   expand-squeeze a, b, identity   ->   1a 1b   ->   0a 0b 1a 1b 2a 2b   ->   one pass, a sum by block
    block 2   expand-squeeze a, b, identity        2a 2b

This library's chains of layers become the groups of one convolution; branches by others run batched, under `vmap`.

A hook on the network does this when its forward begins, and the kernels are valid until that forward ends. So no block
can get a kernel of outdated weights. The networks of this library have the hook from the start; `swap_convs` and
`set_fold` add it to others. If one such network is part of another, each block belongs to the innermost one around it,
because that one runs whoever calls it.

A block computes its own kernel in these cases: it uses batch statistics, which depend on its input; it has layers that
cannot be read; its parameters have changed since; under a compiler, which sees one graph anyway; without gradients; and
under the transforms of `torch.func`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from ..algebra import _kernels as kernels
from ..algebra._kernels import Kernel
from ..bn._norm import stored_scale_shift, uses_batch_stats
from ..branches import Branch
from ..branches._chain import ChainBranch
from ..branches._identity import is_plain, with_identities
from ..modules._hooks import quiet
from ..numerics._autocast import no_autocast
from ._alike import is_all_here, look, places_in
from ._block import ReparamBlock
from ._kept import same_attributes
from ._stacks import Lone, Reached, Stack, Unbind


class _Kind:
    """Identical branches, the same number from each block, block by block."""

    def __init__(self, branches: list[Any], blocks: int) -> None:
        self.branches, self.each = branches, len(branches) // blocks
        self._places = list(zip(*map(places_in, branches)))  # per tensor, its place in all branches
        self._chain = _widened(branches[0])

    def kernels(self, reached: Reached) -> Kernel:
        """The sums of their kernels per block, (blocks, out, in / groups, *size) and (blocks, out)."""
        count = len(self.branches)
        if count == 1:
            return Kernel(*(Lone.apply(reached, part) for part in self.branches[0].kernel_with(stored_scale_shift)))
        tensors = [table[name] for places in self._places for table, name in places]
        stacks = Stack.apply(reached, self.each, count, *tensors) if tensors else ()
        kernel = self._as_groups(self._chain, stacks) if self._chain else Kernel(*vmap(self._one)(*stacks))
        if self.each == 1:
            return kernel
        return Kernel(*(tensor.unflatten(0, (-1, self.each)).sum(1) for tensor in kernel))

    def can_be_stacked(self) -> bool:
        """Whether all values are in this process now and have one dtype; this may change from step to step."""
        for places in self._places:
            tensors = [table[name] for table, name in places]
            if len({tensor.dtype for tensor in tensors}) > 1 or not all(map(is_all_here, tensors)):
                return False
        return True

    def _as_groups(self, first: ChainBranch, stacks: Sequence[Tensor]) -> Kernel:
        """All kernels as one convolution, in which each branch is one or more groups."""
        count = len(self.branches)
        with self._in_place([tensor.flatten(0, 1) for tensor in stacks]):
            kernel = first.kernels_side_by_side(count)
        return Kernel(*(tensor.unflatten(0, (count, -1)) for tensor in kernel))

    def _one(self, *tensors: Tensor) -> Kernel:
        """The kernel of the first branch with other tensors; for a batched run."""
        with self._in_place(tensors):
            return self.branches[0].kernel_with(stored_scale_shift)

    @contextmanager
    def _in_place(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Put tensors in place of those of the first branch."""
        places = [of_all[0] for of_all in self._places]
        own = [table[name] for table, name in places]
        try:
            for (table, name), tensor in zip(places, tensors):
                table[name] = tensor
            yield
        finally:
            for (table, name), tensor in zip(places, own):
                table[name] = tensor


def _widened(branch: Branch) -> ChainBranch | None:
    """The branch, if several like it can be computed side by side; else None."""
    if not isinstance(branch, ChainBranch) or type(branch).kernel_with is not ChainBranch.kernel_with:
        return None
    return branch if branch.can_lie_side_by_side() else None


class _Group:
    """Identical blocks."""

    def __init__(self, blocks: list[ReparamBlock]) -> None:
        self.blocks = blocks
        kinds: dict[Hashable, list[int]] = {}
        for index, branch in enumerate(blocks[0].branches):
            if not is_plain(branch):
                kinds.setdefault(look(branch), []).append(index)
        self._identities = len(blocks[0].branches) - sum(map(len, kinds.values()))
        self._kinds = [
            _Kind([block.branches[index] for block in blocks for index in places], len(blocks))
            for places in kinds.values()
        ]
        self._places = [places_in(block) for block in blocks]
        self._failed = not kinds

    def compute(self) -> None:
        """Give each block its kernel; if that fails, each block computes its own and raises its own error."""
        if self._failed or not all(kind.can_be_stacked() for kind in self._kinds):
            return
        try:
            self._compute()
        except Exception:  # a user's kernel that cannot be batched
            self._failed = True
            _say_how_many(self.blocks, 1)

    def _compute(self) -> None:
        reached = Reached()
        parts = [kind.kernels(reached) for kind in self._kinds]
        total = parts[0] if len(parts) == 1 else Kernel(*vmap(kernels.add)(*parts))
        total = with_identities(total, self._identities, self.blocks[0].spec)
        each = Unbind.apply(reached, *total)
        for block, places, *kernel in zip(self.blocks, self._places, each, each[len(self.blocks) :]):
            block._share.give(Kernel(*kernel), places)


class _Plan:
    """Which blocks of a network are identical, with the data to check that they still are.

    A block decides whether to fold by the number of blocks of its kind, not by the number that folded last: that
    number depends on their decisions.
    """

    def __init__(self, blocks: list[ReparamBlock]) -> None:
        self.blocks = blocks
        self._modules = [module for block in blocks for module in block.modules()]
        self._attributes = [tuple(vars(module).values()) for module in self._modules]
        alike: dict[Hashable, list[ReparamBlock]] = {}
        for block in blocks:
            alike.setdefault((block.spec, *map(look, block.branches)), []).append(block)
        for group in alike.values():
            _say_how_many(group, len(group))
        self._alike, self._groups = list(alike.values()), dict[int, _Group]()

    def compute(self) -> None:
        """Give kernels to the blocks that want them."""
        for index, alike in enumerate(self._alike):
            if wanting := [block for block in alike if block._share.wanted]:
                if index not in self._groups or self._groups[index].blocks != wanting:
                    self._groups[index] = _Group(wanting)
                with no_autocast(wanting[0].like.device.type):
                    self._groups[index].compute()

    def is_current(self, blocks: list[ReparamBlock]) -> bool:
        return blocks == self.blocks and all(map(same_attributes, map(vars, self._modules), self._attributes))


def _say_how_many(blocks: list[ReparamBlock], count: int) -> None:
    for block in blocks:
        block._share.among = count


class AtOnce:
    """What is kept for a network between two steps; copies and pickles start without it."""

    def __init__(self) -> None:
        self._plan: _Plan | None = None
        self._blocks: list[ReparamBlock] = []

    def __reduce__(self) -> tuple[type[AtOnce], tuple[()]]:
        return type(self), ()

    def open(self, root: nn.Module) -> None:
        """Compute the kernels of the blocks that are expected to need them."""
        self._blocks = list(dict.fromkeys(_blocks_of(root)))
        if not torch.is_grad_enabled():  # checkpoints may still run an earlier forward again
            self.close()
            return
        for block in self._blocks:
            block._share.clear()
        blocks = [block for block in self._blocks if _may_take_part(block)]
        if self._plan is None or not self._plan.is_current(blocks):
            self.part()
            self._plan = _Plan(blocks)
        self._plan.compute()

    def part(self) -> None:
        """Make each block compute its own kernel."""
        _say_how_many(self._blocks, 1)

    def close(self) -> None:
        """Mark the forward as over."""
        for block in self._blocks:
            block._share.close()


def compute_at_once(model: nn.Module) -> None:
    """Make a network compute the kernels of its blocks at once when its forward begins, if several may fold."""
    if isinstance(model, Branch) or sum(block.fold is not False for block in _blocks_of(model)) < 2:
        no_more_at_once(model)
    elif "_at_once" not in vars(model):
        vars(model)["_at_once"] = AtOnce()
        model.register_forward_pre_hook(_open)
        model.register_forward_hook(_close, always_call=True)


def no_more_at_once(model: nn.Module) -> None:
    """Undo `compute_at_once`."""
    if at_once := vars(model).pop("_at_once", None):
        at_once.part()
    for table in (model._forward_pre_hooks, model._forward_hooks):
        for key in [key for key, hook in table.items() if hook in (_open, _close)]:
            del table[key]
            model._forward_hooks_always_called.pop(key, None)


def no_more_without_blocks(model: nn.Module) -> None:
    """Undo `compute_at_once` in all parts of a model that have no blocks left."""
    for module in model.modules():
        if _open in module._forward_pre_hooks.values() and not any(True for _ in _blocks_of(module)):
            no_more_at_once(module)


@quiet
def _open(model: nn.Module, args: Any) -> None:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return
    if getattr(model, "_is_replica", False):  # DataParallel runs several replicas at a time
        return
    if at_once := vars(model).get("_at_once"):  # a layer that replaced a model has only its hooks
        at_once.open(model)


@quiet
def _close(model: nn.Module, args: Any, output: Any) -> None:
    if not torch.compiler.is_compiling() and (at_once := vars(model).get("_at_once")):
        at_once.close()


def _blocks_of(module: nn.Module) -> Iterator[ReparamBlock]:
    """The outermost blocks inside, except those that belong to an inner network with its own hook."""
    for inner in module._modules.values():
        if isinstance(inner, ReparamBlock):
            yield inner
        elif inner is not None and not isinstance(inner, Branch) and "_at_once" not in vars(inner):
            yield from _blocks_of(inner)


def _may_take_part(block: ReparamBlock) -> bool:
    """Whether a block may run as one convolution whose kernel does not depend on the input."""
    if block.fold is False or block._forward_pre_hooks:
        return False
    if type(block).kernel_with is not ReparamBlock.kernel_with:
        return False
    return not any(uses_batch_stats(bn) for bn in block._inside.of(block).norms if bn is not block.norm)
