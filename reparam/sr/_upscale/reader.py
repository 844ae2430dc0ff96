"""Whether image files can be read."""

from __future__ import annotations

from typing import Any

from ...errors import SpecError


def file_reader() -> Any:
    """The module that reads and writes image files.

    Raises:
        SpecError: if a package that it needs is not installed.
    """
    try:
        from . import files
    except (ModuleNotFoundError, OSError) as error:  # the second, if pyvips is there and libvips is not
        name = getattr(error, "name", None) or "pyvips[binary]"
        raise SpecError(f"image files need the package {name!r}: pip install 'reparam[upscale]'") from None
    return files
