"""Whether a state dict belongs to a known network, and under which prefixes of its keys."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..models._net import SRNet
from ._keys import matched
from ._layouts import Tensors
from ._networks import LAYOUTS, Blueprint, NetworkLayout, recognise


def prefixes_in(state_dict: Mapping[str, Tensor]) -> list[str]:
    """The prefixes under which the marks of a network are found, none of them inside another."""
    found = dict.fromkeys(
        key.removesuffix(layout.marks[0])
        for layout in LAYOUTS
        for key in state_dict
        if key.endswith(layout.marks[0]) and _is_at(state_dict, layout, key.removesuffix(layout.marks[0]))
    )
    return [prefix for prefix in found if not any(prefix.startswith(other) for other in found if other != prefix)]


def _is_at(t: Tensors, layout: NetworkLayout, prefix: str) -> bool:
    return (not prefix or prefix.endswith(".")) and all(prefix + mark in t for mark in layout.marks)


def in_our_names(blueprint: Blueprint, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict under the names of the network to be built, with every shape compared.

    Raises:
        CheckpointError: for the first difference, see `matched`.
    """
    with torch.device("meta"):  # shapes are compared first, so that a wrong one costs no memory
        wanted = blueprint.build().state_dict()
    return matched(wanted, tensors, {key: key for key in tensors} if blueprint.names is None else blueprint.names)


def fits(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these are all the tensors of a known network and no others. What keys do not say is left open."""
    try:
        known = recognise(state_dict)
        if known is None:
            return False
        _, blueprint = known
        untold = {"act": "relu"} if issubclass(blueprint.network, SRNet) else {}
        return bool(in_our_names(blueprint._replace(options=untold | blueprint.options), state_dict))
    except Exception:  # shapes that anyone may have written run torch into anything
        return False
