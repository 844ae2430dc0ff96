"""A network as a list of steps of few kinds, which the writers of small formats read."""

from .steps import Plain, Step
from .walk import plain_steps

__all__ = ["Plain", "Step", "plain_steps"]
