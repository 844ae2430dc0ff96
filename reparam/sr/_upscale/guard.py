"""What is looked at before an enlarged image is handed out: shapes, numbers, and tiles beside the whole."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from torch import nn

from ...deploy._runners import Run
from ...errors import SpecError
from .tiles import scaled, spans


def check_weights(net: nn.Module) -> None:
    """Refuses a network that can compute nothing.

    Raises:
        SpecError: if a parameter is not finite, or a buffer (in which masks may be infinite) holds NaN.
    """
    odd = {name: ~tensor.isfinite() for name, tensor in net.named_parameters()}
    odd |= {name: tensor.isnan() for name, tensor in net.named_buffers()}
    for name, where in odd.items():
        if where.any():
            raise SpecError(
                f"{type(net).__name__} cannot enlarge anything: {int(where.sum())} of the {where.numel()} numbers of "
                f"{name} are not finite; take weights from before that happened in training"
            )


def checked(run: Run, name: str, scale: int, again: Callable[[], Run] | None = None) -> Run:
    """The same engine, the output of which has the right size and is finite.

    Args:
        run: of an image of 0 to 1.
        name: of the network, for errors.
        scale: what it says of itself.
        again: makes an engine of more range, for what is not finite in the first one.

    Raises:
        SpecError: from the engine, if neither gives finite values of finite ones, or the size is another one.
    """
    make_wider = functools.cache(again) if again else None

    def engine(x: np.ndarray) -> np.ndarray:
        y = run(x)
        if not np.isfinite(y).all() and np.isfinite(x).all():
            if not make_wider:
                raise SpecError(_not_finite(name, x, y))
            y = make_wider()(x)
            if not np.isfinite(y).all():
                raise SpecError(_not_finite(name, x, y) + ", in float32 too")
        wanted = (*x.shape[:2], scale * x.shape[2], scale * x.shape[3])
        if y.shape != wanted:
            raise SpecError(f"{name} makes {y.shape} of {x.shape}, and not {wanted} as its scale={scale} says")
        return y

    return engine


def _not_finite(name: str, x: np.ndarray, y: np.ndarray) -> str:
    count = int((~np.isfinite(y)).sum())
    return (
        f"{name} makes {count} values of {y.size} that are not finite of {x.shape[2]} x {x.shape[3]} finite pixels: "
        "its weights are not, or numbers inside pass the largest of its format (65504 in float16; use float32 there)"
    )


def seam(run: Run, colors: int, scale: int, sizes: tuple[int, int], overlap: int, period: int) -> float:
    """How much nine tiles differ from the whole, over its largest value: three of them, of a random image."""
    x = np.random.default_rng(0).random((1, colors, *sizes), dtype=np.float32)
    whole, worst = run(x), 0.0
    for rows, columns in zip(*(spans(size, -(-size // 3), overlap, period) for size in sizes)):
        part = run(np.ascontiguousarray(x[:, :, rows.read, columns.read]))
        part = part[:, :, scaled(rows.inner, scale), scaled(columns.inner, scale)]
        wanted = whole[:, :, scaled(rows.keep, scale), scaled(columns.keep, scale)]
        worst = max(worst, float(np.abs(part - wanted).max()))
    return worst / (float(np.abs(whole).max()) or 1.0)
