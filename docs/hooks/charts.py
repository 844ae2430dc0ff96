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

Lines, one for each row, over columns whose names start with a number (on an axis of powers of two):

    title: Quality against depth
    lines: [4 blocks, 16 blocks]
    axis: blocks
    height: PSNR in dB
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from pictures import add_fence

WIDTH, ROW, FIELD, LINE = 470, 18, 300, 15
"""Of a chart, of a bar, of the field of points, and the least distance of two labels; all in pixels."""
SERIES = ("#4178e0", "#cc7722", "#2f9e6e", "#9a6ad6", "#d0506a", "#6f7d8c")
"""Colors of the columns or lines: a contrast of more than 3 with white and with the dark page."""
INK = "#010203"
"""Stands for the color of the page's text until the SVG is written."""
STYLE = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "svg.hashsalt": "reparam",  # the same in every build
    "text.parse_math": False,
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
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
    if not (title := wanted.pop("title", None)):
        raise ValueError(f"a chart needs a title, but has {list(wanted)}")
    with matplotlib.rc_context(STYLE):
        kind = next((kind for kind in (bars, lines) if kind.__name__ in wanted), points)
        figure = kind(found, **wanted)
        return f'<div class="chart">{as_svg(figure, title)}</div>'


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


def bars(found: Sequence[Table], *, bars: str | list[str], label: str | Sequence[str] = ()) -> Figure:
    """Horizontal bars, a group for each row; what the cell says stands at the end. No number, no bar."""
    names = [bars] if isinstance(bars, str) else bars
    columns = [column(found, name, label) for name in names]
    rows = list(columns[0])
    figure = Figure((WIDTH / 72, (ROW * len(rows) * (len(names) + 0.4) + 40) / 72), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, cells_) in enumerate(zip(names, columns)):
        places = [place for place, row in enumerate(rows) if numbers(cells_[row])]
        heights = [place + index / (len(names) + 0.4) for place in places]
        lengths = [numbers(cells_[rows[place]])[0] for place in places]
        drawn = axes.barh(heights, lengths, 0.9 / (len(names) + 0.4), color=SERIES[index], label=name)
        axes.bar_label(drawn, [cells_[rows[place]] for place in places], padding=4)
    axes.set_yticks([place + (len(names) - 1) / 2 / (len(names) + 0.4) for place in range(len(rows))], rows)
    axes.invert_yaxis()
    axes.tick_params(left=False)
    axes.xaxis.set_visible(False)
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.margins(x=0.12, y=0.01)
    figure.legend(loc="outside upper left", ncols=len(names))
    return figure


def points(
    found: Sequence[Table], *, points: str, against: Sequence[str], axis: str, spread: str | None = None
) -> Figure:
    """A row is a height, its points lie at its numbers in the columns of `against`, and its label to the right."""
    known, reach, *columns = (column(found, name) for name in (points, spread or points, *against))
    rows = list(columns[0])
    if missing := [row for row in rows if row not in known]:
        raise ValueError(f"no row of the table with {points!r} is named {missing}; there are {list(known)}")
    rows.sort(key=lambda row: -numbers(known[row])[0])
    heights = [numbers(known[row])[0] for row in rows]
    figure = Figure((WIDTH / 72, FIELD / 72), layout="constrained")
    axes = figure.add_subplot(xlabel=axis, ylabel=points)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.25)
    for index, (name, cells_) in enumerate(zip(against, columns)):
        places = [numbers(cells_[row])[0] for row in rows]
        ends = [numbers(reach[row]) for row in rows]
        axes.vlines(places, [min(end) for end in ends], [max(end) for end in ends], SERIES[index])
        # the first column has discs, the others rings around them, so that equal points are all seen
        face = SERIES[0] if index == 0 else "none"
        axes.scatter(places, heights, 36 * (1 + index) ** 2, facecolors=face, edgecolors=SERIES[index], label=name)
    figure.legend(loc="outside upper left", ncols=len(against))
    label_rows(axes, rows, heights)
    return figure


def lines(found: Sequence[Table], *, lines: Sequence[str], axis: str, height: str) -> Figure:
    """A row is a line through its numbers and is named to the right of its last one. No number, no point."""
    columns = {numbers(name)[0]: column(found, name) for name in lines}
    names = next(iter(columns.values()))
    known = {
        row: [(place, numbers(cells_[row])[0]) for place, cells_ in columns.items() if numbers(cells_[row])]
        for row in names
    }
    rows = sorted(filter(known.get, names), key=lambda row: -known[row][-1][1])
    figure = Figure((WIDTH / 72, FIELD / 72), layout="constrained")
    axes = figure.add_subplot(xlabel=axis, ylabel=height)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(columns), [f"{place:g}" for place in columns])
    axes.grid(alpha=0.25)
    for row, color in zip(rows, SERIES):
        axes.plot(*zip(*known[row]), color=color, marker="o")
    label_rows(axes, rows, [known[row][-1][1] for row in rows])
    for label, color in zip(axes.texts, SERIES):
        label.set_color(color)
    return figure


def label_rows(axes: Any, rows: Sequence[str], heights: Sequence[float]) -> None:
    """Names to the right of the field, at their heights, which fall, but never closer than a line."""
    low, high = axes.get_ylim()
    unit = (high - low) / (FIELD * 0.7)  # of a pixel, near enough: the field is what axis and legend leave
    for row, height in zip(rows, spaced(heights, LINE * unit)):
        axes.annotate(row, (1.02, height), xycoords=("axes fraction", "data"), va="center", annotation_clip=False)


def spaced(heights: Sequence[float], least: float) -> list[float]:
    """The heights, which fall, each moved down until it is `least` below the one before it."""
    moved: list[float] = []
    for height in heights:
        moved.append(min([height, *(last - least for last in moved[-1:])]))
    return moved


def as_svg(figure: Figure, title: str) -> str:
    """The figure in the color of the page's text, with its title for those who do not see it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"^.*?<svg ", "<svg ", file.getvalue(), flags=re.DOTALL)
    svg = re.sub(r'(width|height)="([0-9.]+)pt"', r'\1="\2"', svg, count=2)
    named = f'<svg role="img" aria-label="{escape(title)}" '
    return svg.replace("<svg ", named, 1).replace(INK, "currentColor")
