"""Fusing a state dict without the code that it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor

from ..bn._norm import norms
from ..branches import Branch
from ..errors import CheckpointError, FuseError
from ..modules._sound import unsound
from ._layouts import LAYOUTS, OWN, Layout, Names, Options, Part, own_blocks
from ._layouts.base import PerBlock
from ._tensor_files import some_keys

_NOTHING_TOLD = Options()


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
    kind: str
    """What it is called, in reports."""

    def kernel_keys(self) -> dict[str, str]:
        """Keys of the convolution in the state dict, by those of an `nn.Conv2d`."""
        keys = ("weight", "bias") if self.block.spec.bias else ("weight",)
        return {key: f"{self.fused}.{key}".removeprefix(".") for key in keys}


def find_blocks_in(state_dict: Mapping[str, Tensor], options: Options = _NOTHING_TOLD) -> list[FoundBlock]:
    """The blocks of a state dict, recognised by their keys; options and errors are those of `fuse_state_dict`."""
    found = []
    for name, layout, part in parts_in(state_dict, options):
        prefix = f"{name}." if name else ""
        inside = _inside(state_dict, prefix)
        with _named(name, layout):
            block = _filled(part, inside)
        set_eps(block, options.at(name).eps)
        used = tuple(prefix + key for key in inside if translate(part.names, key) is not None)
        found.append(
            FoundBlock(name, layout, block, f"{prefix}{part.fused}".removesuffix("."), used, part.kind or layout.name)
        )
    _check_nothing_is_left(state_dict, found)
    return found


def parts_in(state_dict: Mapping[str, Tensor], options: Options) -> Iterator[tuple[str, Layout, Part]]:
    """The blocks of a state dict, not yet built, with their dotted names.

    Raises:
        CheckpointError: if the shapes make up no block.
    """
    for prefix, layout in recognised(state_dict):
        name = prefix.removesuffix(".")
        with _named(name, layout):
            parts = layout.parts(_inside(state_dict, prefix), options.at(name))
        for part in parts:
            yield name, layout, part


def _check_nothing_is_left(state_dict: Mapping[str, Tensor], found: Sequence[FoundBlock]) -> None:
    """All or nothing: every key under a block's name is its own or known to stay, and no fused tensor becomes stale.

    Raises:
        CheckpointError: for keys that nobody accounts for, each named.
    """
    used = {key for block in found for key in (*block.keys, *block.kernel_keys().values())}
    for name, kind, layout in dict.fromkeys((block.name, block.kind, block.layout) for block in found):
        prefix = f"{name}." if name else ""
        inside = {key: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
        kept = tuple(f"{prefix}{module}." for module in layout.beside)
        if strangers := {key: t for key, t in inside.items() if key not in used and not key.startswith(kept)}:
            raise CheckpointError(
                f"{_place(name)} has the keys of {kind}, but more: {some_keys(strangers)}. It is another block "
                "than the one that is known; fuse it with its own code, or as a model with reparam.fuse"
            )
        _check_is_whole(state_dict, name, layout)


def _check_is_whole(state_dict: Mapping[str, Tensor], name: str, layout: Layout) -> None:
    """Refuses a block of which the authors keep or fuse more, in a block around it that is not known."""
    outer = name.rpartition(".")[0]
    beside = list(_inside(state_dict, f"{outer}." if outer else ""))
    marks = [next((key for key in beside if fnmatch(key, pattern)), None) for pattern in layout.inside_of]
    if marks and all(marks):
        raise CheckpointError(
            f"{_place(name)} has the keys of {layout.name}, but is part of {_place(outer)}, which its authors fuse as "
            f"a whole ({', '.join(map(repr, marks))} too), and which is not known here; fuse it with its own code"
        )


@contextmanager
def _named(name: str, layout: Layout) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # shapes that anyone may have written run torch into anything
        raise CheckpointError(f"{_place(name)} has the keys of {layout.name}, but cannot be used: {error}") from error


def _place(name: str) -> str:
    return f"the block {name!r}" if name else "the state dict"


def _inside(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}


def fuse_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    eps: PerBlock[float] = None,
    identity: PerBlock[bool] = None,
    groups: PerBlock[int] = None,
    dilations: PerBlock[Sequence[int]] = None,
    bias: PerBlock[bool] = True,
    with_13: PerBlock[bool] = False,
    pool: PerBlock[bool] = None,
) -> dict[str, Tensor]:
    """Turns a state dict from training into the one of the authors' inference code, without any model.

    Blocks are recognised by their keys and computed in float64; each fused weight is rounded once, to the dtype that it
    had. Everything that is not a block goes through as it is; a tensor that nobody accounts for inside of a block is
    refused by name.

    Recognised are the blocks of this library, of any network, as `fuse` makes them, those of one's own too if they
    consist of its branches; and the blocks of RepVGG, RepVGGplus, MobileOne, DBB, ACNet, OREPA, QARepVGG (of YOLOv6 and
    of super-gradients; the batch norm after the sum is taken in), UniRepLKNet's dilated block, ECBSR (the authors' and
    BasicSR's), RepSR (JL-DY's code and the port to HAT), SESR, SPAN (where the branches stay and `eval_conv` is
    computed anew), FMEN with the batch norms of its attention, EFDN, and PlainUSR (the gate too; its further 1x1 is
    left as it is).

    What no key tells is an argument: one value, or values by shell pattern of the block's name. Where the result
    depends on one that is not given, it is asked for, but for the defaults that are named here.

    Args:
        state_dict: tensors by key; a wrapper such as `params` must be off.
        eps: of the batch norms; torch's 1e-5, but asked for of QARepVGG, as YOLOv6 and super-gradients take 1e-3.
        identity: whether blocks have an identity where their channels match. The papers' defaults are: none in ECBSR
            and EFDN (their `with_idt`), one in RepSR and SESR. Asked for of QARepVGG, where the stride decides, and of
            our blocks with an identity that has no tensors.
        groups: of the channels; asked for where an identity depends on it.
        dilations: of small kernels inside of a larger one, in taps of that, in the order of the branches; asked for of
            our `DilatedReparamBlock` and its like.
        bias: of our blocks; False if they were built with `bias=False`.
        with_13: whether EFDN's blocks use their 1x1-3x3 path, the keys of which are there in any case.
        pool: whether blocks have an average pool that has no tensors of its own: asked for of YOLOv6's QARepVGG, where
            only V2 has it, and of our blocks.

    Returns:
        A new dict; tensors that are not fused are those of `state_dict` themselves.

    Raises:
        CheckpointError: if no block is recognised, or one lacks a tensor, has one of another shape or one too many,
            numbers that are not finite or a variance below zero, or something must be told that is not.
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
    blocks = find_blocks_in(state_dict, Options(eps, identity, groups, dilations, bias, with_13, pool))
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
    dtype = next(state_dict[key].dtype for key in block.keys if state_dict[key].dim() > 2)
    try:
        conv = block.block.to_conv().state_dict()
    except FuseError as error:
        raise FuseError(f"block {block.name!r} ({block.kind}): {error}") from error
    fused = {theirs: conv[key].to(dtype) for key, theirs in block.kernel_keys().items()}
    for key, why in unsound(fused).items():
        raise FuseError(
            f"block {block.name!r} ({block.kind}) cannot be fused in {dtype}: of {key!r}, "
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
    kinds = dict.fromkeys(f"{layout.name} ({layout.marks[0]})" for layout in (*LAYOUTS, OWN))
    return f"looked for keys of {', '.join(kinds)}; found {len(state_dict)} keys: {some_keys(state_dict)}"


def recognised(state_dict: Mapping[str, Tensor]) -> Iterator[tuple[str, Layout]]:
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
    for prefix in own_blocks(state_dict):
        yield prefix, OWN


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


def set_eps(block: Branch, eps: float | None) -> None:
    """Gives the batch norms of a block the eps that is meant for them, if any."""
    for _, bn in norms(block):
        bn.eps = bn.eps if eps is None else eps
