"""What all hosts are trained on, the lines of the pages, and how far numbers are apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
STEPS, RESUME, FROZEN, SCALE = 20, 10, 18, 2


def images(seed: int, count: int = 4) -> tuple[Tensor, Tensor]:
    """Smooth images small and large."""
    noise = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    large = F.interpolate(noise, size=(32, 32), mode="bicubic").clamp(0, 1)
    return F.avg_pool2d(large, SCALE), large


def calibration() -> Tensor:
    """Images to calibrate on, of eight bits."""
    return (images(77, 8)[0] * 255).round() / 255


def prepare() -> None:
    """Writes them into the folder that the page names."""
    from PIL import Image

    Path("datasets/lr").mkdir(parents=True)
    for number, image in enumerate(calibration()):
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(f"datasets/lr/{number}.png")


def lines(title: str, language: str) -> str:
    """What the page of a code shows, in a language."""
    page = (ROOT / "docs" / "training" / f"{title.lower()}.md").read_text()
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return text


def numbers(net: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {key: value.clone() for key, value in net.state_dict().items()}


def away(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|b|."""
    return float((a - b).abs().max() / b.abs().max())


def far(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest difference of two state dicts; the keys have to be the same."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[key].double() - theirs[key].double()).abs().max()) for key in ours)


@torch.no_grad()
def run(net: nn.Module, x: Tensor) -> Tensor:
    """The images that a network makes in eval mode."""
    mode = net.training
    y = net.eval()(x)
    net.train(mode)
    return getattr(y, "reconstruction", y)  # of transformers
