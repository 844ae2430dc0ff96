"""Blocks drawn."""

from ._draw import Drawing, draw

__all__ = [
    "Drawing",
    "draw",
]
