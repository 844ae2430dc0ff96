"""The kernels of all blocks of a network at once.

The algebra of kernels needs no image. Branches that are alike, of one block or of many, have the same algebra on other
numbers: so one pass computes all their kernels, with as many launches as for one.

    block 0   expand-squeeze a, b, identity        0a 0b
    block 1   expand-squeeze a, b, identity   ->   1a 1b   ->   0a 0b 1a 1b 2a 2b   ->   one pass, a sum by block
    block 2   expand-squeeze a, b, identity        2a 2b

Our chains of layers lie side by side, as the groups of one convolution; what somebody else wrote runs batched.

It happens when the forward of the network begins, in a hook on it, and counts until that forward ends, so that no block
can meet a kernel of other weights than its own. The networks of this library have the hook from the start, `swap_convs`
and `set_fold` put it on others. Where such a network is part of another one, each block belongs to the innermost one
around it, which runs whoever calls it. Each block computes its own kernel as ever where it is on batch statistics,
whose kernels follow from its input; where it is not read, or its parameters have changed since; under a compiler, which
sees one graph anyway; without gradients; and under the transforms of `torch.func`.
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
    """Branches that are alike, so many of each block, block by block."""

    def __init__(self, branches: list[Any], blocks: int) -> None:
        self.branches, self.each = branches, len(branches) // blocks
        self._places = list(zip(*map(places_in, branches)))  # of one tensor in all branches
        self._chain = _widened(branches[0])

    def kernels(self, reached: Reached) -> Kernel:
        """Their sums by block, (blocks, out, in / groups, *size) and (blocks, out)."""
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
        """Whether the numbers are here now, and of one dtype; a later step may find them so."""
        for places in self._places:
            tensors = [table[name] for table, name in places]
            if len({tensor.dtype for tensor in tensors}) > 1 or not all(map(is_all_here, tensors)):
                return False
        return True

    def _as_groups(self, first: ChainBranch, stacks: Sequence[Tensor]) -> Kernel:
        """As one convolution, of which each branch is a group or more."""
        count = len(self.branches)
        with self._in_place([tensor.flatten(0, 1) for tensor in stacks]):
            kernel = first.kernels_side_by_side(count)
        return Kernel(*(tensor.unflatten(0, (count, -1)) for tensor in kernel))

    def _one(self, *tensors: Tensor) -> Kernel:
        """What the first one does, whatever that is; for a batched run."""
        with self._in_place(tensors):
            return self.branches[0].kernel_with(stored_scale_shift)

    @contextmanager
    def _in_place(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Puts tensors in the places of those of the first branch."""
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
    """The branch, if more of it can lie side by side."""
    if not isinstance(branch, ChainBranch) or type(branch).kernel_with is not ChainBranch.kernel_with:
        return None
    return branch if branch.can_lie_side_by_side() else None


class _Group:
    """Blocks that are alike."""

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
        """Gives each block its kernel; where that fails, each will do it itself, and say what is wrong."""
        if self._failed or not all(kind.can_be_stacked() for kind in self._kinds):
            return
        try:
            self._compute()
        except Exception:  # of a kernel that somebody wrote, which batches do not take
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
    """Which blocks of a network are alike, and what tells whether they still are.

    A block decides whether to fold by how many there are of its kind, and not by how many did so last, which would
    follow from what they decided.
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
        """Gives their kernels to the blocks that want them."""
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
    """What is known of a network between two steps; no part of its copies and pickles."""

    def __init__(self) -> None:
        self._plan: _Plan | None = None
        self._blocks: list[ReparamBlock] = []

    def __reduce__(self) -> tuple[type[AtOnce], tuple[()]]:
        return type(self), ()

    def open(self, root: nn.Module) -> None:
        """Computes the kernels of the blocks of a network that will want them, as far as is known."""
        self._blocks = list(dict.fromkeys(_blocks_of(root)))
        if not torch.is_grad_enabled():  # a forward before may yet be run again by its checkpoints
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
        """Leaves each block to itself."""
        _say_how_many(self._blocks, 1)

    def close(self) -> None:
        """Says that the forward is over."""
        for block in self._blocks:
            block._share.close()


def compute_at_once(model: nn.Module) -> None:
    """Makes a network compute the kernels of its blocks at once when its forward begins, if several may fold."""
    if isinstance(model, Branch) or sum(block.fold is not False for block in _blocks_of(model)) < 2:
        no_more_at_once(model)
    elif "_at_once" not in vars(model):
        vars(model)["_at_once"] = AtOnce()
        model.register_forward_pre_hook(_open)
        model.register_forward_hook(_close, always_call=True)


def no_more_at_once(model: nn.Module) -> None:
    """Undoes `compute_at_once`."""
    if at_once := vars(model).pop("_at_once", None):
        at_once.part()
    for table in (model._forward_pre_hooks, model._forward_hooks):
        for key in [key for key, hook in table.items() if hook in (_open, _close)]:
            del table[key]
            model._forward_hooks_always_called.pop(key, None)


def no_more_without_blocks(model: nn.Module) -> None:
    """Undoes `compute_at_once` in all parts of a model that have no blocks left."""
    for module in model.modules():
        if _open in module._forward_pre_hooks.values() and not any(True for _ in _blocks_of(module)):
            no_more_at_once(module)


@quiet
def _open(model: nn.Module, args: Any) -> None:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return
    if getattr(model, "_is_replica", False):  # DataParallel's, of which several run at a time
        return
    if at_once := vars(model).get("_at_once"):  # a layer that was put in the place of a model has its hooks only
        at_once.open(model)


@quiet
def _close(model: nn.Module, args: Any, output: Any) -> None:
    if not torch.compiler.is_compiling() and (at_once := vars(model).get("_at_once")):
        at_once.close()


def _blocks_of(module: nn.Module) -> Iterator[ReparamBlock]:
    """The outermost blocks inside, those left out that a network inside computes itself."""
    for inner in module._modules.values():
        if isinstance(inner, ReparamBlock):
            yield inner
        elif inner is not None and not isinstance(inner, Branch) and "_at_once" not in vars(inner):
            yield from _blocks_of(inner)


def _may_take_part(block: ReparamBlock) -> bool:
    """Whether a block may run as one convolution whose kernel no image is needed for."""
    if block.fold is False or block._forward_pre_hooks:
        return False
    if type(block).kernel_with is not ReparamBlock.kernel_with:
        return False
    return not any(uses_batch_stats(bn) for bn in block._inside.of(block).norms if bn is not block.norm)
