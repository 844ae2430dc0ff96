"""The weights that are shipped with the package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ..errors import SpecError, check_model
from ..fusing._swap import swap_convs
from ._net import PlainSR

FOLDER = Path(__file__).parent / "weights"
_FUSED, _TRAIN = ".fused.safetensors", ".train.safetensors"


def pretrained_names() -> list[str]:
    """The names of the networks that the package has weights for."""
    return sorted(path.name.removesuffix(_FUSED) for path in FOLDER.glob(f"*{_FUSED}"))


def pretrained_file(name: str) -> Path:
    """Return the file of the fused weights, for programs that load a file. Its keys are those of SRVGGNetCompact.

    Args:
        name: one of `list_models(pretrained=True)`.

    Raises:
        SpecError: if the package has no weights of this name.

    Example:
        >>> pretrained_file("repsr_m4c16_x2").name
        'repsr_m4c16_x2.fused.safetensors'
    """
    if name not in pretrained_names():
        raise SpecError(f"there are no weights for {name!r}; the package has them for {', '.join(pretrained_names())}")
    return FOLDER / f"{name}{_FUSED}"


def network_file(network: str | os.PathLike[str], *, fused: bool = False) -> Path:
    """The file of a network: shipped weights if `network` is a name of `list_models(pretrained=True)`, else a path.

    Args:
        network: the name or the path. Write "./name" for a file that is called like a network.
        fused: for a name, whether to prefer the fused weights when the weights of the blocks are shipped as well.

    Raises:
        SpecError: if it is neither.
        NotAModelError: if it is not even a path.
    """
    if not isinstance(network, (str, os.PathLike)):
        check_model(network)
    names = pretrained_names()
    if network in names:
        train = _train_file(str(network))
        return pretrained_file(str(network)) if fused or not train.exists() else train
    if not Path(network).exists():
        raise SpecError(
            f"{os.fspath(network)!r} is neither a file nor a network with weights; there are {', '.join(names)}"
        )
    return Path(network)


def _train_file(name: str) -> Path:
    """The file of the blocks' weights. It exists for the smaller networks only."""
    return FOLDER / f"{name}{_TRAIN}"


def load_pretrained(net: nn.Module, name: str, sizes: Mapping[str, Any]) -> None:
    """Load the shipped weights into a network of blocks; if only fused ones are shipped, swap them into its blocks.

    Args:
        net: the network.
        name: one of `pretrained_names`.
        sizes: the arguments that the network was built with.

    Raises:
        SpecError: if the package has no weights of this name.
    """
    fused = pretrained_file(name)
    train = _train_file(name)
    if train.exists():
        net.load_state_dict(load_file(train))
        return
    plain = PlainSR(**sizes)
    plain.load_state_dict(load_file(fused))
    # A fixed seed draws the same branches every time. Only the CPU's generator is used: the others are the user's.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        swap_convs(plain, type(net.body[0]))  # type: ignore[index, arg-type]  # a block, as only those are shipped
    net.load_state_dict(plain.state_dict())
