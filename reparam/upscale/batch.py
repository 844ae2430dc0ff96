"""Many image files at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import ReparamError, SpecError
from .images import SUFFIXES
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
        SpecError: if two sources have one result, a result is there, or a format cannot be written.
    """
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
            if not inside:
                raise FileNotFoundError(f"no image in {source} (looked for {', '.join(SUFFIXES)})")
            files += inside
        elif source.exists():
            files.append(source)
        else:
            raise FileNotFoundError(f"there is no file {source}")
    suffix = suffix if suffix.startswith(".") or not suffix else f".{suffix}"
    targets: dict[Path, Path] = {}
    for file in dict.fromkeys(files):
        target = folder / f"{file.stem}_x{scale}{suffix or file.suffix}"
        if target.suffix.lower() not in SUFFIXES:
            raise SpecError(f"cannot write {target.name}: choose a format of {', '.join(SUFFIXES)}")
        if other := next((source for source, made in targets.items() if made == target), None):
            raise SpecError(f"{other} and {file} would both become {target}; enlarge them into two folders")
        if target.exists() and not overwrite:
            raise SpecError(f"{target} is there already; choose another folder, or --overwrite")
        targets[file] = target
    return targets


def upscale_files(upscaler: Upscaler, targets: dict[Path, Path]) -> Iterator[tuple[Path, str]]:
    """Enlarges files one by one, and tells of each what went wrong; "" if nothing did."""
    for source, target in targets.items():
        try:
            upscaler.file(source, target)
        except (ReparamError, OSError, MemoryError) as error:
            yield source, str(error) or type(error).__name__
        else:
            yield source, ""
