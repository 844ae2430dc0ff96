"""Images enlarged by a network, whatever kind of image, on whatever engine, in tiles that nobody sees."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ...deploy._engines import FILE_ENGINES, fastest_engine, make_engine
from ...deploy._receptive import locality
from ...deploy._runners import Run
from ...errors import SpecError
from ...files import load_checkpoint
from ...files._writing import check_targets
from ...fusing._fuse import made_up_image, plain_copy
from ...models._pretrained import network_file
from ...modules._like import tensor_like
from .arrays import arrays_of, file_reader, floats_of, largest_of, of_pil, whole_of
from .color import Coloring, coloring
from .guard import check_weights, checked, seam
from .opened import opened
from .tiles import Span, fixed_spans, scaled, spans

Image = TypeVar("Image")

_TILE = 256
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4}
"""What a tile may differ from the whole, over the largest value, because sums run in another order."""
_COARSE_ROUNDING = 5e-2
"""The same in 16 and 8 bits."""


class Upscaler:
    r"""Enlarges images with a super-resolution network.

    The network is fused, and runs on the engine of choice. An image is cut into tiles that are read with exactly the
    receptive radius around them, so that the result is that of the whole image (bit for bit in ONNX Runtime and
    OpenVINO), while the memory needed beside the two images does not depend on their size.

    A network for luma gets Y of BT.601; the two colour differences, and alpha, are enlarged by bicubic interpolation.
    A grey image goes through an RGB network as three equal colours, and their mean is the result.

    Args:
        model: a name of `list_models(pretrained=True)`, a checkpoint that `load_checkpoint` reads, a file that `export`
            or another program wrote (`FILE_ENGINES` lists the suffixes), or a network. A network is copied; it must
            have `scale` and `colors` (1 or 3), and take values of 0 to 1. A file that takes one size only is run on
            tiles of that size, and an image that is smaller is continued by its last pixels.
        engine: "torch" (on the network's device), "torch-compile", "onnxruntime", "openvino", "openvino-bf16" (faster
            where the processor has it, and less exact), "ncnn", "litert", "executorch", or "auto" for the fastest of
            torch, onnxruntime and openvino that are installed: they are timed once, and the outcome is kept beside
            torch's cache.
        tile: height and width of a tile in pixels of the small image; 0 takes the whole image at once, as a network
            that has no receptive radius (global pooling, attention) needs.
        threads: how many the engine may use; 0 leaves that to it.
        scale: of a file of another program that does not say it; else it is measured.
        colors: likewise; most files say how many channels they take.

    Attributes:
        scale: the factor by which height and width grow.
        engine: the name of the engine in use.
        radius: the receptive radius, in pixels of the small image; 0 where `tile` is 0 and nobody asks for it.
        period: what tiles begin on multiples of: 1 for convolutions, the factor of a pixel unshuffle, the size of
            windows.

    Raises:
        SpecError: for a network or an engine that cannot be used; `CheckpointError` for such a file.

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
        scale: int | None = None,
        colors: int | None = None,
    ) -> None:
        if tile < 0 or threads < 0:
            raise SpecError(f"tile and threads must be 0 or more, but got tile={tile}, threads={threads}")
        again: Callable[[], Run] | None = None
        self._size: tuple[int, int] | None = None  # of all that a file takes, if it takes but one
        if isinstance(model, (str, os.PathLike)) and Path(model).suffix in FILE_ENGINES:
            self.engine = FILE_ENGINES[Path(model).suffix][0] if engine == "auto" else engine
            self._name, self._rounding = Path(model).name, _COARSE_ROUNDING
            found = opened(Path(model), self.engine, threads, tile, scale, colors)
            run, self.scale, self.colors, self.radius, self.period, self._size = found
        else:
            net = _ready(model)
            self.scale, self.colors = _sizes(net)
            if (scale, colors) != (None, None):
                raise SpecError(
                    f"{type(net).__name__} says its scale={self.scale} and colors={self.colors} itself, but got "
                    f"scale={scale}, colors={colors}; leave them out"
                )
            self.radius, self.period = locality(net, self.colors) if tile else (0, 1)
            self.engine = fastest_engine(net, self.colors, threads) if engine == "auto" else engine
            run = make_engine(net, self.engine, threads)
            dtype = tensor_like(net).dtype
            self._name, self._rounding = type(net).__name__, _ROUNDING.get(dtype, _COARSE_ROUNDING)
            if dtype == torch.float16:
                again = partial(_make_float32, net, threads)
        if self.engine == "openvino-bf16":
            self._rounding = _COARSE_ROUNDING
        self._run = checked(run, self._name, self.scale, again)
        self._tile = tile
        self._overlap = max(self.radius, self.period, 2)  # 2 is what bicubic interpolation reads
        self._proved: set[tuple[int, int]] = set()

    def __call__(self, image: Image) -> Image:
        """Enlarges one image.

        Args:
            image: a `PIL.Image`, turned upright by its EXIF, palettes and the like as RGB; a numpy array (H, W) or
                (H, W, C), uint8, uint16 or floats of 0 to 1; or a tensor (C, H, W) or (N, C, H, W), uint8 or floats. C
                is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).

        Returns:
            The same kind of image, `scale` times as high and wide. Integers are rounded and clipped, floats are not.

        Raises:
            SpecError: for another kind of image.
        """
        if isinstance(image, Tensor):
            return self._tensor(image)  # type: ignore[return-value]  # the same kind, which isinstance told
        if isinstance(image, np.ndarray):
            return self._array(image)  # type: ignore[return-value]  # likewise
        if of_pil(image):
            from .images import from_pil, to_pil  # PIL is there, as the image is

            picture = from_pil(image)  # type: ignore[arg-type]  # told by its module, as PIL need not be there
            pixels = self._array(picture.pixels)
            return to_pil(picture._replace(pixels=pixels))  # type: ignore[return-value]  # likewise
        raise SpecError(f"an image is a PIL.Image, a numpy array or a tensor, but got {type(image).__name__}")

    def inputs(self, image: Any) -> Iterator[np.ndarray]:
        """What the network gets of an image, tile by tile, (1, colors, h, w) in float32, for a program to calibrate on.

        Args:
            image: as for `__call__`.

        Raises:
            SpecError: for another kind of image.

        Example:
            >>> upscaler = Upscaler("repsr_m4c16_x2_y", engine="torch", tile=16)
            >>> [x.shape for x in upscaler.inputs(np.zeros((20, 16, 3), np.uint8))]
            [(1, 1, 16, 16), (1, 1, 16, 16)]
        """
        for whole in map(whole_of, arrays_of(image)):
            way = coloring(whole.shape[2], self.colors, self.scale)
            for rows, columns in self._tiles(whole):
                yield np.ascontiguousarray(way.split(floats_of(whole[rows.read, columns.read])))

    def file(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        """Enlarges an image file; the target is written whole, or not at all.

        Profile and EXIF are kept, and so are 16 bits, in PNG and TIFF.

        Raises:
            FileNotFoundError: if there is no such file, or no such directory.
            SpecError: if the file is no image, or is the target too; if the target's format cannot hold it; if Pillow
                is not installed.
        """
        images = file_reader()
        source, target = Path(source), Path(target)
        check_targets([target], [source])
        picture = images.read_picture(source)
        images.write_picture(picture._replace(pixels=self._array(picture.pixels)), target)

    def _tensor(self, image: Tensor) -> Tensor:
        large = [self._array(one).transpose(2, 0, 1) for one in arrays_of(image)]
        y = torch.from_numpy(np.stack(large)).to(image.device, image.dtype)
        return y if image.dim() == 4 else y[0]

    def _array(self, image: np.ndarray) -> np.ndarray:
        whole = whole_of(image)
        height, width, channels = whole.shape
        way = coloring(channels, self.colors, self.scale)
        large = np.empty((self.scale * height, self.scale * width, channels), whole.dtype)
        if 0 < self._tile < max(height, width) and not self._size:
            self._prove(height % self.period, width % self.period)
        for rows, columns in self._tiles(whole):
            part = self._enlarge(whole[rows.read, columns.read], way)
            part = part[scaled(rows.inner, self.scale), scaled(columns.inner, self.scale)]
            large[scaled(rows.keep, self.scale), scaled(columns.keep, self.scale)] = part
        return large[:, :, 0] if image.ndim == 2 else large

    def _tiles(self, whole: np.ndarray) -> Iterator[tuple[Span, Span]]:
        """Rows and columns of each."""
        cut = fixed_spans if self._size and self._tile else spans
        reads = (self._size or (self._tile, self._tile)) if self._tile else whole.shape[:2]
        rows, columns = (cut(length, read, self._overlap, self.period) for length, read in zip(whole.shape[:2], reads))
        return itertools.product(rows, columns)

    def _prove(self, *rest: int) -> None:
        """Runs a small image whole and in tiles, before the first image of which the period leaves such a rest."""
        if rest in self._proved:
            return
        least = 3 * (self._overlap + self.period)
        height, width = (least + (part - least) % self.period for part in rest)
        error = seam(self._run, self.colors, self.scale, (height, width), self._overlap, self.period)
        if not error <= self._rounding:
            raise SpecError(
                f"{self._name} in tiles, {self._overlap} pixels around each, differs from itself on the whole of "
                f"{height} x {width} random pixels by {error:.1e} of the largest value ({self._rounding:.0e} is "
                "rounding): it does not do the same everywhere; take whole images with tile=0"
            )
        self._proved.add((rest[0], rest[1]))

    def _enlarge(self, part: np.ndarray, way: Coloring) -> np.ndarray:
        """A tile (h, w, C), in the dtype of the image, made large."""
        largest, x = largest_of(part), floats_of(part)
        y = way.join(self._run(np.ascontiguousarray(way.split(x))), x)[0].transpose(1, 2, 0)
        return np.rint(y * largest).clip(0, largest) if largest > 1 else y


def _ready(model: nn.Module | str | os.PathLike[str]) -> nn.Module:
    """The network of a name or a file, or a copy of it, fused and in eval mode."""
    net = model if isinstance(model, nn.Module) else load_checkpoint(network_file(model, fused=True))
    _sizes(net)
    check_weights(net)
    return plain_copy(net, made_up_image(net))


def _make_float32(net: nn.Module, threads: int) -> Run:
    return make_engine(net.float(), "torch", threads)


def _sizes(net: nn.Module) -> tuple[int, int]:
    """Scale and colours, if they are such as there are."""
    scale: Any = getattr(net, "scale", None)
    colors: Any = getattr(net, "colors", None)
    if colors not in (1, 3) or not isinstance(scale, int) or scale < 1:
        raise SpecError(
            f"{type(net).__name__} has scale={scale} and colors={colors}; give it the attributes scale, a whole "
            "number, and colors, 1 or 3"
        )
    return scale, colors
