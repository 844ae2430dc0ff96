"""Results as a text table. Its width depends on its content only, so a screen, a pipe and a file get the same text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Cell = str | float | None


def table(columns: Mapping[str, str], rows: Iterable[Sequence[Cell]]) -> str:
    """Format rows as aligned text below a line of titles. Nothing is cut or wrapped.

    Args:
        columns: titles, each with the format of its numbers. A column with a format such as ".2e" is aligned right,
            one with "" (words) is aligned left.
        rows: one cell per column. Text is printed unchanged, also in a column of numbers; None is blank.

    Example:
        >>> print(table({"block": "", "error": ".0e", "": ""}, [("0", 3e-7, ""), ("10", None, "not reached")]))
        block  error
        0      3e-07
        10            not reached
    """
    cells = [list(columns), *([_text(*pair) for pair in zip(row, columns.values())] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    sides = [">" if form else "<" for form in columns.values()]
    lines = ("  ".join(f"{text:{side}{width}}" for text, side, width in zip(row, sides, widths)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def _text(cell: Cell, form: str) -> str:
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else format(cell, form)
