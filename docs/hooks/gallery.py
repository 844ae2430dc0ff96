"""Fences of the page on models of other libraries: what `fuse` understands, and modules before and after it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

import torch
from pictures import add_fence
from torch import Tensor, nn
from torch.nn import functional as F

import reparam
from reparam.algebra import linear_op
from reparam.branches import Branch
from reparam.fusing._foreign.forms import CONV_NAMES, FORMS, ROWS
from reparam.fusing._foreign.functions import FUNCTIONS, METHODS


def on_config(config: Any) -> Any:
    """Called by mkdocs first: makes the fences known."""
    add_fence(config, "understood", lambda source, _: understood())
    add_fence(config, "before-and-after", lambda source, _: before_and_after(source))
    return config


def understood() -> str:
    """The layers, functions, methods and inference forms that `fuse` knows, one row each."""
    kinds = [kind for kind in linear_op.registry if issubclass(kind, nn.Module) and kind.__module__.startswith("torch")]
    layers = sorted(kind.__name__ for kind in kinds if not issubclass(kind, Branch))
    functions = {f"{_home(one)}.{one.__name__}" for one in FUNCTIONS}
    kept = sorted({", ".join(form.convs) for form in FORMS} | {row.conv for row in ROWS} | set(CONV_NAMES.values()))
    rows = {
        "layers": [name.replace("_ConvNd", "Conv1d, Conv2d, Conv3d") for name in layers],
        "functions and operators": sorted(functions),
        "methods": sorted(METHODS),
        "names of fused convolutions in known classes": kept,
    }
    body = "".join(f"<tr><th>{title}</th><td>{_codes(names)}</td></tr>" for title, names in rows.items())
    return f"<table>{body}</table>"


def _home(function: Any) -> str:
    """The module that a user imports a function from."""
    if getattr(F, function.__name__, None) is function:
        return "F"
    return "torch" if getattr(torch, function.__name__, None) is function else function.__module__.strip("_")


def _codes(names: Iterable[str]) -> str:
    return " ".join(f"<code>{escape(name)}</code>" for name in names)


def before_and_after(source: str) -> str:
    """A table of the modules that the lines name: what each holds, what it becomes, and how far the two are apart."""
    rows = []
    for line in source.strip().splitlines():
        torch.manual_seed(0)
        module, x = GALLERY[line]().double(), torch.randn(4, 8, 12, 11, dtype=torch.float64)
        module(x)  # a batch for the statistics
        module.eval()
        plain = reparam.fuse(module)
        error = float((plain(x) - module(x)).detach().abs().max())
        cells = (f"<pre>{escape(_held(module))}</pre>", f"<pre>{escape(_held(plain))}</pre>", f"{error:.0e}")
        rows.append(f"<tr><td>{escape(line)}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{title}</th>" for title in ("", "before", "after", "largest difference, float64"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _held(module: nn.Module) -> str:
    return str(module).split("\n\n\n")[0]


class Sum(nn.Module):
    """RepConvN of YOLOv9, VGGBlock of RT-DETR: two branches and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.act = _norm(nn.Conv2d(8, 8, 3, padding=1)), _norm(nn.Conv2d(8, 8, 1)), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv1(x) + self.conv2(x))


class Depthwise(nn.Module):
    """RepVGGDW of RepViT: a norm after the sum, and no activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv1 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1, groups=8)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x) + self.conv1(x) + x)


class Chunks(nn.Module):
    """Halves of the channels, each with branches of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, k, padding=k // 2) for k in (3, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=1)
        return torch.cat([self.a(one) + self.b(one), self.c(two) + two], dim=1)


class LowRank(nn.Module):
    """An adapter of low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.base(x, *args, **kwargs) + 0.5 * self.up(self.down(x))


class Functions(nn.Module):
    """No layers at all, and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.point = nn.Parameter(torch.randn(8, 8, 3, 3)), nn.Parameter(torch.randn(8, 8, 1, 1))
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        small = self.gain[:, None, None] * F.conv2d(x, self.point)
        return F.relu(F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight) + small)


def _norm(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))


GALLERY = {
    "two branches and an activation": Sum,
    "depthwise, a norm after the sum": Depthwise,
    "chunks of the channels": Chunks,
    "an adapter of low rank": LowRank,
    "functions and parameters": Functions,
}
