"""The fence `chart`: a picture of numbers that stand in the tables of the same page, so that the two cannot differ.

A fence is YAML and names columns; `section`, the heading above a table, says which is meant where several have such a
column. Bars of one column or of several, with `label` for the columns that name the rows (default: the first one):

    title: Images of 640x360
    bars: frames/s
    label: [network, engine]
    section: Measured

Points, one for each column of `against` (ratios, on an axis of powers of two), and their spread by what yet another
column says; rows of two tables are joined by their first cells:

    title: Quality against cost
    points: mean PSNR
    against: [folded, branch by branch]
    axis: time of a training over the plain network's
    spread: seeds 0, 1, 2
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pictures import add_fence

from reparam.shapes import LETTER, document, escape, text, wire

WIDTH, TOP, GAP = 470.0, 24.0, 10.0
"""Of a chart, of its legend, and between any two things; all lengths are in pixels."""
BAR, HEIGHT, LINE = 18.0, 250.0, 16.0
"""Of a bar and of the field of points; the least distance of two labels."""
SIZE = 12
"""Of the letters; on a phone the whole is drawn at three quarters."""
SERIES = ("#4178e0", "#cc7722", "#2f9e6e", "#9a6ad6")
"""Colors of the columns: a contrast of more than 3 with white and with the dark page."""
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def on_config(config: Any) -> Any:
    """Called by mkdocs first: makes the fence known."""
    add_fence(config, "chart", lambda source, md: chart(source, "\n".join(md.lines)))
    return config


@dataclass(frozen=True)
class Table:
    """A table of a page, as text without marks, and the heading above it."""

    section: str
    head: list[str]
    rows: list[list[str]]


def chart(source: str, page: str) -> str:
    """The picture that a fence asks for, of the Markdown page that it stands on."""
    wanted = yaml.safe_load(source)
    section = wanted.pop("section", None)
    found = [table for table in tables(page) if section in (None, table.section)]
    return f'<div class="chart">{(bars if "bars" in wanted else points)(found, **wanted)}</div>'


def tables(page: str) -> Iterator[Table]:
    section, lines = "", re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE).splitlines()
    for index, line in enumerate(lines):
        if line.startswith("#"):
            section = plain(line.lstrip("#"))
        elif re.fullmatch(r"\|[-:| ]+\|", line.strip()):
            end = next((i for i in range(index, len(lines)) if not lines[i].startswith("|")), len(lines))
            head, *rows = [cells(row) for row in [lines[index - 1], *lines[index + 1 : end]]]
            yield Table(section, head, rows)


def cells(row: str) -> list[str]:
    return [plain(cell) for cell in re.split(r"(?<!\\)\|", row.strip())[1:-1]]


def plain(markdown: str) -> str:
    """Text without the marks of links, code and emphasis."""
    return re.sub(r"[*`]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", markdown)).strip()


def column(found: Sequence[Table], name: str, label: str | Sequence[str] = ()) -> dict[str, str]:
    """The cells of the one column with a name, by the labels of their rows."""
    having = [table for table in found if name in table.head]
    if len(having) != 1:
        heads = "; ".join(f"{table.section}: {' | '.join(table.head)}" for table in found)
        raise ValueError(f"one table must have a column {name!r}, but {len(having)} of these have it: {heads}")
    table = having[0]
    keys = [table.head.index(key) for key in ([label] if isinstance(label, str) else label)] or [0]
    labelled = {", ".join(row[key] for key in keys): row[table.head.index(name)] for row in table.rows}
    if len(labelled) < len(table.rows):
        raise ValueError(f"two rows of the table with {name!r} have one label: {', '.join(labelled)}")
    return labelled


def numbers(cell: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(cell)]


def bars(found: Sequence[Table], *, title: str, bars: str | list[str], label: str | Sequence[str] = ()) -> str:
    """Horizontal bars, a group for each row; what the cell says stands at the end. No number, no bar."""
    names = [bars] if isinstance(bars, str) else bars
    columns = [column(found, name, label) for name in names]
    shown = [cell for cells in columns for cell in cells.values() if numbers(cell)]
    left, right = GAP + longest(columns[0]), WIDTH - GAP - longest(shown)
    scale, y, parts = (right - left) / max(numbers(cell)[0] for cell in shown), TOP + GAP, []
    for row in columns[0]:
        parts.append(text(left - 5, y + BAR * len(names) / 2 + 3, row, SIZE, anchor="end"))
        for index, cell in enumerate(cells[row] for cells in columns):
            if numbers(cell):
                length = numbers(cell)[0] * scale
                parts.append(bar(left, y, length, BAR - 2, index))
                parts.append(text(left + length + 5, y + BAR - 5, cell, SIZE, anchor="start"))
            y += BAR
        y += GAP / 2
    return titled(title, names, square, y, parts)


def bar(x: float, y: float, width: float, height: float, index: int) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:.2f}" height="{height:g}"'
    return f'<rect {place} fill="{SERIES[index]}" stroke="none"/>'


def square(x: float, y: float, index: int) -> str:
    return bar(x - 5, y - 5, 10, 10, index)


def points(
    found: Sequence[Table], *, title: str, points: str, against: Sequence[str], axis: str, spread: str | None = None
) -> str:
    """A row is a height, its points lie at its numbers in the columns of `against`, and its label to the right."""
    columns = [column(found, name) for name in (points, spread or points, *against)]
    rows, known = list(columns[2]), columns[0]
    if missing := [row for row in rows if row not in known]:
        raise ValueError(f"no row of the table with {points!r} is named {missing}; there are {list(known)}")
    rows.sort(key=lambda row: -numbers(known[row])[0])
    at = {row: [numbers(cells[row]) for cells in columns] for row in rows}
    left, right, bottom = 40.0, WIDTH - GAP - longest(rows), TOP + 2 * GAP + HEIGHT
    costs = [value for _, _, *values in at.values() for (value,) in values]
    x = Scale(octaves(costs), left, right - GAP, math.log)
    y = Scale(even([value for _, reach, *_ in at.values() for value in reach]), bottom, TOP + 2 * GAP)
    parts = [*grid(x, y), text(left - 5, y.end - GAP, points, SIZE, anchor="start", faint=True)]
    parts.append(text((left + right) / 2, bottom + 32, axis, SIZE, faint=True))
    for (row, ((height,), *rest)), low in zip(at.items(), spaced([y(height) for ((height,), *_) in at.values()])):
        parts += marks(x, y, height, *rest)
        parts.append(text(right, low + 4, row, SIZE, anchor="start"))
    return titled(title, against, dot, bottom + 38, parts)


def marks(x: Scale, y: Scale, height: float, reach: list[float], *values: list[float]) -> Iterator[str]:
    """The points of a row, the spread of each, and the line that joins them."""
    places = [x(value) for (value,) in values]
    yield f'<g opacity=".5">{wire((min(places), y(height)), (max(places), y(height)))}</g>'
    for index, (color, place) in enumerate(zip(SERIES, places)):
        yield f'<g stroke="{color}">{wire((place, y(min(reach))), (place, y(max(reach))))}</g>'
        yield dot(place, y(height), index)


def dot(x: float, y: float, index: int) -> str:
    """Of the first column a disc, of the others rings around it, so that equal points are all seen."""
    look = f'stroke="{SERIES[index]}" stroke-width="2"' + f' fill="{SERIES[0]}"' * (index == 0)
    return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{3 + 3 * index}" {look}/>'


@dataclass(frozen=True)
class Scale:
    """From numbers to places; the first and the last tick lie at the ends."""

    ticks: list[float]
    start: float
    end: float
    bend: Callable[[float], float] = float
    """`math.log` of an axis of ratios."""

    def __call__(self, value: float) -> float:
        low, high = self.bend(self.ticks[0]), self.bend(self.ticks[-1])
        return self.start + (self.bend(value) - low) / (high - low) * (self.end - self.start)


def even(values: Sequence[float]) -> list[float]:
    """Some five round numbers at equal distances, around all values."""
    span = (max(values) - min(values)) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(span))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= span * 0.999)
    first, last = math.floor(min(values) / step + 1e-9), math.ceil(max(values) / step - 1e-9)
    return [step * i for i in range(first, max(last, first + 1) + 1)]


def octaves(values: Sequence[float]) -> list[float]:
    """The powers of two around all values."""
    first, last = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    return [2.0**power for power in range(first, max(last, first + 1) + 1)]


def grid(x: Scale, y: Scale) -> Iterator[str]:
    for tick in x.ticks:
        yield f'<g opacity=".15">{wire((x(tick), y.start), (x(tick), y.end))}</g>'
        yield text(x(tick), y.start + 16, f"{tick:.6g}", SIZE, faint=True)
    for tick in y.ticks:
        yield f'<g opacity=".15">{wire((x.start, y(tick)), (x.end, y(tick)))}</g>'
        yield text(x.start - 5, y(tick) + 4, f"{tick:.6g}", SIZE, anchor="end", faint=True)


def spaced(heights: Sequence[float]) -> list[float]:
    """The heights, which rise, each moved down until it is a line below the one before it."""
    moved: list[float] = []
    for height in heights:
        moved.append(max([height, *(last + LINE for last in moved[-1:])]))
    return moved


def longest(words: Iterable[str]) -> float:
    return max(map(len, words)) * SIZE * LETTER


def titled(title: str, names: Sequence[str], mark: Callable[..., str], height: float, parts: Iterable[str]) -> str:
    """The document, with its title for those who do not see it, and the names of the columns beside their marks."""
    x, legend = GAP, [f"<title>{escape(title)}</title>"]
    for index, name in enumerate(names):
        legend += [mark(x, TOP / 2, index), text(x + 12, TOP / 2 + 4, name, SIZE, anchor="start")]
        x += 12 + longest([name]) + 2 * GAP
    return document(title, WIDTH, height, f'<g stroke="currentColor" fill="none">{"".join([*legend, *parts])}</g>')
