"""Turns the formulas of a page into MathML, which browsers draw themselves: no script, no network."""

from __future__ import annotations

import re
from html import unescape
from importlib.resources import files as files_of
from typing import Any

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
"""What `pymdownx.arithmatex` makes of $...$ and $$...$$."""


def on_files(files: Any, config: Any) -> Any:
    """Ships a font with the tables of mathematics, STIX Two Math (SIL Open Font License), for systems without one."""
    from mkdocs.structure.files import File

    font = files_of("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"
    files.append(File.generated(config, "assets/math.ttf", abs_src_path=str(font)))
    return files


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with the HTML of a page, docstrings included."""
    html = FORMULA.sub(lambda match: mathml(unescape(match[3]), display=match[2] == "["), html)
    if 'class="arithmatex"' in html:
        raise ValueError(f"a formula of {page.file.src_uri} was not found by the pattern of {__file__}")
    return html


def mathml(latex: str, *, display: bool) -> str:
    """A formula as MathML; what is not understood is refused, and with it the build.

    Equations apart by a \\qquad are elements of their own, which a narrow page puts one below the other.
    """
    from latex2mathml.converter import convert

    kind = "block" if display else "inline"
    elements = "".join(convert(equation.strip(), display=kind) for equation in latex.split(r"\qquad"))
    if "\\" in elements:
        raise ValueError(f"latex2mathml does not understand a command in the formula {latex!r}")
    return f'<div class="formula">{elements}</div>' if display else elements
