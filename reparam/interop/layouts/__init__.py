"""How the papers' codes name the tensors of their blocks."""

from . import super_resolution, vision  # each fills the list below
from .base import LAYOUTS, Layout, Names, Options, Part, Tensors

__all__ = ["LAYOUTS", "Layout", "Names", "Options", "Part", "Tensors", "super_resolution", "vision"]
