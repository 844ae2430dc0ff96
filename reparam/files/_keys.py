"""Renames official keys to ours, and compares every shape."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..branches import Branch
from ..errors import CheckpointError
from ._layouts import Names, Part


def translate(names: Names, key: str) -> str | None:
    """Our name for an official key; "" for a tensor that does not affect the output, None for an unknown key."""
    start = key
    while start not in names:
        start, dot, _ = start.rpartition(".")
        if not dot:
            return None
    ours = names[start]
    return "" if ours is None else ours + key[len(start) :]


def matched(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Foreign tensors under our names: every wanted tensor, in its shape, and no others.

    Raises:
        CheckpointError: for the first key that is not expected, has another shape or dtype, or is missing.
    """
    given: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        ours = translate(names, key)
        if ours == "":
            continue
        if ours is None or ours not in wanted or ours in given:
            raise CheckpointError(f"{key!r} of shape {tuple(tensor.shape)} is unexpected")
        if tensor.shape != wanted[ours].shape:
            came, expected = tuple(tensor.shape), tuple(wanted[ours].shape)
            raise CheckpointError(f"{key!r} has shape {came}, but {expected} was expected")
        if wanted[ours].is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError(f"{key!r} has dtype {tensor.dtype}, but {wanted[ours].dtype} was expected")
        given[ours] = tensor
    for key, tensor in wanted.items():
        if key not in given and key.endswith("num_batches_tracked"):  # files from before torch counted batches
            given[key] = torch.ones((), dtype=torch.long)
        if key not in given:
            theirs = translate(turned(names), key) or key
            raise CheckpointError(f"{theirs!r} of shape {tuple(tensor.shape)} is missing")
    return given


def turned(names: Names) -> Names:
    """The inverse: our names to the official ones."""
    return {ours: official for official, ours in names.items() if ours}


def filled(part: Part, tensors: Mapping[str, Tensor]) -> Branch:
    """The block of a part with its weights loaded, in float64 and eval mode."""
    with torch.device("meta"):  # shapes are compared first, so that a wrong one costs no memory
        wanted = part.block().double().state_dict()
    for key, tensor in part.given.items():
        if key not in wanted or tensor.shape != wanted[key].shape:
            expected = tuple(wanted[key].shape) if key in wanted else "none"
            raise CheckpointError(f"{key!r} would get shape {tuple(tensor.shape)}, but {expected} was expected")
    renamed = {key: tensor for key, tensor in wanted.items() if key not in part.given}
    known = {key: tensor for key, tensor in tensors.items() if translate(part.names, key) is not None}
    biases = {key for key in renamed if key.endswith(".bias") and f"{key[:-4]}running_var" not in wanted}
    if biases.isdisjoint(translate(part.names, key) for key in known):  # a variant of the block without biases
        theirs = {translate(turned(part.names), key) or key: wanted[key] for key in biases}
        known |= {key: torch.zeros_like(tensor, device="cpu") for key, tensor in theirs.items()}
    ours = matched(renamed, known, part.names)
    block = part.block().double().eval()
    block.load_state_dict({**ours, **part.given})
    return block
