"""Modules of other people's codes: what they are as convolutions, and where these go."""

from .blocks import ForeignBlock, find_foreign, foreign_block
from .kernel_of import kernel_of
from .plan import Plan, add_foreign, add_neighbours, ready
from .survey import Survey, survey
from .trace import fixed_hooks

__all__ = [
    "ForeignBlock",
    "Plan",
    "Survey",
    "add_foreign",
    "add_neighbours",
    "find_foreign",
    "fixed_hooks",
    "foreign_block",
    "kernel_of",
    "ready",
    "survey",
]
