"""Results as text: a table that is as wide as what it holds, on a screen, in a pipe and in a file alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Cell = str | float | None


def table(columns: Mapping[str, str], rows: Iterable[Sequence[Cell]]) -> str:
    """Lines of aligned text under a line of titles; nothing is ever cut or wrapped.

    Args:
        columns: titles, each with the format of its numbers, such as ".2e": these columns are flush right. With "",
            which words have, they are flush left.
        rows: a cell for each column. Text stands there as it is, in a column of numbers too; None is blank.

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
