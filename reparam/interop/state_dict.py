"""Fusing a state dict without the code that it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor

from ..branches import Branch
from ..errors import CheckpointError, FuseError
from ..norm import norms
from ..sound import unsound
from .files import some_keys
from .layouts import LAYOUTS, Layout, Names, Options, Part


@dataclass(frozen=True)
class FoundBlock:
    """A block of a state dict."""

    name: str
    """Dotted name of the module in the authors' code; empty for a block on its own."""
    layout: Layout
    block: Branch
    """Ours, with the weights in, in float64 and eval mode."""
    fused: str
    """Dotted name of the convolution in the authors' inference code."""
    keys: tuple[str, ...]
    """Of its tensors in the state dict."""

    def kernel_keys(self) -> dict[str, str]:
        """Keys of the convolution in the state dict, by those of an `nn.Conv2d`."""
        return {key: f"{self.fused}.{key}".removeprefix(".") for key in ("weight", "bias")}


def find_blocks_in(
    state_dict: Mapping[str, Tensor],
    *,
    eps: float | Mapping[str, float] | None = None,
    identity: bool | None = None,
    with_13: bool = False,
    pool: bool = False,
) -> list[FoundBlock]:
    """The blocks of a state dict, recognised by their keys; arguments and errors are those of `fuse_state_dict`."""
    found = []
    for name, layout, part in parts_in(state_dict, Options(identity, with_13, pool)):
        prefix = f"{name}." if name else ""
        inside = _inside(state_dict, prefix)
        with _named(name, layout):
            block = _filled(part, inside)
        set_eps(block, eps, name)
        used = tuple(prefix + key for key in inside if translate(part.names, key) is not None)
        found.append(FoundBlock(name, layout, block, f"{prefix}{part.fused}".removesuffix("."), used))
    return found


def parts_in(state_dict: Mapping[str, Tensor], options: Options) -> Iterator[tuple[str, Layout, Part]]:
    """The blocks of a state dict, not yet built, with their dotted names.

    Raises:
        CheckpointError: if the shapes make up no block.
    """
    for prefix, layout in _recognised(state_dict):
        name = prefix.removesuffix(".")
        with _named(name, layout):
            parts = layout.parts(_inside(state_dict, prefix), options)
        for part in parts:
            yield name, layout, part


@contextmanager
def _named(name: str, layout: Layout) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # shapes that anyone may have written run torch into anything
        where = f"the block {name!r}" if name else "the state dict"
        raise CheckpointError(f"{where} has the keys of {layout.name}, but cannot be used: {error}") from error


def _inside(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}


def fuse_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    eps: float | Mapping[str, float] | None = None,
    identity: bool | None = None,
    with_13: bool = False,
    pool: bool = False,
) -> dict[str, Tensor]:
    """Turns a state dict from training into the one of the authors' inference code, without any model.

    Blocks are recognised by their keys and computed in float64; each fused weight is rounded once, to the dtype that it
    had. Everything that is not a block goes through as it is.

    Recognised are the blocks of RepVGG, RepVGGplus, MobileOne, DBB, ACNet, OREPA, QARepVGG (of YOLOv6 and of
    super-gradients; the batch norm after the sum is taken in), UniRepLKNet, ECBSR (the authors' and BasicSR's), RepSR
    (JL-DY's code and the port to HAT), SESR, SPAN (where the branches stay and `eval_conv` is computed anew), FMEN with
    the batch norms of its attention, EFDN, and PlainUSR (the gate too; its further 1x1 is left as it is).

    Args:
        state_dict: tensors by key; a wrapper such as `params` must be off.
        eps: of the batch norms, where it is not torch's 1e-5, which no state dict tells: one number, or numbers by
            shell pattern of the block's name.
        identity: whether blocks whose keys do not show it have an identity where their channels match. None is
            the papers' default: none in ECBSR and EFDN (their `with_idt`), one in RepSR, SESR and QARepVGG.
        with_13: whether EFDN's blocks use their 1x1-3x3 path, the keys of which are there in any case.
        pool: whether QARepVGG's blocks have an average pool where they have an identity (YOLOv6's QARepVGGBlockV2).

    Returns:
        A new dict; tensors that are not fused are those of `state_dict` themselves.

    Raises:
        CheckpointError: if no block is recognised, or one lacks a tensor, has one of another shape, or numbers that are
            not finite or a variance below zero.
        FuseError: if a batch norm never saw a batch, or a fused kernel is too large for the dtype.

    Example:
        >>> conv, bn = torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8)
        >>> point, point_bn = torch.nn.Conv2d(3, 8, 1, bias=False), torch.nn.BatchNorm2d(8)
        >>> parts = {"rbr_dense.conv": conv, "rbr_dense.bn": bn, "rbr_1x1.conv": point, "rbr_1x1.bn": point_bn}
        >>> _ = [norm.num_batches_tracked.fill_(1) for norm in (bn, point_bn)]
        >>> sd = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
        >>> sorted(fuse_state_dict(sd))
        ['rbr_reparam.bias', 'rbr_reparam.weight']
    """
    blocks = find_blocks_in(state_dict, eps=eps, identity=identity, with_13=with_13, pool=pool)
    if not blocks:
        raise CheckpointError(f"found no block to fuse; {looked_for(state_dict)}")
    return fuse_found(state_dict, blocks)


