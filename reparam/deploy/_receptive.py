"""Measures how far a pixel reaches in a network, and where an image can be cut into tiles without a trace."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import SpecError
from ..modules._hooks import copy_module

_SIZES = (16, 24, 48, 96, 160, 320)
"""The image sizes used to find the radius: most networks that accept only multiples of some number accept these."""
_LARGEST_PERIOD = 64
_CUT_SIZES = (48, 32)
"""Height and width of the image that is cut: multiples of what most networks pad to, so that one pixel less shows."""

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How much the size of an image may change a result, relative to the largest value: sums run in another order."""


class Locality(NamedTuple):
    """How an image can be cut: at multiples of `period`, which changes nothing farther than `radius` from the cut."""

    radius: int
    period: int


@torch.no_grad()
def locality(model: nn.Module, channels: int) -> Locality:
    r"""Measure how an image network can run in tiles.

    $$f(x_{[a, n-b)})_p = f(x)_p \quad \text{for } a + r \le p < n - b - r, \quad a, b \in \{0, P, 2P, \dots\}$$

    on both axes, where the condition on a side counts only if something is cut off there. r is the radius in pixels of
    the input; if the output is larger by a whole factor s, each input pixel is s output pixels. P is the period: 1 for
    convolutions, else the factor of a pixel unshuffle, the size of windows, or what the network pads to internally.

    The radius is measured in two ways. A NaN spreads wherever it is read, even through weights of zero. A cross of
    random pixels, of every magnitude and both signs, changes what depends on it, even through a function that swallows
    NaN. The period is the smallest step that can be cut off at either end.

    Args:
        model: any module from (N, C, H, W) to (N, D, s * H, s * W). A copy of it runs on the CPU in eval mode, in
            float64 if possible.
        channels: C.

    Raises:
        SpecError: if the reach is not local (global pooling, attention), if no step of up to 64 pixels can be cut off
            (position embeddings), if the output size is not a multiple of the input size, or if it is not finite.

    Example:
        >>> net = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2))
        >>> locality(net, 1)
        Locality(radius=3, period=2)
    """
    net = _Copy(model, channels)
    radius = _radius(net, 1)
    for period in range(1, _LARGEST_PERIOD + 1):
        if _can_cut(net, radius, period):
            # A pixel at the start of a window may reach farther than one in its middle.
            return Locality(radius if period == 1 else _radius(net, period), period)
    raise SpecError(
        f"{net.name} changes its result when an image is cut, at every step up to {_LARGEST_PERIOD} pixels (position "
        "embeddings do that): it can only run on whole images"
    )


class _Copy:
    """A copy of a network that checks its own outputs for images (1, channels, H, W)."""

    def __init__(self, model: nn.Module, channels: int) -> None:
        self.name, self.channels = type(model).__name__, channels
        self.sizes: list[int] = []
        for self.dtype in _ROUNDING:
            self.net = copy_module(model).to("cpu", self.dtype).eval()
            problem = self._try_sizes()
            if self.sizes:
                return
        raise SpecError(f"{self.name} {problem}")

    def _try_sizes(self) -> str:
        """Find the smallest size that it accepts, and return what went wrong with the first one that it does not."""
        problems = []
        for index, size in enumerate(_SIZES[:4]):
            try:
                y = self(self.random(size, size))
            except Exception as problem:  # networks raise anything
                problems.append(f"fails for an image of {size} x {size} pixels: {problem}")
                continue
            if not y.isfinite().all():
                raise SpecError(
                    f"{self.name} returns values that are not finite for a random image of {size} x {size} pixels"
                )
            self.sizes = list(_SIZES[index:])
            break
        return problems[0] if problems else ""

    def random(self, *size: int, seed: int = 0) -> Tensor:
        """A random image of values from 0 to 1."""
        return torch.rand(1, self.channels, *size, generator=torch.Generator().manual_seed(seed)).to(self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x.clone())  # the network may change its input
        height, width = x.shape[2:]
        scale = y.shape[3] // width
        if y.dim() != 4 or not scale or y.shape[2:] != (scale * height, scale * width):
            raise SpecError(f"{self.name} returns {tuple(y.shape[2:])} for {height} x {width} pixels, not a multiple")
        return y


def _radius(net: _Copy, width: int) -> int:
    """How far any of `width` adjacent pixels reaches, in the worst direction."""
    for size in net.sizes:
        begin = (size - 1) // 2 // width * width
        places = torch.arange(size)
        distance = torch.maximum((places - begin).abs(), (places - begin - width + 1).abs())
        largest = int(torch.minimum(distance[0], distance[-1])) - 1  # what reaches farther may be cut off by the border
        if (found := _reach(net, slice(begin, begin + width), distance, largest)) <= largest:
            return found
    raise SpecError(
        f"a pixel of {net.name} reaches farther than {largest} pixels (global pooling or attention do that): it has no "
        "receptive radius, and can only run on whole images"
    )


def _reach(net: _Copy, changed: slice, distance: Tensor, enough: int) -> int:
    """How far from the changed pixels the output changes. If the NaN reaches farther than `enough`, that is all."""
    x = net.random(len(distance), len(distance))
    square, cross = x.clone(), x.clone()
    square[..., changed, changed] = math.nan
    touched = net(square).isnan()
    farthest = _farthest(touched, torch.maximum(distance[:, None], distance))
    if farthest > enough:
        return farthest
    noise = (10 ** (4 * net.random(*x.shape[2:], seed=1) - 2)) * (2 * net.random(*x.shape[2:], seed=2) - 1).sign()
    cross[..., changed, :], cross[..., changed] = noise[..., changed, :], noise[..., changed]
    touched = net(cross) != net(x)  # at the same size not even rounding differs where nothing is read
    return max(farthest, _farthest(touched, torch.minimum(distance[:, None], distance)))


def _farthest(touched: Tensor, distance: Tensor) -> int:
    scale = touched.shape[-1] // distance.shape[-1]
    pixels = touched.any(1)[0].unflatten(0, (-1, scale)).unflatten(2, (-1, scale)).any(3).any(1)
    return int((distance * pixels).max())


def _can_cut(net: _Copy, radius: int, step: int) -> bool:
    """Whether cutting off `step` rows and columns, at the beginning or the end, changes only what is near the cut."""
    near = radius + step
    sizes = {  # rounded up to multiples of the unit
        tuple(-(-max(size, 3 * near) // unit) * unit for size in _CUT_SIZES) for unit in (_CUT_SIZES[1] // 2, step)
    }
    tried = [_cut_changes_little(net, height, width, near, step) for height, width in sizes]
    return any(tried) and False not in tried


def _cut_changes_little(net: _Copy, height: int, width: int, near: int, step: int) -> bool | None:
    """The same for one image size; None if the network does not accept that size."""
    x = net.random(height, width)
    try:
        whole = net(x)
    except Exception:  # networks raise anything
        return None
    try:
        later, earlier = net(x[..., step:, step:]), net(x[..., :-step, :-step])
    except Exception:
        return False
    scale, rounding = whole.shape[-1] // width, _ROUNDING[net.dtype] * whole.abs().max()
    skip, cut = scale * near, scale * step
    pairs = (
        (later[..., skip:, skip:], whole[..., skip + cut :, skip + cut :]),
        (earlier[..., :-skip, :-skip], whole[..., : -skip - cut, : -skip - cut]),
    )
    return all(bool(((one - other).abs() <= rounding).all()) for one, other in pairs)
