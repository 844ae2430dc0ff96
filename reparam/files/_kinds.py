"""Names the kind of a file that is not a checkpoint, for the error about it."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

_STARTS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a RIFF file, such as a WebP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"BM", "a BMP image"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a git-lfs pointer, in place of the file; fetch it with `git lfs pull`"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"\xfd7zXZ", "an xz archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file, such as Keras writes"),
    (b"7767517\n", "an ncnn graph"),
    (b"TFL3", "a TensorFlow Lite model"),
)
"""The first bytes of files that are not checkpoints, and what the files are."""


ONNX = "an ONNX model"
_TAR = slice(257, 262)
"""Where the mark of a tar archive is."""


def what_it_is(path: Path, head: bytes) -> str | None:
    """What a file is, by its first bytes, if it cannot be a checkpoint; None if it may be one."""
    if not head:
        return "empty; download or copy it again"
    for start, what in _STARTS:
        if head.startswith(start) or (start == b"TFL3" and head[4:8] == start):
            return what
    if head[_TAR] == b"ustar":
        return "a tar archive; unpack it first"
    if head.startswith(b"PK"):
        return _what_archive(path)
    if head[8:9] != b"{" and re.match(rb"\x08[\x01-\x20][\x12\x1a\x22\x3a\x42]", head):  # version, then a field of text
        return f"{ONNX}, which holds a graph; `reparam fuse` accepts it"
    return _what_text(head)


def _what_archive(path: Path) -> str | None:
    """What a zip archive is, if it is not a state dict."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return None  # damaged: reading it says so
    if any(name.startswith("models/") for name in names) or "archive_format" in names:
        return "a torch.export program (.pt2), which holds a graph; load it with torch.export.load"
    if "constants.pkl" in names:
        return "a TorchScript program, which holds code; load it with torch.jit.load and save its state_dict()"
    if any(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)"
    return (
        None
        if "data.pkl" in names
        else "a zip archive that torch did not write; unpack it if there is a checkpoint in it"
    )


def _what_text(head: bytes) -> str | None:
    if any(byte < 9 or 13 < byte < 27 for byte in head):
        return None
    start = head.lstrip(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page, as a failed download leaves behind; download the file itself"
    if start.startswith(b"<"):
        return "an XML file, such as an OpenVINO graph"
    try:
        head[: head.rfind(b"\n") + 1 or len(head)].decode("utf-8")
    except UnicodeDecodeError:
        return None
    if start.startswith((b"{", b"[")):
        return "a JSON file, perhaps an index; load the files that it names"
    return "a text file"
