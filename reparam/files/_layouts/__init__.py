"""How the papers' codebases, and this library, name the tensors of their blocks."""

from . import super_resolution, vision  # each fills the list below
from .base import LAYOUTS, Layout, Names, Options, Part, Tensors
from .own import OWN, own_blocks

__all__ = [
    "LAYOUTS",
    "OWN",
    "Layout",
    "Names",
    "Options",
    "Part",
    "Tensors",
    "own_blocks",
    "super_resolution",
    "vision",
]
