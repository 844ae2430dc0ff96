"""Modules of other people, with their names of classes, attributes and branches, as users have them.

Written from papers and from what their codes do, so that what `fuse` sees is what it sees in the field.
"""

from . import adapters, detectors, large_kernels, mobile, nests, restoration, spellings, text, volumes, yolo
from .animal import Animal

__all__ = ["ZOO", "Animal"]

_HOUSES = (yolo, detectors, text, large_kernels, mobile, restoration, adapters, volumes, nests, spellings)

ZOO: dict[str, Animal] = dict(animal for house in _HOUSES for animal in house.animals())
