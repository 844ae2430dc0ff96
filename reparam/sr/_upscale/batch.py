"""Many image files at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import ReparamError, SpecError
from ...files._writing import check_targets
from .images import SUFFIXES, images_in
from .memory import ran_out
from .upscaler import Upscaler


def plan(
    sources: Sequence[Path], folder: Path, scale: int, suffix: str = "", overwrite: bool = False
) -> dict[Path, Path]:
    """Which file becomes which: photo.png becomes photo_x2.png in the folder.

    Args:
        sources: image files, and folders of which every image file is taken.
        folder: for the results.
        scale: part of their names.
        suffix: their format, such as ".png"; "" keeps that of each source.
        overwrite: whether a result may be there already.

    Raises:
        FileNotFoundError: if a source is not there, or a folder without images.
        SpecError: if two sources have one result, a result is there or is a source, or a format cannot be written.
    """
    files: dict[str, Path] = {}
    for file in (file for source in sources for file in _files_of(source)):
        files.setdefault(os.path.abspath(file), file)  # noqa: PTH100  # `Path.absolute` leaves ".." in it
    suffix = suffix if suffix.startswith(".") or not suffix else f".{suffix}"
    targets: dict[Path, Path] = {}
    for file in files.values():
        target = folder / f"{file.stem}_x{scale}{suffix or file.suffix}"
        if target.suffix.lower() not in SUFFIXES:
            raise SpecError(f"cannot write {target.name}: choose a format of {', '.join(SUFFIXES)}")
        if other := next((source for source, made in targets.items() if made == target), None):
            raise SpecError(f"{other} and {file} would both become {target}; enlarge them into two folders")
        targets[file] = target
    if folder.exists():
        check_targets(targets.values(), targets, overwrite)
    return targets


def _files_of(source: Path) -> list[Path]:
    if source.is_dir():
        return images_in(source)
    if not source.exists():
        raise FileNotFoundError(f"there is no file {source}")
    return [source]


def upscale_files(upscaler: Upscaler, targets: dict[Path, Path]) -> Iterator[tuple[Path, str]]:
    """Enlarges files one by one, and tells of each what went wrong; "" if nothing did."""
    for source, target in targets.items():
        try:
            upscaler.file(source, target)
        except Exception as error:  # engines and readers of images raise whatever they met; the next file may do
            yield source, _why(error)
        else:
            yield source, ""


def _why(error: Exception) -> str:
    if isinstance(error, (ReparamError, OSError)):
        return str(error)
    if ran_out(error):
        return "there is not enough memory for it; take a smaller tile"
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
