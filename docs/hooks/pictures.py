"""Fences of the pages that are pictures and tables made while the site is built, from the blocks themselves.

What a fence holds are expressions in the names of `reparam`: `draw` draws a block, `kernels` shows the kernels of a
block's branches and their sum, `costs` is a table with a row for each of its lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from typing import Any

import torch
from torch import Tensor

import reparam
from reparam.blocks import ReparamBlock
from reparam.bn import norms
from reparam.drawing._shapes import DETAIL, TITLE, document, text
from reparam.folding import cost

PIXELS = 16 * 64 * 64
"""Of the batch whose training step is estimated."""
SHOWN, TAP, GUTTER, ROOM = 4, 12, 3, 30
"""Channels that a heat map shows; pixels of a tap, between two channels and between two maps."""
PLUS, MINUS = "#d9822b", "#4178e0"
HEAD = ("block", "parameters", "after fusing", "step, branches", "step, folded")


def on_config(config: Any) -> Any:
    """Called by mkdocs first: makes the fences known."""
    for name, make in FENCES.items():
        add_fence(config, name, lambda source, _, make=make: make(source))
    return config


def add_fence(config: Any, name: str, make: Callable[[str, Any], str]) -> None:
    """Makes a fence known: a function of what it holds and of the Markdown that it is in. An error stops the build."""
    from pymdownx.superfences import SuperFencesException

    def formatted(source: str, _language: str, _class: str, _options: Any, md: Any, **__: Any) -> str:
        try:
            return make(source, md)
        except Exception as problem:  # any other kind would leave the fence as it is, and pass
            raise SuperFencesException(f"{source!r}: {problem}") from problem

    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": name, "class": name, "format": formatted})


class _Public(dict):
    def __missing__(self, name: str) -> Any:
        try:
            return getattr(reparam, name)
        except AttributeError:
            raise KeyError(name) from None


def evaluate(expression: str) -> ReparamBlock:
    """The block that a line of a fence says, the same in every build."""
    torch.manual_seed(0)
    return eval(expression, {}, _Public())


def drawing(source: str) -> str:
    """The block before and after fusing."""
    return picture(str(reparam.draw(evaluate(source))))


def picture(svg: str) -> str:
    """An SVG that is made smaller on a narrow page, but by a quarter at most, and moved sideways from there on."""
    width = re.search(r'width="([0-9.]+)"', svg)
    assert width is not None
    return f'<div class="picture" style="--least: {0.75 * float(width[1]):g}px">{svg}</div>'


def costs(source: str) -> str:
    """What each block costs in training and after fusing."""
    head = "".join(f"<th>{cell}</th>" for cell in HEAD)
    rows = ["".join(f"<td>{cell}</td>" for cell in cost_row(line)) for line in source.strip().splitlines()]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="costs"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def cost_row(expression: str) -> list[str]:
    """Parameters, and the steps over that of the convolution that the block is equal to."""
    block = evaluate(expression)
    numbers, fused = sum(parameter.numel() for parameter in block.parameters()), block.spec.parameters
    plain, folded = cost.plain(block.spec).each, folded_step(block)
    steps = [f"{block.cost / plain:.1f}", "none" if folded is None else f"{folded / plain:.1f}"]
    return [f"<code>{escape(expression)}</code>", f"{numbers:,}", f"{fused:,}", *steps]


def folded_step(block: ReparamBlock) -> float | None:
    """The estimate for one convolution on batch statistics, or None where they have no patch moments."""
    if block.why_not_fold(True):
        return None
    after = cost.BATCH_NORM * block.spec.out_channels * (block.norm is not None)
    return block._folded[any(norms(block.branches))].step(PIXELS, "cpu") / PIXELS + after


def kernel_maps(source: str) -> str:
    """Heat maps of the branches' kernels, and of the kernel that is their sum."""
    block = evaluate(source).eval()
    terms = [(type(branch).__name__, branch.to_conv().weight) for branch in block.branches]
    terms.append(("the convolution", block.to_conv().weight))
    shown = [(name, weight.detach()[:SHOWN, :SHOWN]) for name, weight in terms]
    strongest = max(float(weight.abs().max()) for _, weight in shown)
    signs = ["+"] * (len(shown) - 2) + ["="]
    side, parts = SHOWN * (3 * TAP + GUTTER), []
    for index, (name, weight) in enumerate(shown):
        x = index * (side + ROOM)
        parts += [text(x + side / 2, 12, name, DETAIL), heat_map(weight / strongest, x, 20)]
        parts += [text(x + side + ROOM / 2, 24 + side / 2, sign, TITLE) for sign in signs[index : index + 1]]
    return picture(document(f"kernels of {source}", len(shown) * (side + ROOM) - ROOM, side + 22, "".join(parts)))


def heat_map(weight: Tensor, x: float, y: float) -> str:
    """A kernel (out, in, k, k) as a table of small kernels: output channels down, input channels across.

    The square root of a weight is shown, so that small ones are seen beside the identity's.
    """
    cells = []
    for (o, i, row, column), value in zip(torch.cartesian_prod(*map(torch.arange, weight.shape)), weight.flatten()):
        left = x + i * (weight.shape[3] * TAP + GUTTER) + column * TAP
        top = y + o * (weight.shape[2] * TAP + GUTTER) + row * TAP
        color = f'fill="{PLUS if value > 0 else MINUS}" fill-opacity="{abs(value) ** 0.5:.2f}"'
        edge = 'stroke="currentColor" stroke-opacity=".15"'
        cells.append(f'<rect x="{left:g}" y="{top:g}" width="{TAP}" height="{TAP}" {color} {edge}/>')
    return "".join(cells)


FENCES: dict[str, Callable[[str], str]] = {"draw": drawing, "costs": costs, "kernels": kernel_maps}
