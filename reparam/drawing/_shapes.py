"""The parts of a drawing: boxes, lines of boxes and forks of lines, from left to right, written as SVG.

A shape lies on an axis, the wire through it. It extends `up` pixels above the axis and `down` pixels below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from xml.sax.saxutils import escape, quoteattr

TITLE, DETAIL = 13, 11  # font sizes
LETTER = 0.6  # width of a letter relative to its font size; generous, because fonts differ between systems
WIRE, SPACE, MARGIN, LABEL, END = 26.0, 10.0, 10.0, 17.0, 16.0

COLORS = {"conv": "#4178e0", "other": "#2f9e6e", "norm": "#d9822b", "join": "currentColor"}
"""The color of each kind of box. It is drawn faintly, to be visible on white and on black."""
STYLE = "svg:root{color:#24292f}@media(prefers-color-scheme:dark){svg:root{color:#d8dee4}}"
"""Applies only if the drawing is a file of its own. Inside a page, :root is the page, which has its own color."""


class Shape(Protocol):
    """Anything that can lie on a wire."""

    @property
    def width(self) -> float: ...

    @property
    def up(self) -> float: ...

    @property
    def down(self) -> float: ...

    def at(self, x: float, y: float) -> str:
        """The SVG of the shape with its left end at x and its axis at y."""


def text(x: float, y: float, words: str, size: int, *, anchor: str = "middle", faint: bool = False) -> str:
    place = f'x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"'
    color = 'stroke="none" fill="currentColor"' + ' opacity=".7"' * faint
    return f"<text {place} {color}>{escape(words)}</text>"


def wire(*points: tuple[float, float]) -> str:
    return f'<path d="M{" L".join(f"{x:g} {y:g}" for x, y in points)}"/>'


@dataclass(frozen=True)
class Box:
    """One operation: its name, and its channels below. A browser shows `note` when the pointer is over it."""

    title: str
    detail: str = ""
    kind: str = "conv"
    note: str = ""

    @property
    def width(self) -> float:
        return max(len(self.title) * TITLE, len(self.detail) * DETAIL) * LETTER + 18

    @property
    def up(self) -> float:
        return 20.0 if self.detail else 13.0

    down = up

    def at(self, x: float, y: float) -> str:
        color, middle = COLORS[self.kind], x + self.width / 2
        radius = 4 if self.detail else self.up
        rect = (
            f'<rect x="{x:g}" y="{y - self.up:g}" width="{self.width:g}" height="{2 * self.up:g}" rx="{radius:g}" '
            f'stroke="{color}" fill="{color}" fill-opacity=".14"/>'
        )
        lines = [text(middle, y + (-2 if self.detail else 5), self.title, TITLE)]
        lines += [text(middle, y + 13, self.detail, DETAIL, faint=True)] * bool(self.detail)
        note = f"<title>{escape(self.note)}</title>" if self.note else ""
        return f"<g>{note}{wire((x - 6, y - 4), (x, y), (x - 6, y + 4))}{rect}{''.join(lines)}</g>"


@dataclass(frozen=True)
class Line:
    """Shapes one after the other, or a plain wire if there are none. The label is above."""

    shapes: tuple[Shape, ...] = ()
    label: str = ""

    @property
    def width(self) -> float:
        together = sum(shape.width for shape in self.shapes) + WIRE * (len(self.shapes) + 1)
        return max(together, len(self.label) * DETAIL * LETTER + 16)

    @property
    def up(self) -> float:
        return max([shape.up for shape in self.shapes], default=0.0) + LABEL * bool(self.label)

    @property
    def down(self) -> float:
        return max([shape.down for shape in self.shapes], default=3.0)

    def at(self, x: float, y: float) -> str:
        parts, end = [], x
        if self.label:
            parts.append(text(x + 8, y - self.up + DETAIL, self.label, DETAIL, anchor="start", faint=True))
        for shape in self.shapes:
            parts += [wire((end, y), (end + WIRE, y)), shape.at(end + WIRE, y)]
            end += WIRE + shape.width
        return "".join([*parts, wire((end, y), (x + self.width, y))])


@dataclass(frozen=True)
class Fork:
    """Lines that share one input, one below the other, and what joins them."""

    lines: tuple[Line, ...]
    join: str = "+"

    @property
    def width(self) -> float:
        return max(line.width for line in self.lines) + WIRE + self._joint.width

    @property
    def up(self) -> float:
        return self.lines[0].up + self._depths[-1] / 2

    @property
    def down(self) -> float:
        return self.lines[-1].down + self._depths[-1] / 2

    @property
    def _joint(self) -> Box:
        return Box(self.join, kind="join")

    @property
    def _depths(self) -> list[float]:
        """How far the axis of each line is below that of the first."""
        depths = [0.0]
        for above, below in zip(self.lines, self.lines[1:]):
            depths.append(depths[-1] + above.down + SPACE + below.up)
        return depths

    def at(self, x: float, y: float) -> str:
        end, ys = x + max(line.width for line in self.lines), [y - self._depths[-1] / 2 + d for d in self._depths]
        parts = [wire((side, ys[0]), (side, ys[-1])) for side in (x, end)]
        for line, axis in zip(self.lines, ys):
            parts += [line.at(x, axis), wire((x + line.width, axis), (end, axis))]
        return "".join([*parts, wire((end, y), (end + WIRE, y)), self._joint.at(end + WIRE, y)])


def as_svg(name: str, captioned: Sequence[tuple[str, Line]]) -> str:
    """A complete SVG of lines from x to y, one below the other, each under its caption."""
    parts, y, width = [], MARGIN, 0.0
    for caption, line in captioned:
        parts.append(text(MARGIN, y + TITLE, caption, TITLE, anchor="start"))
        y += TITLE + SPACE + line.up
        start, end = MARGIN + END, MARGIN + END + line.width
        parts += [text(MARGIN + 4, y + 4, "x", TITLE), line.at(start, y), text(end + END - 4, y + 4, "y", TITLE)]
        y += line.down + 2 * SPACE
        width = max(width, line.width + 2 * END, len(caption) * TITLE * LETTER)
    return document(name, width + 2 * MARGIN, y - SPACE, f'<g stroke="currentColor" fill="none">{"".join(parts)}</g>')


def document(name: str, width: float, height: float, content: str) -> str:
    """A complete SVG, with its name for screen readers."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label={quoteattr(name)} font-family="sans-serif">'
        f"<style>{STYLE}</style>{content}</svg>"
    )
