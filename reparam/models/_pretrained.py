"""Weights that come with the package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ..errors import SpecError
from ..fusing._swap import swap_convs
from ._net import PlainSR

FOLDER = Path(__file__).parent / "weights"
_FUSED, _TRAIN = ".fused.safetensors", ".train.safetensors"


def pretrained_names() -> list[str]:
    """The networks that the package has weights for."""
    return sorted(path.name.removesuffix(_FUSED) for path in FOLDER.glob(f"*{_FUSED}"))


def pretrained_file(name: str) -> Path:
    """The file of the fused weights, for a program that takes a file: its keys are those of SRVGGNetCompact.

    Args:
        name: one of `list_models(pretrained=True)`.

    Raises:
        SpecError: if there are no weights of this name.

    Example:
        >>> pretrained_file("repsr_m4c16_x2").name
        'repsr_m4c16_x2.fused.safetensors'
    """
    if name not in pretrained_names():
        raise SpecError(f"there are no weights for {name!r}; there are for {', '.join(pretrained_names())}")
    return FOLDER / f"{name}{_FUSED}"


def network_file(network: str | os.PathLike[str], *, fused: bool = False) -> Path:
    """The file that is meant by a name of `list_models(pretrained=True)` or, if it is none, by a path.

    Args:
        network: the one or the other; a file that has the name of a network is meant by "./name".
        fused: whether the weights of a name are to be the fused ones, where those of its blocks are shipped as well.

    Raises:
        SpecError: if there is neither.
    """
    names = pretrained_names()
    if network in names:
        train = _train_file(str(network))
        return pretrained_file(str(network)) if fused or not train.exists() else train
    if not Path(network).exists():
        raise SpecError(f"{os.fspath(network)!r} is no file, and no network with weights; there are {', '.join(names)}")
    return Path(network)


def _train_file(name: str) -> Path:
    """The file of the weights with blocks, which is there for the smaller networks only."""
    return FOLDER / f"{name}{_TRAIN}"


def load_pretrained(net: nn.Module, name: str, sizes: Mapping[str, Any]) -> None:
    """Gives a network of blocks, of these sizes, its weights; where only fused ones are shipped, its blocks take them.

    Raises:
        SpecError: if there are no weights of this name.
    """
    fused = pretrained_file(name)
    train = _train_file(name)
    if train.exists():
        net.load_state_dict(load_file(train))
        return
    plain = PlainSR(**sizes)
    plain.load_state_dict(load_file(fused))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # for the same branches every time; other devices' are the user's
        swap_convs(plain, type(net.body[0]))  # type: ignore[index, arg-type]  # a block, as only those are shipped
    net.load_state_dict(plain.state_dict())
