"""Files that are worth keeping from one run to the next, and that nothing ever needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import SpecError
from ..files._writing import written


def cache_folder() -> Path | None:
    """Where they are kept: beside torch's own cache (`TORCH_HOME`); None for a user without a home."""
    folder = Path(torch.hub.get_dir()).parent / "reparam"
    return None if folder.parts[0] == "~" else folder


def cached(name: str) -> Path | None:
    """The file of this name that was kept, if it was."""
    folder = cache_folder()
    with contextlib.suppress(OSError):  # a folder that may not be looked into
        if folder and (folder / name).is_file():
            return folder / name
    return None


def keep(name: str, write: Callable[[Path], object]) -> None:
    """Lets `write` make a file to keep, and those beside it, if there is a place where that can be."""
    if folder := cache_folder():
        with contextlib.suppress(OSError, SpecError):  # a read-only home, a full disk, something else in its place
            folder.mkdir(parents=True, exist_ok=True)
            with written(folder / name) as unfinished:
                write(unfinished)
