"""Builds a training codebase's own network with blocks in place of its convolutions, from an option file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from .. import blocks
from ..blocks import ConvBlock
from ..errors import OptionError, ReparamError, SpecError
from ..files._finder import read_file
from ..fusing._swap import swap_convs
from ..sr._quantize.pictures import listed, pixels_of
from ..sr._upscale.arrays import floats_of, planes_of
from ..sr._upscale.color import split

Build = Callable[[Mapping[str, Any]], nn.Module]
"""Builds a network of a training codebase from its section of options."""
_IMAGES, _SIZE = 16, 64


def swapped(
    build: Build,
    *,
    net: Any = None,
    block: Any = None,
    weights: str | os.PathLike[str] | None = None,
    match: Any = None,
    calibrate: str | os.PathLike[str] | None = None,
    scale: int | None = None,
    **unknown: Any,
) -> nn.Module:
    """Build a network, load its weights, and swap blocks in.

    Args:
        build: the function of the training codebase that builds a network.
        net: the section of options that builds the network there.
        block: the name of a block, or a section with that name as its `type` and the block's options.
        weights: a file with weights of the network without blocks.
        match: one or several patterns, as for `swap_convs`.
        calibrate: a folder of typical input images. The center crops of the first 16 set the statistics of the blocks'
            batch norms, so that in training the network still computes what it did.
        scale: the scale, which the training codebase adds to every network.
        **unknown: refused.
    """
    if unknown:
        raise OptionError(
            f"reparam_swapped has no option {', '.join(map(repr, unknown))}; it has net, block, weights, match and "
            "calibrate; options of the network belong into its section net"
        )
    make, patterns = _block(block), _patterns(match)
    model = _built(build, net, scale)
    if weights is not None:
        _load(model, weights)
    try:
        report = swap_convs(model, make, match=patterns, calibrate=_crops(model, calibrate))
    except (ReparamError, OSError) as error:
        told = f"block={block!r}, match={match!r}" + ("" if calibrate is None else f", calibrate={calibrate!r}")
        raise SpecError(f"reparam_swapped with {told}: {error}") from error
    if report.skipped:
        warnings.warn(f"reparam_swapped: {report}", stacklevel=2)
    return model


def _built(build: Build, net: Any, scale: int | None) -> nn.Module:
    if not isinstance(net, Mapping):
        raise SpecError(f"reparam_swapped: net must be the section of a network, with its type, but got net={net!r}")
    if scale is not None and net.get("scale", scale) != scale:
        raise SpecError(
            f"reparam_swapped: net has scale={net['scale']}, but the option file has scale={scale}; leave it out of net"
        )
    options = dict(net) if scale is None else {**net, "scale": scale}
    try:
        return build(options)
    except TypeError as error:  # Python's error for an argument that a function does not have
        raise OptionError(f"reparam_swapped: net={options!r} cannot be built: {error}") from error


def _load(model: nn.Module, weights: str | os.PathLike[str]) -> None:
    try:
        model.load_state_dict(read_file(weights).state_dict)
    except (ReparamError, RuntimeError, OSError) as error:
        raise SpecError(f"reparam_swapped: weights={os.fspath(weights)!r} cannot be loaded: {error}") from error


def _block(block: Any) -> Callable[..., ConvBlock]:
    options = dict(block) if isinstance(block, Mapping) else {"type": block}
    name = options.pop("type", None)
    kinds = {kind: getattr(blocks, kind) for kind in blocks.__all__ if kind != "ConvBlock"}
    known = {key: kind for key, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, ConvBlock)}
    if name not in known:
        raise SpecError(
            f"reparam_swapped: block must be a block's name, or a section with it as its type, but got {block!r}; "
            f"there are {', '.join(known)}"
        )
    return partial(known[name], **options)


def _patterns(match: Any) -> str | list[str] | None:
    patterns = match if isinstance(match, Sequence) and match else [match]
    if match is not None and not all(isinstance(pattern, str) for pattern in patterns):
        raise SpecError(f"reparam_swapped: match must be a pattern of names, or a list of them, but got {match!r}")
    return match if match is None or isinstance(match, str) else list(match)


def _crops(model: nn.Module, folder: str | os.PathLike[str] | None) -> Iterator[Tensor] | None:
    return None if folder is None else _crops_of(model, folder)


def _crops_of(model: nn.Module, folder: str | os.PathLike[str]) -> Iterator[Tensor]:
    """Center crops of the first images, in the colors that the network takes."""
    first = next(module for module in model.modules() if isinstance(module, (nn.Conv2d, ConvBlock)))
    colors = 1 if first.in_channels == 1 else 3
    device = next(model.parameters()).device
    for image in listed(folder)[:_IMAGES]:
        planes = planes_of(pixels_of(image))
        top, left = (max(0, (length - _SIZE) // 2) for length in planes.shape[2:])
        part = floats_of(planes[..., top : top + _SIZE, left : left + _SIZE])
        yield split(part, colors).to(device)
