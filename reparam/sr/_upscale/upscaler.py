"""Enlarge images of any kind with a network, on any engine, in tiles without seams."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...deploy._engines import FILE_ENGINES, fastest_engine, make_engine
from ...deploy._opened import opened
from ...deploy._receptive import locality
from ...errors import SpecError
from ...files import load_checkpoint
from ...files._writing import check_targets
from ...fusing._fuse import made_up_image, plain_copy
from ...models._pretrained import network_file
from ...modules._like import tensor_like
from .arrays import MAX_PIXELS, around, like, of_pil, planes_of
from .guard import Net, check_weights, checked, on_tensors, warn_unless_flat
from .reader import file_reader
from .tiled import Read, Tiled

Image = TypeVar("Image")

_TILE = 256
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4}
"""What a tile may differ from the whole, over the largest value, because sums run in another order."""
_COARSE_ROUNDING = 5e-2
"""The same in 16 and 8 bits."""


class Upscaler:
    r"""Enlarges images with a super-resolution network.

    The network is fused and runs on the chosen engine. An image is cut into tiles, each of which is read with exactly
    the receptive radius around it, so the result equals that of the whole image (bit for bit in ONNX Runtime and
    OpenVINO). Memory beyond the two images does not depend on their size.

    A luma network gets Y of BT.601; the two color channels, and alpha, are enlarged by bicubic interpolation. A gray
    image runs through an RGB network as three equal channels, and the result is their mean.

    Args:
        model: a name of `list_models(pretrained=True)`, a checkpoint that `load_checkpoint` reads, a file that `export`
            or another program wrote (`FILE_ENGINES` lists the suffixes), or a network. A network is copied; it must
            have `scale` and `colors` (1 or 3), and take values of 0 to 1. A file that takes a single size runs on
            tiles of that size; a smaller image is extended by repeating its last pixels.
        engine: "torch" (on the network's device), "torch-compile", "onnxruntime", "openvino", "openvino-bf16" (faster
            on processors with bfloat16, and less exact), "ncnn", "litert", "executorch", or "auto": the fastest
            installed one of torch, onnxruntime and openvino, timed once and cached.
        tile: height and width of a tile in pixels of the small image. 0 takes the whole image at once, which networks
            without a receptive radius (global pooling, attention) need.
        threads: threads of the engine; 0 lets it choose.
        edges: "pad", as the network does, or "wrap" for textures that repeat.
        scale: of another program's file that does not say it; without it, it is measured.
        colors: likewise; most files say how many channels they take.

    Attributes:
        scale: the factor by which height and width grow.
        engine: the name of the engine in use.
        radius: the receptive radius, in pixels of the small image; 0 if `tile` is 0, which does not need it.
        period: tiles begin at multiples of it: 1 for convolutions, the factor of a pixel unshuffle, the size of
            windows.

    Raises:
        SpecError: if the network or the engine cannot be used.
        CheckpointError: if the file cannot.

    Warns:
        UserWarning: if flat images do not come out flat: the network is untrained, or takes another range.

    Example:
        >>> import numpy as np
        >>> upscaler = Upscaler("repsr_m4c16_x2", engine="torch")
        >>> upscaler(np.zeros((30, 40, 3), np.uint8)).shape
        (60, 80, 3)
    """

    def __init__(
        self,
        model: nn.Module | str | os.PathLike[str],
        *,
        engine: str = "auto",
        tile: int = _TILE,
        threads: int = 0,
        edges: Literal["pad", "wrap"] = "pad",
        scale: int | None = None,
        colors: int | None = None,
    ) -> None:
        if tile < 0 or threads < 0:
            raise SpecError(f"tile and threads must be 0 or more, but got tile={tile}, threads={threads}")
        if edges not in ("pad", "wrap") or (edges == "wrap" and not tile):
            why = (
                " with tile=0, which does not tell how far a pixel reaches; pass a tile size" if edges == "wrap" else ""
            )
            raise SpecError(f'edges must be "pad" or "wrap", but got {edges!r}{why}')
        size: tuple[int, int] | None = None  # the only one that a file takes, if there is one
        again: Callable[[], Net] | None = None
        native = False
        if isinstance(model, (str, os.PathLike)) and Path(model).suffix in FILE_ENGINES:
            self.engine = FILE_ENGINES[Path(model).suffix][0] if engine == "auto" else engine
            name, rounding = Path(model).name, _COARSE_ROUNDING
            found = opened(Path(model), self.engine, threads, tile, scale, colors)
            run, self.scale, self.colors, self.radius, self.period, size = found
            if size and edges == "wrap":
                raise SpecError(
                    f'{name} takes only images of {size[0]} x {size[1]} pixels, and edges="wrap" needs other sizes; '
                    "export the network for any size"
                )
        else:
            net = _ready(model)
            self.scale, self.colors = _sizes(net)
            if (scale, colors) != (None, None):
                raise SpecError(
                    f"{type(net).__name__} has scale={self.scale} and colors={self.colors} of its own, but got "
                    f"scale={scale}, colors={colors}; leave them out"
                )
            self.radius, self.period = locality(net, self.colors) if tile else (0, 1)
            self.engine = fastest_engine(net, self.colors, threads) if engine == "auto" else engine
            run, native = make_engine(net, self.engine, threads), self.engine.startswith("torch")
            dtype = tensor_like(net).dtype
            name, rounding = type(net).__name__, _ROUNDING.get(dtype, _COARSE_ROUNDING)
            if dtype == torch.float16:
                again = partial(_make_float32, net, threads)
        if self.engine == "openvino-bf16":
            rounding = _COARSE_ROUNDING
        tensors = on_tensors(run, native)
        if self.engine != "torch-compile":  # which would compile it once more, for this size
            warn_unless_flat(tensors, name, self.colors, size or (48, 48))
        tensors = checked(tensors, name, self.scale, again)
        self._tiled = Tiled(
            tensors, name, self.scale, self.colors, tile, self.radius, self.period, rounding, edges == "wrap", size
        )

    def __call__(self, image: Image) -> Image:
        """Enlarge one image, or a batch of tensors.

        Args:
            image: a `PIL.Image` (turned upright by its EXIF; palettes and CMYK become RGB); a numpy array (H, W) or
                (H, W, C), uint8, uint16 or floats of 0 to 1; or a tensor (C, H, W) or (N, C, H, W) of these types, on
                any device. C is 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha).

        Returns:
            The same kind of image, `scale` times as high and wide. Integers are rounded and clipped, floats are not.
            Three equal channels stay equal.

        Raises:
            SpecError: for another kind of image, or floats of another range.
        """
        if of_pil(image):
            from .images import from_pil, to_pil  # PIL is there, as the image is

            pixels, info = from_pil(image)  # type: ignore[arg-type]  # told by its module, as PIL need not be there
            return to_pil(self(pixels), info)  # type: ignore[return-value]  # likewise
        planes, top = planes_of(image), 0
        shape = (*planes.shape[:2], *(self.scale * size for size in planes.shape[2:]))
        order = torch.contiguous_format if isinstance(image, Tensor) else torch.channels_last
        large = torch.empty(shape, dtype=planes.dtype, device=planes.device, memory_format=order)
        for strip in self._tiled.strips(planes.shape, self._rows(planes)):
            large[..., top : top + strip.shape[2], :] = strip
            top += strip.shape[2]
        return cast(Image, like(image, large))

    def _rows(self, planes: Tensor) -> Read:
        whole = around(planes, self._tiled.margin(planes.shape[1]))
        return lambda rows: whole[..., rows, :]

    def inputs(self, image: Any) -> Iterator[np.ndarray]:
        """Yield the network's inputs for an image, tile by tile, (1, colors, h, w) in float32, for calibration.

        Args:
            image: as for `__call__`.

        Raises:
            SpecError: for another kind of image.

        Example:
            >>> upscaler = Upscaler("repsr_m4c16_x2_y", engine="torch", tile=16)
            >>> [x.shape for x in upscaler.inputs(np.zeros((20, 16, 3), np.uint8))]
            [(1, 1, 16, 16), (1, 1, 16, 16)]
        """
        planes = planes_of(image)
        for x in self._tiled.inputs(planes.shape, self._rows(planes)):
            yield from (one.contiguous().cpu().numpy() for one in x.split(1))

    def file(
        self, source: str | os.PathLike[str], target: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS
    ) -> None:
        """Enlarge an image file of any size. The target is written whole, or not at all.

        Metadata is kept if the format of the target can hold it: profile, EXIF, XMP, resolution, texts, 16 bits, and
        the frames of an animated WebP or GIF with their durations.

        Args:
            source: PNG, JPEG, WebP, TIFF, BMP or GIF.
            target: its suffix selects the format.
            max_pixels: larger images are refused; a file of a few kilobytes can claim to be huge.

        Raises:
            FileNotFoundError: if there is no such file, or no such directory.
            SpecError: if the file is not an image, or is also the target; if the target's format cannot hold the
                result (raised before anything is computed); if a package is missing.
        """
        files = file_reader()
        source, target = Path(source), Path(target)
        check_targets([target], [source])
        files.check_suffix(target)
        photo = files.read_photo(source, max_pixels).for_target(target, self.scale)
        margin = self._tiled.margin(photo.shape[1])
        strips = (strip for read in photo.frames(margin) for strip in self._tiled.strips(photo.shape, read))
        photo.write(strips, target, self.scale)


def _ready(model: nn.Module | str | os.PathLike[str]) -> nn.Module:
    """A fused copy, in eval mode, of a network that is given itself, by name or as a file."""
    net = model if isinstance(model, nn.Module) else load_checkpoint(network_file(model, fused=True))
    _sizes(net)
    check_weights(net)
    return plain_copy(net, made_up_image(net))


def _make_float32(net: nn.Module, threads: int) -> Net:
    return on_tensors(make_engine(net.float(), "torch", threads), native=True)


def _sizes(net: nn.Module) -> tuple[int, int]:
    """The attributes scale and colors, checked."""
    scale: Any = getattr(net, "scale", None)
    colors: Any = getattr(net, "colors", None)
    if colors not in (1, 3) or not isinstance(scale, int) or scale < 1:
        raise SpecError(
            f"{type(net).__name__} has scale={scale} and colors={colors}; give it the attributes scale, an "
            "integer of at least 1, and colors, 1 or 3"
        )
    return scale, colors
