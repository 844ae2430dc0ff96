"""Writes files whole or not at all, and never over the files that they are made from."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import SpecError

_PACKAGES = (".mlpackage",)
"""Suffixes of folders that other programs show as one file."""


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path of the same name in a new folder next to `path`, and move what was written there into place.

    Files that belong to it (weights next to a graph) are written next to it, and moved into place before it. Other
    folders are not moved. The file itself may be a package: a folder that other programs show as one file, such as Core
    ML's. An existing file stays as it was until the end, and the new folder is removed even if writing fails. Links are
    followed. Two processes that write the same file have a folder each, and the last one to finish leaves its file.

    Args:
        path: the file to write. An existing one is replaced; `check_targets` says what is refused.

    Raises:
        OSError: if nothing can be written there.

    Example:
        >>> with TemporaryDirectory() as folder:
        ...     with written(f"{folder}/a.txt") as unfinished:
        ...         _ = unfinished.write_text("all of it")
        ...     Path(folder, "a.txt").read_text(), len(os.listdir(folder))
        ('all of it', 1)
    """
    path = Path(path)
    check_targets([path])
    try:
        folder = TemporaryDirectory(prefix=".", dir=Path(os.path.realpath(path)).parent)
    except OSError as error:
        error.filename = os.fspath(path)  # not the temporary folder, which the user does not know
        raise
    with folder:
        unfinished = Path(folder.name) / path.name
        unfinished.touch()
        mode = unfinished.stat().st_mode  # the mode of a new file, which not every writer sets
        unfinished.unlink()
        yield unfinished
        for file in files_beside(unfinished):
            for part in [file] if file.is_file() else [one for one in file.rglob("*") if one.is_file()]:
                part.chmod(mode)
            _put(file, path.with_name(file.name))


def files_beside(file: Path) -> list[Path]:
    """The files in the folder of a file, with the file itself last."""
    others = sorted(other for other in file.parent.iterdir() if other.is_file() and other != file)
    return [*others, file]


def _put(file: Path, path: Path) -> None:
    place = Path(os.path.realpath(path))
    if place.is_dir():  # a package cannot be replaced in place; moved here, it is removed with the new folder
        place.replace(file.with_name(f"{file.name}.before"))
    try:
        file.replace(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with written(path) as unfinished:  # a link to another device
            shutil.copyfile(file, unfinished)


def check_targets(
    paths: Iterable[str | os.PathLike[str]], sources: Iterable[str | os.PathLike[str]] = (), overwrite: bool = True
) -> None:
    """Check before the work that files can be written after it.

    Args:
        paths: the files to write.
        sources: the files that are read; no target may be one of them, directly or through a link.
        overwrite: whether the targets may exist already.

    Raises:
        FileNotFoundError: if the directory of a target does not exist.
        IsADirectoryError: if a target is a directory.
        SpecError: if a target is not a regular file, is one of the sources, or exists already.
    """
    read = {_identity(Path(source)): source for source in sources if Path(source).exists()}
    for path in paths:
        _check(Path(path), Path(os.path.realpath(path)), read, overwrite)


def _check(path: Path, place: Path, read: dict[tuple[int, int], Any], overwrite: bool) -> None:
    if not place.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no directory {place.parent}")
    package = path.suffix in _PACKAGES and (place / "Manifest.json").is_file()
    if place.is_dir() and not package:
        raise IsADirectoryError(f"cannot write {path}: it is a directory; choose another name, or move it away")
    if not place.exists():
        return
    if not (place.is_file() or package):
        raise SpecError(f"cannot write {path}: it is a device or a pipe; choose another name")
    if source := read.get(_identity(place)):
        raise SpecError(f"cannot write {path}: it is {source}, which is one of its sources; choose another name")
    if not overwrite:
        raise SpecError(f"{path} is there already; choose another name, or --overwrite")


def _identity(path: Path) -> tuple[int, int]:
    """An identity that all names (links) of a file share."""
    found = path.stat()
    return found.st_dev, found.st_ino
