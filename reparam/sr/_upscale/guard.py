"""What is looked at before an enlarged image is handed out: shapes, numbers, and tiles beside the whole."""

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


def checked(run: Net, name: str, scale: int, again: Callable[[], Net] | None = None) -> Net:
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
                f"{name} makes {tuple(y.shape)} of {tuple(x.shape)}, and not {wanted} as its scale={scale} says"
            )
        return y

    return engine


def on_tensors(run: Run, native: bool) -> Net:
    """An engine of arrays as one of tensors: a `native` one takes them where they are, another one image by image."""
    if native:
        return cast(Net, run)

    def one_by_one(x: Tensor) -> Tensor:
        images = [np.ascontiguousarray(image) for image in x.cpu().numpy()[:, None]]
        return torch.from_numpy(np.concatenate([run(image) for image in images])).to(x.device)

    return one_by_one


def _not_finite(name: str, x: Tensor, y: Tensor) -> str:
    count = int((~y.isfinite()).sum())
    return (
        f"{name} makes {count} values of {y.numel()} that are not finite of {x.shape[2]} x {x.shape[3]} finite pixels: "
        "its weights are not, or numbers inside pass the largest of its format (65504 in float16; use float32 there)"
    )


def warn_unless_flat(run: Net, name: str, colors: int, size: tuple[int, int]) -> None:
    """Says what a network makes of flat images, if it is not what they were.

    Most untrained networks change them, and those for another range than 0 to 1 if that makes a difference to them.
    What cannot be run is left to the first image.

    Args:
        run: of one image of 0 to 1, or several.
        name: of the network.
        colors: that it takes.
        size: height and width that it takes.
    """
    flat = torch.tensor([[0.25, 0.5, 0.75], [0.75, 0.25, 0.5]])[:, :colors]
    x = flat[..., None, None].expand(-1, -1, *size).contiguous()
    with suppress(Exception):  # engines raise whatever they met
        (means, error), (_, of_255), (_, signed) = (_of_flat(run, x, *span) for span in ((1, 0), (255, 0), (2, -1)))
        if error > _FLAT:
            warnings.warn(
                f"{name} makes {_rounded(means)} of flat images of {_rounded(flat)}. It is off by {error:.3f}, by "
                f"{of_255:.3f} if it takes and gives 0 to 255, by {signed:.3f} for -1 to 1, and by "
                f"{(means.flip(1) - flat).abs().max():.3f} if its results are BGR; trained networks are off by some "
                "0.001. Train it, or give it a forward that takes and gives RGB (or luma) of 0 to 1",
                stacklevel=3,
            )


def _of_flat(run: Net, x: Tensor, span: float, low: float) -> tuple[Tensor, float]:
    """Means of the middle of what comes out, and how far a pixel there is from what it was."""
    with torch.no_grad():
        y = (run(span * x + low).float().cpu() - low) / span
    height, width = (size // 4 for size in y.shape[2:])
    y = y[..., height:-height, width:-width]
    return y.mean((2, 3)), float((y - x[..., :1, :1]).abs().max())


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(value, 3) for value in image] for image in values.tolist()]


def seam(run: Net, colors: int, scale: int, sizes: tuple[int, int], overlap: int, period: int) -> float:
    """How much nine tiles differ from the whole, over its largest value: three of them, of a random image."""
    x = torch.from_numpy(np.random.default_rng(0).random((1, colors, *sizes), dtype=np.float32))
    whole, worst = run(x), 0.0
    for rows, columns in zip(*(spans(size, -(-size // 3), overlap, period) for size in sizes)):
        part = run(x[:, :, rows.read, columns.read])
        part = part[:, :, scaled(rows.inner, scale), scaled(columns.inner, scale)]
        wanted = whole[:, :, scaled(rows.keep, scale), scaled(columns.keep, scale)]
        worst = max(worst, float((part - wanted).abs().max()))
    return worst / (float(whole.abs().max()) or 1.0)
