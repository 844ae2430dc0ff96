"""Checks before an enlarged image is returned: shapes, finite values, flat images, tiles against the whole."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ...deploy._runners import Run
from ...errors import SpecError
from .tiles import scaled, spans

_FLAT = 0.02
"""Of 1, that a flat image may change."""
Net = Callable[[Tensor], Tensor]
"""An engine, from float32 to float32 on the same device."""


def check_weights(net: nn.Module) -> None:
    """Refuse a network whose weights are not finite.

    Raises:
        SpecError: if a parameter is not finite, or a buffer (in which masks may be infinite) holds NaN.
    """
    odd = {name: ~tensor.isfinite() for name, tensor in net.named_parameters()}
    odd |= {name: tensor.isnan() for name, tensor in net.named_buffers()}
    for name, where in odd.items():
        if where.any():
            raise SpecError(
                f"{type(net).__name__} cannot enlarge anything: {int(where.sum())} of the {where.numel()} values of "
                f"{name} are not finite; use weights from before training diverged"
            )


def checked(run: Net, name: str, scale: int, again: Callable[[], Net] | None = None) -> Net:
    """Wrap an engine so that outputs of the wrong size, or that are not finite, are refused.

    Args:
        run: the engine, for images of 0 to 1.
        name: of the network, for errors.
        scale: of the network.
        again: makes an engine with a larger range, for tiles that are not finite in the first one.

    Raises:
        SpecError: from the engine, if both return values that are not finite for finite ones, or the size is wrong.
    """
    make_wider = functools.cache(again) if again else None

    def engine(x: Tensor) -> Tensor:
        y = run(x)
        if not y.isfinite().all() and x.isfinite().all():
            if not make_wider:
                raise SpecError(_not_finite(name, x, y))
            y = make_wider()(x)
            if not y.isfinite().all():
                raise SpecError(_not_finite(name, x, y) + ", in float32 too")
        wanted = (*x.shape[:2], scale * x.shape[2], scale * x.shape[3])
        if y.shape != wanted:
            raise SpecError(
                f"{name} returns {tuple(y.shape)} for {tuple(x.shape)}, but its scale={scale} means {wanted}"
            )
        return y

    return engine


def on_tensors(run: Run, native: bool) -> Net:
    """Wrap an engine so that it takes tensors: a `native` one directly, others as arrays, image by image."""
    if native:
        return cast(Net, run)

    def one_by_one(x: Tensor) -> Tensor:
        images = [np.ascontiguousarray(image) for image in x.cpu().numpy()[:, None]]
        return torch.from_numpy(np.concatenate([run(image) for image in images])).to(x.device)

    return one_by_one


def _not_finite(name: str, x: Tensor, y: Tensor) -> str:
    count = int((~y.isfinite()).sum())
    return (
        f"{name} returns {count} values of {y.numel()} that are not finite for {x.shape[2]} x {x.shape[3]} finite "
        "pixels: its weights are not, or values inside exceed the largest of its type (65504 in float16; use float32)"
    )


def warn_unless_flat(run: Net, name: str, colors: int, size: tuple[int, int]) -> None:
    """Warn if a network changes flat images.

    Most untrained networks do, and so do networks for another range than 0 to 1. A network that cannot be run raises
    nothing here; it will for the first image.

    Args:
        run: the engine, for a batch of images of 0 to 1.
        name: of the network.
        colors: channels of its input.
        size: height and width of its input.
    """
    flat = torch.tensor([[0.25, 0.5, 0.75], [0.75, 0.25, 0.5]])[:, :colors]
    x = flat[..., None, None].expand(-1, -1, *size).contiguous()
    with suppress(Exception):  # engines raise whatever they met
        (means, error), (_, of_255), (_, signed) = (_of_flat(run, x, *span) for span in ((1, 0), (255, 0), (2, -1)))
        if error > _FLAT:
            warnings.warn(
                f"{name} returns {_rounded(means)} for flat images of {_rounded(flat)}. It is off by {error:.3f}; by "
                f"{of_255:.3f} if its range is 0 to 255, by {signed:.3f} for -1 to 1, and by "
                f"{(means.flip(1) - flat).abs().max():.3f} if it returns BGR; trained networks are off by about "
                "0.001. Train it, or wrap it in a forward that takes and returns RGB (or luma) of 0 to 1",
                stacklevel=3,
            )


def _of_flat(run: Net, x: Tensor, span: float, low: float) -> tuple[Tensor, float]:
    """Mean of the middle of the outputs, and the largest error of a pixel there."""
    with torch.no_grad():
        y = (run(span * x + low).float().cpu() - low) / span
    height, width = (size // 4 for size in y.shape[2:])
    y = y[..., height:-height, width:-width]
    return y.mean((2, 3)), float((y - x[..., :1, :1]).abs().max())


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(value, 3) for value in image] for image in values.tolist()]


def seam(run: Net, colors: int, scale: int, sizes: tuple[int, int], overlap: int, period: int) -> float:
    """The largest difference between tiles of a random image and the whole, relative to its largest value."""
    x = torch.from_numpy(np.random.default_rng(0).random((1, colors, *sizes), dtype=np.float32))
    whole, worst = run(x), 0.0
    for rows, columns in zip(*(spans(size, -(-size // 3), overlap, period) for size in sizes)):
        part = run(x[:, :, rows.read, columns.read])
        part = part[:, :, scaled(rows.inner, scale), scaled(columns.inner, scale)]
        wanted = whole[:, :, scaled(rows.keep, scale), scaled(columns.keep, scale)]
        worst = max(worst, float((part - wanted).abs().max()))
    return worst / (float(whole.abs().max()) or 1.0)
