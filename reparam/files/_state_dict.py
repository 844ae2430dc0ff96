"""Fuses a state dict without the code of its model."""

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
    """Fuse the blocks in a training state dict into the state dict of the authors' inference code, without a model.

    Blocks are recognized by their keys and fused in float64. Each fused weight is rounded once, to the dtype that the
    block had. Tensors outside blocks are passed through unchanged. If a block contains a tensor that its layout does
    not have, an error names it.

    These blocks are recognized:

    - the blocks of this library, in any network, and your own blocks if they consist of its branches. The result has
      the keys that `fuse` makes.
    - RepVGG, RepVGGplus, MobileOne, DBB, ACNet, OREPA, RepRLFN, EFDN, SESR
    - QARepVGG (of YOLOv6 and of super-gradients), including the batch norm after the sum
    - UniRepLKNet (both convolutions of a block)
    - ECBSR (the authors' code and BasicSR), RepSR (JL-DY's code and the port to HAT)
    - SPAN, RTMoSR and FlexNet, whose inference code keeps the branches: the fused convolution (`eval_conv` in SPAN) is
      computed again next to them
    - FMEN, including the batch norms of its attention
    - PlainUSR, including the gate; its extra 1x1 convolution stays

    What the keys do not say is an argument. Each takes one value, or a dict from shell patterns of block names to
    values. If the result depends on an argument without a default, and it is not given, an error asks for it.

    Args:
        state_dict: tensors by key, without a wrapper such as `params`.
        eps: eps of the batch norms. The default is torch's 1e-5, except for QARepVGG, which needs this argument because
            YOLOv6 and super-gradients use 1e-3.
        identity: whether blocks have an identity where their channels match. By default, as in the papers, ECBSR and
            EFDN have none (their `with_idt`), and RepSR and SESR have one. Needed for QARepVGG, where it depends on the
            stride, and for our blocks if their identity has no tensors.
        groups: the number of channel groups; needed if an identity depends on it.
        dilations: dilations of the small kernels inside a larger one, in the order of the branches; needed for our
            `DilatedReparamBlock` and other blocks with small kernels.
        bias: whether our blocks have a bias; False if they were built with `bias=False`.
        with_13: whether EFDN's blocks use their 1x1-3x3 path, whose keys are present either way.
        pool: whether blocks have an average pool without tensors of its own; needed for YOLOv6's QARepVGG, where only
            V2 has it, and for our blocks.

    Returns:
        A new dict. Tensors that are not fused are the tensors of `state_dict` themselves, not copies.

    Raises:
        CheckpointError: if no block is recognized; if a block lacks a tensor, has one too many or one of another shape;
            if a tensor has values that are not finite, or a variance below zero; or if an argument is needed.
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
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(
            f"expected a state dict, but got a {type(state_dict).__name__}: fuse takes models, fuse_file takes files"
        )
    blocks = find_blocks_in(state_dict, Options(eps, identity, groups, dilations, bias, with_13, pool))
    if not blocks:
        raise CheckpointError(f"found no block to fuse; {looked_for(state_dict)}")
    return fuse_found(state_dict, blocks)


def fuse_found(state_dict: Mapping[str, Tensor], blocks: Sequence[FoundBlock]) -> dict[str, Tensor]:
    """The state dict with each block that `find_blocks_in` found replaced by its convolution."""
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
    """Raise a CheckpointError that names the tensors from which no kernel can be computed."""
    if problems := [f"{key!r}: {why}" for key, why in unsound(tensors).items()]:
        more = f", and {len(problems) - 3} more such tensors" if len(problems) > 3 else ""
        raise CheckpointError("; ".join(problems[:3]) + more)
