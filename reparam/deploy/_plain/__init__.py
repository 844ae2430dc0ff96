"""A network as a list of simple steps, from which the writers of small formats work."""

from .small import with_small_sums
from .steps import FUNCTIONS, Plain, Step
from .walk import Dynamic, plain_steps

__all__ = ["FUNCTIONS", "Dynamic", "Plain", "Step", "plain_steps", "with_small_sums"]
