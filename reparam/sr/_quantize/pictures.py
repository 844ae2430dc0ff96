"""Images of a folder or of a list, read one by one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SpecError
from .._upscale.arrays import arrays_of

Images = str | os.PathLike[str] | Iterable[Any]
"""A folder, or images and image files."""


def listed(images: Images) -> list[Any]:
    """Paths and images; those of a folder in the order of their names.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
        SpecError: if Pillow is not installed, which files need.
    """
    if not isinstance(images, (str, os.PathLike)):
        return [one for image in images for one in ([image] if _is_path(image) else arrays_of(image))]
    folder = Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _reader().SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no image in {folder} (looked for {', '.join(_reader().SUFFIXES)})")
    return list(files)


def pixels_of(image: Any) -> np.ndarray:
    """(H, W) or (H, W, C), of what `listed` gives."""
    return _reader().read_picture(Path(image)).pixels if _is_path(image) else image


def _is_path(image: object) -> bool:
    return isinstance(image, (str, os.PathLike))


def _reader() -> Any:
    try:
        from .._upscale import images
    except ModuleNotFoundError as error:
        raise SpecError(f"image files need the package {error.name!r}: pip install 'reparam[upscale]'") from None
    return images
