"""Find out from the source what a forward does that cannot be traced."""

from .flows import handed_on
from .reads import readers
from .uses import Used, used_modules

__all__ = ["Used", "handed_on", "readers", "used_modules"]
