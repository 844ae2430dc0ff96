"""How far a pixel reaches in a network, and where an image may be cut without a trace."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import SpecError
from ..modules._hooks import copy_module

_SIZES = (16, 24, 48, 96, 160, 320)
"""Of the images that the radius is looked for on: most networks that take only multiples of a number take these."""
_LARGEST_PERIOD = 64
_CUT_SIZES = (48, 32)
"""Height and width of the image that is cut: multiples of what most networks pad to, so that one pixel less shows."""
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""What the size of an image may change, over the largest value: sums run in another order."""


class Locality(NamedTuple):
    """What may be cut off an image: multiples of `period`, which changes nothing farther than `radius` from the cut."""

    radius: int
    period: int


@torch.no_grad()
def locality(model: nn.Module, channels: int) -> Locality:
    r"""Measures how a network of images can be run in tiles.

    $$f(x_{[a, n-b)})_p = f(x)_p \quad \text{for } a + r \le p < n - b - r, \quad a, b \in \{0, P, 2P, \dots\}$$

    on both axes, where the condition on a side counts only if something is cut off there. r is the radius, in pixels of
    the input; an output that is larger by a whole factor s has s of its pixels in each. P is the period: 1 for
    convolutions, the factor of a pixel unshuffle or the size of windows else, and what the network pads to inside.

    The radius is seen in two ways: a NaN goes wherever it is read, even through weights of zero; and a cross of random
    pixels, of every magnitude and both signs, changes what depends on it, even through a function that swallows NaN.
    The period is the smallest step that can be cut off at either end.

    Args:
        model: any module from (N, C, H, W) to (N, D, s * H, s * W); it is copied, and the copy runs on the CPU in eval
            mode, in float64 if it can.
        channels: C.

    Raises:
        SpecError: if the reach is not local (global pooling, attention), if no step of up to 64 pixels can be cut off
            (positions are added), if the output is not a multiple of the input, or not finite.

    Example:
        >>> net = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2))
        >>> locality(net, 1)
        Locality(radius=3, period=2)
    """
    net = _Copy(model, channels)
    radius = _radius(net, 1)
    for period in range(1, _LARGEST_PERIOD + 1):
        if _can_cut(net, radius, period):
            # Where windows begin, a pixel may reach farther than from their middle.
            return Locality(radius if period == 1 else _radius(net, period), period)
    raise SpecError(
        f"{net.name} computes something else when an image is cut, whatever the step up to {_LARGEST_PERIOD} pixels "
        "(adding positions does that): it can only be run on whole images"
    )


class _Copy:
    """A copy of a network, which checks what it makes of images (1, channels, H, W)."""

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
        """Finds the smallest size that it takes, and says what went wrong with the first other one."""
        problems = []
        for index, size in enumerate(_SIZES[:4]):
            try:
                y = self(self.random(size, size))
            except Exception as problem:  # networks raise whatever they meet
                problems.append(f"fails for an image of {size} x {size} pixels: {problem}")
                continue
            if not y.isfinite().all():
                raise SpecError(
                    f"{self.name} makes values that are not finite of a random image of {size} x {size} pixels"
                )
            self.sizes = list(_SIZES[index:])
            break
        return problems[0] if problems else ""

    def random(self, *size: int, seed: int = 0) -> Tensor:
        """Of 0 to 1."""
        return torch.rand(1, self.channels, *size, generator=torch.Generator().manual_seed(seed)).to(self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x.clone())  # which it may change in place
        height, width = x.shape[2:]
        scale = y.shape[3] // width
        if y.dim() != 4 or not scale or y.shape[2:] != (scale * height, scale * width):
            raise SpecError(f"{self.name} makes {tuple(y.shape[2:])} of {height} x {width} pixels, no multiple")
        return y


def _radius(net: _Copy, width: int) -> int:
    """How far any of `width` pixels side by side reaches, in the worst direction."""
    for size in net.sizes:
        begin = (size - 1) // 2 // width * width
        places = torch.arange(size)
        distance = torch.maximum((places - begin).abs(), (places - begin - width + 1).abs())
        largest = int(torch.minimum(distance[0], distance[-1])) - 1  # the border may cut off what goes farther
        if (found := _reach(net, slice(begin, begin + width), distance, largest)) <= largest:
            return found
    raise SpecError(
        f"a pixel of {net.name} reaches farther than {largest} pixels (global pooling or attention do): it has no "
        "receptive radius, and can only be run on whole images"
    )


def _reach(net: _Copy, changed: slice, distance: Tensor, enough: int) -> int:
    """How far from the changed pixels anything changes; the first way ends it if that is farther than `enough`."""
    x = net.random(len(distance), len(distance))
    square, cross = x.clone(), x.clone()
    square[..., changed, changed] = math.nan
    touched = net(square).isnan()
    farthest = _farthest(touched, torch.maximum(distance[:, None], distance))
    if farthest > enough:
        return farthest
    noise = (10 ** (4 * net.random(*x.shape[2:], seed=1) - 2)) * (2 * net.random(*x.shape[2:], seed=2) - 1).sign()
    cross[..., changed, :], cross[..., changed] = noise[..., changed, :], noise[..., changed]
    touched = net(cross) != net(x)  # of the same size: not even rounding differs where nothing is read
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
    """The same of one size; None if it takes no image of that size."""
    x = net.random(height, width)
    try:
        whole = net(x)
    except Exception:  # networks raise whatever they meet
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
