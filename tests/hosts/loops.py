"""Loops that are a package: the Trainer of transformers, accelerate and Lightning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from reparam import BNFreezeSchedule, FrozenStatsBN
from reparam.bn._norm import norms
from reparam.sr import EDSR

from .shared import FROZEN, RESUME, SCALE, STEPS, away, calibration, far, images, lines, numbers, run


def check_transformers() -> dict[str, float]:
    """A Swin2SR under the Trainer."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    space: dict[str, Any] = {"__name__": "lines"}
    exec(lines("transformers", "py"), space)
    kind = space["Swin2SRForImageSuperResolution"]
    sizes = {"image_size": 16, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "upscale": 2}
    plain = kind(transformers.Swin2SRConfig(**sizes)).eval()
    plain.save_pretrained("plain")
    small, large = images(1, 400)
    pairs = [{"pixel_values": a, "labels": b} for a, b in zip(small, large)]

    def train(resume: str | None) -> tuple[nn.Module, nn.Module]:
        net = space["train"](pairs, [calibration()], resume)
        untouched, said = kind.from_pretrained("fused", output_loading_info=True)
        assert not any(said.values()), said
        return net, untouched

    return compared(train, "run/checkpoint-10", plain)


def check_accelerate() -> dict[str, float]:
    """An EDSR in a loop of accelerate."""
    return of_edsr("accelerate", "run")


def check_lightning() -> dict[str, float]:
    """An EDSR under Lightning's Trainer."""
    return of_edsr("Lightning", "run/step=10.ckpt", 40)  # an epoch of 10 steps: it does not skip batches


def of_edsr(title: str, checkpoint: str, count: int = 160) -> dict[str, float]:
    """The lines of the page, on this library's EDSR and so many pairs of images."""
    sizes = {"scale": SCALE, "num_blocks": 2, "channels": 16}
    space: dict[str, Any] = {"__name__": "lines"}
    exec(lines(title, "py"), space)
    plain = EDSR(**sizes).eval()
    pairs = torch.utils.data.TensorDataset(*images(1, count))

    def train(resume: str | None) -> tuple[nn.Module, nn.Module]:
        net, untouched = EDSR(**sizes), EDSR(**sizes)
        net.load_state_dict(plain.state_dict())
        net, fused = space["train"](net, pairs, [calibration()], resume=resume)
        untouched.load_state_dict(fused.state_dict(), strict=True)
        return net, untouched

    return compared(train, checkpoint, plain)


def compared(
    train: Callable[[str | None], tuple[nn.Module, nn.Module]], checkpoint: str, plain: nn.Module
) -> dict[str, float]:
    """Both runs, and when they froze."""
    frozen: list[int] = []
    step = BNFreezeSchedule.step

    def counted(self: Any) -> None:
        step(self)
        frozen.append(sum(isinstance(bn, FrozenStatsBN) for _, bn in norms(self.model)))

    BNFreezeSchedule.step = counted  # type: ignore[method-assign]  # to look on
    torch.manual_seed(0)
    straight = numbers(train(None)[0])
    blocks = frozen[-1]
    assert blocks and frozen == [0] * FROZEN + [blocks] * (STEPS - FROZEN), frozen
    frozen.clear()
    torch.manual_seed(1)  # blocks that start with other numbers
    net, untouched = train(checkpoint)
    assert frozen == [0] * (FROZEN - RESUME) + [blocks] * (STEPS - FROZEN), frozen
    x = images(999)[0]
    return {
        "fused": away(run(untouched, x), run(net, x)),
        "learned": away(run(untouched, x), run(plain, x)),
        "resumed": far(numbers(net), straight),
    }


LOOPS = {"transformers": check_transformers, "accelerate": check_accelerate, "lightning": check_lightning}
