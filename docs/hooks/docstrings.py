"""Makes the docstrings' sections what griffe knows: examples are code, and shapes a line of text."""

from __future__ import annotations

import re
from typing import Any

import griffe

SHAPE = re.compile(r"^Shape:\n((?: {4}.*(?:\n|$))+)", re.MULTILINE)


class Sections(griffe.Extension):
    """Told of every object that griffe reads, before its docstring is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = sections(obj.docstring.value)


def sections(docstring: str) -> str:
    """The docstring with griffe's names of sections."""
    docstring = SHAPE.sub(lambda match: f"**Shape:** {' '.join(match[1].split())}\n", docstring)
    return re.sub(r"^Example:$", "Examples:", docstring, flags=re.MULTILINE)
