"""Draws blocks as pictures."""

from ._draw import Drawing, draw

__all__ = [
    "Drawing",
    "draw",
]
