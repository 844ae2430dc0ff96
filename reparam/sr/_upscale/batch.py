"""Many image files at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import ReparamError, SpecError
from ...files._writing import check_targets
from .files import FORMATS, SUFFIXES, check_suffix, images_in
from .memory import ran_out
from .upscaler import Upscaler


@dataclass
class Plan:
    """The target of each file, and the files that get none."""

    targets: dict[Path, Path] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)
    """What is wrong with a source."""
    there: list[Path] = field(default_factory=list)
    """Sources of which the result is there, where these are left out."""
    passed: list[Path] = field(default_factory=list)
    """What lies in the folders and is no image."""


def plan(
    sources: Sequence[Path],
    folder: Path,
    scale: int,
    suffix: str = "",
    *,
    overwrite: bool = False,
    skip: bool = False,
    recursive: bool = False,
) -> Plan:
    """Choose the targets: photo.png becomes photo_x2.png in the folder.

    Args:
        sources: image files, and folders, all of whose image files are taken.
        folder: for the results. If it is inside a source, nothing in it is a source.
        scale: part of their names.
        suffix: their format, for example ".png"; "" keeps that of each source.
        overwrite: whether a result may exist already.
        skip: whether to leave out sources whose result exists.
        recursive: whether to take subfolders too; the results get the same subfolders.

    Raises:
        SpecError: if two sources have the same result, a result exists or is a source, or `suffix` is unknown.
    """
    suffix = suffix if suffix.startswith(".") or not suffix else f".{suffix}"
    check_suffix(Path(f"photo{suffix or '.png'}"))
    found, made = Plan(), {}  # type: ignore[var-annotated]  # of paths
    for file, place in _files_of(sources, folder, recursive, found).values():
        target = place / f"{file.stem}_x{scale}{suffix or file.suffix}"
        if not file.exists():
            found.failed[file] = f"there is no file {file}"
        elif target.suffix.lower() not in FORMATS:
            found.failed[file] = f"{target.suffix} cannot be written; name a format with --suffix: {', '.join(FORMATS)}"
        elif skip and target.exists():
            found.there.append(file)
        elif made.setdefault(target, file) is not file:
            raise SpecError(f"{made[target]} and {file} would both become {target}; enlarge them into two folders")
        else:
            found.targets[file] = target
    if there := [] if overwrite else [target for target in made if target.exists()]:
        raise SpecError(
            f"{there[0]} is there already; choose another name, or --overwrite; or --skip the {len(there)} of the "
            f"{len(made)} images whose results exist"
        )
    check_targets([target for target in made if target.parent.is_dir()], made.values(), overwrite)
    return found


def _files_of(sources: Iterable[Path], folder: Path, recursive: bool, found: Plan) -> dict[str, tuple[Path, Path]]:
    """The images, each once, with the folder of its result."""
    files: dict[str, tuple[Path, Path]] = {}
    for source in sources:
        images, others = images_in(source, recursive, without=folder) if source.is_dir() else ([source], [])
        found.passed += others
        if not images:
            found.failed[source] = f"no image in {source} (looked for {', '.join(SUFFIXES)})"
        for image in images:
            place = folder / (image.parent.relative_to(source) if source.is_dir() else "")
            files.setdefault(os.path.abspath(image), (image, place))  # noqa: PTH100  # `Path.absolute` leaves ".." in it
    return files


def upscale_files(upscaler: Upscaler, targets: dict[Path, Path], max_pixels: int) -> Iterator[tuple[Path, str]]:
    """Enlarge files one by one, and yield for each what went wrong, or ""."""
    for source, target in targets.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            upscaler.file(source, target, max_pixels=max_pixels)
        except Exception as error:  # engines and readers of images raise whatever they met; the next file may do
            yield source, _why(error)
        else:
            yield source, ""


def _why(error: Exception) -> str:
    if isinstance(error, (ReparamError, OSError)):
        return str(error)
    if ran_out(error):
        return "there is not enough memory for it; use a smaller tile"
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
