"""Images of a folder or of a list, read one by one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .._upscale.arrays import arrays_of, file_reader

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
    return list(file_reader().images_in(folder))


def pixels_of(image: Any) -> np.ndarray:
    """(H, W) or (H, W, C), of what `listed` gives."""
    return file_reader().read_picture(Path(image)).pixels if _is_path(image) else image


def _is_path(image: object) -> bool:
    return isinstance(image, (str, os.PathLike))
