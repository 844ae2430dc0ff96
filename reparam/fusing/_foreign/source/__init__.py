"""What a forward does that cannot be traced, as far as its source tells."""

from .uses import used_modules

__all__ = ["used_modules"]
