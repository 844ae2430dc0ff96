"""Fusing a state dict without the code that it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..errors import CheckpointError, FuseError
from ..modules._sound import unsound
from ._found_blocks import FoundBlock, find_blocks_in, looked_for
from ._layouts import Options
from ._layouts.base import PerBlock


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
    of super-gradients; the batch norm after the sum is taken in), UniRepLKNet (both convolutions of a block), RepRLFN,
    ECBSR (the authors' and BasicSR's), RepSR (JL-DY's code and the port to HAT), SESR, SPAN (where the branches stay
    and `eval_conv` is computed anew), RTMoSR and FlexNet (likewise), FMEN with the batch norms of its attention, EFDN,
    and PlainUSR (the gate too; its further 1x1 is left as it is).

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
        >>> import torch
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
    dtype = next(state_dict[key].dtype for key in block.keys if state_dict[key].dim() > 1)
    try:
        conv = block.block.to_conv().state_dict()
    except FuseError as error:
        raise FuseError(f"block {block.name!r} ({block.kind}): {error}") from error
    fused = {theirs: conv[key].to(dtype) for key, theirs in block.kernel_keys().items()}
    for key in fused.keys() & state_dict.keys():
        if state_dict[key].dim() == 2:  # a linear layer
            fused[key] = fused[key].flatten(1)
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
