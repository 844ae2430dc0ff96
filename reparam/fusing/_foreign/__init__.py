"""Modules of other people's code: which convolutions they equal, and where these convolutions go."""

from .blocks import ForeignBlock, find_foreign, foreign_block
from .forms import has_form
from .kernel_of import kernel_of
from .plan import Plan, add_foreign, add_neighbors, given
from .source import readers
from .survey import Survey, survey

__all__ = [
    "ForeignBlock",
    "Plan",
    "Survey",
    "add_foreign",
    "add_neighbors",
    "find_foreign",
    "foreign_block",
    "given",
    "has_form",
    "kernel_of",
    "readers",
    "survey",
]