def fuse_found(state_dict: Mapping[str, Tensor], blocks: Sequence[FoundBlock]) -> dict[str, Tensor]:
    """The state dict with each of its blocks, as `find_blocks_in` found them, fused in its place."""
    refuse_unsound({key: state_dict[key] for block in blocks for key in block.keys})
    starts = {block.keys[0]: block for block in blocks}
    dropped = {key for block in blocks if not block.layout.keeps for key in block.keys}
    fused: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if key not in dropped:
            fused.setdefault(key, tensor)
        if key in starts:
            fused |= _fused(starts[key], state_dict)
    return fused


def _fused(block: FoundBlock, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The convolution of a block, in the dtype of its first kernel."""
    dtype = next(state_dict[key].dtype for key in block.keys if state_dict[key].dim() == 4)
    try:
        conv = block.block.to_conv().state_dict()
    except FuseError as error:
        raise FuseError(f"block {block.name!r} ({block.layout.name}): {error}") from error
    fused = {theirs: conv[key].to(dtype) for key, theirs in block.kernel_keys().items()}
    for key, why in unsound(fused).items():
        raise FuseError(
            f"block {block.name!r} ({block.layout.name}) cannot be fused in {dtype}: of {key!r}, "
            f"{why.partition(';')[0]}; it is too large, so convert the file to float32 first"
        )
    return fused


def refuse_unsound(tensors: Mapping[str, Tensor]) -> None:
    """Raises a CheckpointError that names the tensors of which no kernel can be made."""
    if problems := [f"{key!r}: {why}" for key, why in unsound(tensors).items()]:
        more = f", and {len(problems) - 3} more such tensors" if len(problems) > 3 else ""
        raise CheckpointError("; ".join(problems[:3]) + more)


def looked_for(state_dict: Mapping[str, Tensor]) -> str:
    """What the keys were compared with, and what they are."""
    kinds = dict.fromkeys(f"{layout.name} ({layout.marks[0]})" for layout in LAYOUTS)
    return f"looked for keys of {', '.join(kinds)}; found {len(state_dict)} keys: {some_keys(state_dict)}"


def _recognised(state_dict: Mapping[str, Tensor]) -> Iterator[tuple[str, Layout]]:
    """The prefix of every block, and its layout: the first whose marks are all there."""
    taken: set[str] = set()
    for layout in LAYOUTS:
        mark, *others = layout.marks
        for key in state_dict:
            prefix = key.removesuffix(mark)
            if prefix == key or prefix in taken or (prefix and not prefix.endswith(".")):
                continue
            if all(prefix + other in state_dict for other in others):
                taken.add(prefix)
                yield prefix, layout


def translate(names: Names, key: str) -> str | None:
    """Our name of an official key; "" for one that the function does not depend on, None for a stranger."""
    start = key
    while start not in names:
        start, dot, _ = start.rpartition(".")
        if not dot:
            return None
    ours = names[start]
    return "" if ours is None else ours + key[len(start) :]


def _filled(part: Part, tensors: Mapping[str, Tensor]) -> Branch:
    """The block of a part with its weights in, in float64 and eval mode."""
    with torch.device("meta"):  # shapes are compared first, so that a wrong one costs no memory
        wanted = part.block().double().state_dict()
    for key, tensor in part.given.items():
        if key not in wanted or tensor.shape != wanted[key].shape:
            expected = tuple(wanted[key].shape) if key in wanted else "none"
            raise CheckpointError(f"{key!r} would get shape {tuple(tensor.shape)}, but {expected} was expected")
    renamed = {key: tensor for key, tensor in wanted.items() if key not in part.given}
    known = {key: tensor for key, tensor in tensors.items() if translate(part.names, key) is not None}
    biases = {key for key in wanted if key.endswith(".bias") and f"{key[:-4]}running_var" not in wanted}
    if biases.isdisjoint(translate(part.names, key) for key in known):  # a variant of the block without biases
        theirs = {translate(turned(part.names), key) or key: wanted[key] for key in biases}
        known |= {key: torch.zeros_like(tensor, device="cpu") for key, tensor in theirs.items()}
    ours = matched(renamed, known, part.names)
    block = part.block().double().eval()
    block.load_state_dict({**ours, **part.given})
    return block


def matched(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Foreign tensors under our names: every wanted one, in its shape, and no other.

    Raises:
        CheckpointError: for the first key that belongs nowhere, has another shape or no real numbers, or is missing.
    """
    given: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        ours = translate(names, key)
        if ours == "":
            continue
        if ours is None or ours not in wanted or ours in given:
            raise CheckpointError(f"{key!r} of shape {tuple(tensor.shape)} belongs nowhere")
        if tensor.shape != wanted[ours].shape:
            came, expected = tuple(tensor.shape), tuple(wanted[ours].shape)
            raise CheckpointError(f"{key!r} has shape {came}, but {expected} was expected")
        if wanted[ours].is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError(f"{key!r} has dtype {tensor.dtype}, but {wanted[ours].dtype} was expected")
        given[ours] = tensor
    for key, tensor in wanted.items():
        if key not in given and key.endswith("num_batches_tracked"):  # from before torch counted them
            given[key] = torch.ones((), dtype=torch.long)
        if key not in given:
            theirs = translate(turned(names), key) or key
            raise CheckpointError(f"{theirs!r} of shape {tuple(tensor.shape)} is missing")
    return given


def turned(names: Names) -> Names:
    """Ours to official."""
    return {ours: official for official, ours in names.items() if ours}


def set_eps(block: Branch, eps: float | Mapping[str, float] | None, name: str) -> None:
    """Gives the batch norms of a block of this name the eps that is meant for them, if any."""
    if isinstance(eps, Mapping):
        eps = next((value for pattern, value in eps.items() if fnmatch(name, pattern)), None)
    for _, bn in norms(block):
        bn.eps = bn.eps if eps is None else eps
