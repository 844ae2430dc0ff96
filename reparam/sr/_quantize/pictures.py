"""Reads the images of a folder or a list one by one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .._upscale.arrays import planes_of
from .._upscale.reader import file_reader

Images = str | os.PathLike[str] | Iterable[Any]
"""A folder, or images and image files."""


def listed(images: Images) -> list[Any]:
    """A list of paths and images. Those of a folder are sorted by name.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
        SpecError: if the packages that read image files are not installed.
    """
    if not isinstance(images, (str, os.PathLike)):
        return [one for image in images for one in _each(image)]
    folder = Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = file_reader()
    if not (found := files.images_in(folder)[0]):
        raise FileNotFoundError(f"no image in {folder} (looked for {', '.join(files.SUFFIXES)})")
    return found


def _each(image: Any) -> list[Any]:
    """The images of a batch, as tensors (C, H, W)."""
    return [image] if _is_path(image) else [*planes_of(image)]


def pixels_of(image: Any) -> np.ndarray | Tensor:
    """The pixels of an item of `listed`: an array (H, W, C) of a file, a tensor (C, H, W) of an image."""
    return file_reader().read_picture(Path(image)) if _is_path(image) else image


def _is_path(image: object) -> bool:
    return isinstance(image, (str, os.PathLike))
