"""A network run over an image of any size, tile by tile, as on the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import SpecError
from .arrays import floats_of, white_of
from .color import join, split, spread
from .guard import Net, seam
from .tiles import Span, fixed_spans, scaled, spans

Shape = Sequence[int]
Read = Callable[[slice], Tensor]
"""Rows of an image (N, C, H, W), all of their columns."""
_STRIP = 256
"""Rows that are looked at together."""
_FAR = 64
"""Pixels to which colors are spread where nobody knows how far one reaches."""


@dataclass
class Tiled:
    """A network, and what is known of its tiles."""

    run: Net
    name: str
    scale: int
    colors: int
    tile: int
    """Of the small image; 0 takes all of it at once."""
    radius: int
    period: int
    rounding: float
    """What a tile may differ from the whole, over the largest value."""
    wrap: bool = False
    """Whether the right end of an image lies left of it, too, and so on."""
    size: tuple[int, int] | None = None
    """Of all images that it takes, if it takes but one."""
    _proved: set[tuple[int, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.overlap = max(self.radius, self.period, 2)  # 2 is what bicubic interpolation reads
        self._steps = self.overlap + 2 if self.tile else _FAR

    def margin(self, channels: int) -> int:
        """How many pixels are read around an image."""
        return -(-self._reach(channels) // self.period) * self.period if self.wrap else 0

    def strips(self, shape: Shape, read: Read) -> Iterator[Tensor]:
        """The large image from top to bottom.

        Args:
            shape: (N, C, H, W) of the small one.
            read: of that and the margin around it.

        Raises:
            SpecError: if tiles would show.
        """
        equal = self._equal(shape, read)
        if not self.size and (self.wrap or 0 < self.tile < max(shape[2:])):
            self._prove(shape[2] % self.period, shape[3] % self.period)
        for rows in self._spans(shape, 2):
            strip, height = read(rows.read), rows.keep.stop - rows.keep.start
            large = strip.new_empty(*shape[:2], self.scale * height, self.scale * shape[3])
            white = white_of(large)
            for columns, x in self._columns(shape, strip):
                y = join(self.run(split(x, self.colors)), x, self.colors, self.scale, equal)
                y = y[..., scaled(rows.inner, self.scale), scaled(columns.inner, self.scale)]
                part = large[..., scaled(columns.keep, self.scale)]
                part.copy_((y * white).round().clamp(0, white) if white > 1 else y)
            yield large

    def inputs(self, shape: Shape, read: Read) -> Iterator[Tensor]:
        """What the network gets, tile by tile."""
        for rows in self._spans(shape, 2):
            yield from (split(x, self.colors) for _, x in self._columns(shape, read(rows.read)))

    def _columns(self, shape: Shape, strip: Tensor) -> Iterator[tuple[Span, Tensor]]:
        for columns in self._spans(shape, 3):
            yield columns, spread(floats_of(strip[..., columns.read]), self._steps)

    def _spans(self, shape: Shape, axis: int) -> Iterator[Span]:
        channels, size = shape[1], shape[axis]
        if self.size and self.tile:
            return fixed_spans(size, self.size[axis - 2], self.overlap, self.period)
        return spans(size, self.tile or size, self._reach(channels), self.period, self.margin(channels))

    def _reach(self, channels: int) -> int:
        """From a pixel to all that it depends on; hidden colors are told by those as far away again."""
        return self.overlap + (self._steps if channels in (2, 4) else 0)

    def _equal(self, shape: Shape, read: Read) -> Tensor | None:
        """Which images of RGB are of equal channels, if any is."""
        equal = torch.tensor(shape[1] > 2)
        for rows in spans(shape[2], _STRIP, 0):
            if not equal.any():
                return None
            strip = read(rows.keep)
            equal = (strip[:, :2] == strip[:, 1:3]).flatten(1).all(1) & equal.to(strip.device)
        return equal[:, None, None, None] if equal.any() else None

    def _prove(self, *rest: int) -> None:
        """Runs a small image whole and in tiles, before the first image of which the period leaves such a rest."""
        if rest in self._proved:
            return
        least = 3 * (self.overlap + self.period)
        height, width = (least + (part - least) % self.period for part in rest)
        error = seam(self.run, self.colors, self.scale, (height, width), self.overlap, self.period)
        if not error <= self.rounding:
            raise SpecError(
                f"{self.name} in tiles, {self.overlap} pixels around each, differs from itself on the whole of "
                f"{height} x {width} random pixels by {error:.1e} of the largest value ({self.rounding:.0e} is "
                "rounding): it does not do the same everywhere; take whole images with tile=0"
            )
        self._proved.add(rest)
