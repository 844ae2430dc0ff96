"""A cache of files that save time in the next run, and that nothing depends on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import SpecError
from ..files._writing import written


def cache_folder() -> Path | None:
    """The cache folder, next to torch's own (`TORCH_HOME`); None for a user without a home directory."""
    folder = Path(torch.hub.get_dir()).parent / "reparam"
    return None if folder.parts[0] == "~" else folder


def cached(name: str) -> Path | None:
    """The file of this name in the cache; None if there is none."""
    folder = cache_folder()
    with contextlib.suppress(OSError):  # no permission to look into the folder
        if folder and (folder / name).is_file():
            return folder / name
    return None


def keep(name: str, write: Callable[[Path], object]) -> None:
    """Let `write` make a file in the cache, and those next to it, if the cache can be written."""
    if folder := cache_folder():
        with contextlib.suppress(OSError, SpecError):  # a read-only home, a full disk, something else in its place
            folder.mkdir(parents=True, exist_ok=True)
            with written(folder / name) as unfinished:
                write(unfinished)
