"""Files are written whole or not at all, and never onto what they are made of."""

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
"""Folders that stand for one file."""


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a path of the same name in a new folder beside the file; what lies there at the end is put in place.

    Files that belong to it (weights beside a graph) are written beside it, and put in place before it; folders are not.
    It may be a package itself, a folder that other programs show as one file, such as Core ML's.
    Whatever ends the writing, the new folder goes, and until the end an existing file stays as it was. Links are
    written through. Two processes that write one file have a folder each: the last to end leaves its whole file.

    Args:
        path: where to. An existing file is replaced; see `check_targets` for what else may stand in the way.

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
        error.filename = os.fspath(path)  # and not a folder that nobody has heard of
        raise
    with folder:
        unfinished = Path(folder.name) / path.name
        unfinished.touch()
        mode = unfinished.stat().st_mode  # of a new file, which not every writer's is
        unfinished.unlink()
        yield unfinished
        for file in files_beside(unfinished):
            for part in [file] if file.is_file() else [one for one in file.rglob("*") if one.is_file()]:
                part.chmod(mode)
            _put(file, path.with_name(file.name))


def files_beside(file: Path) -> list[Path]:
    """The files in the folder of one, that one at the end."""
    others = sorted(other for other in file.parent.iterdir() if other.is_file() and other != file)
    return [*others, file]


def _put(file: Path, path: Path) -> None:
    place = Path(os.path.realpath(path))
    if place.is_dir():  # a package, which nothing replaces while it is there; it goes with the new folder
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
    """Says before the work what would stand in the way of files after it.

    Args:
        paths: the files to write.
        sources: the files that are read, which none of them may be, by no link either.
        overwrite: whether there may be such files already.

    Raises:
        FileNotFoundError: if its directory is not there.
        IsADirectoryError: if it is a directory.
        SpecError: if it is no regular file, one of the sources, or there already.
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
        raise SpecError(f"cannot write {path}: it is {source}, which is read for it; choose another name")
    if not overwrite:
        raise SpecError(f"{path} is there already; choose another name, or --overwrite")


def _identity(path: Path) -> tuple[int, int]:
    """One for all names of a file."""
    found = path.stat()
    return found.st_dev, found.st_ino
