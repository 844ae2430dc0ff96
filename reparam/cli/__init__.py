"""The `reparam` command. Each command calls a function of the library, and imports it only when it runs.

Importing torch takes seconds; `--help`, `--version` and shell completion do not need it.
"""

from ._app import app

__all__ = ["app"]
