"""The `reparam` command: every command calls something of the library, and imports it when it runs.

Importing torch takes seconds, which `--help`, `--version` and the completion of a shell do without.
"""

from ._app import app

__all__ = ["app"]
