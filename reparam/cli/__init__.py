"""The `reparam` command."""

from ._commands import app

__all__ = ["app"]
