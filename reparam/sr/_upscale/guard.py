"""What is looked at before an enlarged image is handed out: shapes, numbers, and tiles beside the whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ...deploy._runners import Run
from ...errors import SpecError
from .tiles import scaled, spans

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
