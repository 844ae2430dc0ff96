"""What libvips says nothing of, or not rightly: chunks of PNG and of WebP, and a tag of TIFF."""

from __future__ import annotations

import re
import shutil
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from PIL.Image import Exif
from PIL.TiffImagePlugin import PREFIXES

Chunks = list[tuple[bytes, bytes]]
"""Names and contents."""
COLORS = (b"gAMA", b"cHRM", b"cICP", b"mDCV", b"cLLI")
"""What pixels mean, where no profile says it."""
_SRGB = b"\0\0\xb1\x8f"
"""The gamma of nearly all files, which changes nothing."""
_XMP = b"XML:com.adobe.xmp"
_DESCRIBING = {270, 271, 272, 305, 306, 315, 33432, 34665, 34853}
"""Tags of TIFF that say what is shown and by whom, and those of EXIF and GPS; the others lay out pixels."""
_HEADER = 33
"""Bytes of a PNG before its second chunk."""


def png_chunks(path: Path) -> Chunks:
    """Of a PNG, all but the pixels; nothing of another file."""
    found: Chunks = []
    with path.open("rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return found
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if name == b"IDAT":
                file.seek(length, 1)
            else:
                found.append((name, file.read(length)))
            file.seek(4, 1)
    return found


def kept_chunks(chunks: Chunks) -> Chunks:
    """Texts, as they are; and what colors mean, if it is anything else than sRGB or a profile."""
    texts = [(name, content) for name, content in chunks if name in (b"tEXt", b"zTXt", b"iTXt") and _XMP not in content]
    found = dict(chunks)
    usual = b"sRGB" in found or b"iCCP" in found or found.get(b"gAMA", _SRGB) == _SRGB
    return [(name, found[name]) for name in COLORS if name in found and (b"cICP" in found or not usual)] + texts


def insert_chunks(path: Path, chunks: Chunks) -> None:
    """Puts them before all else in a PNG."""
    whole = path.with_name("chunks")
    with path.open("rb") as old, whole.open("wb") as new:
        new.write(old.read(_HEADER))
        for name, content in chunks:
            new.write(struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content)))
        shutil.copyfileobj(old, new)
    whole.replace(path)


def is_lossless_webp(path: Path) -> bool:
    """Whether the (first) image in a WebP was kept as it was."""
    content = path.read_bytes()
    found = content[8:12] == b"WEBP" and re.search(rb"VP8[ L]", content)
    return bool(found and found[0] == b"VP8L")


def tiff_says(path: Path) -> tuple[bool, bytes]:
    """Of a TIFF, whether its channels lie one after the other, and its EXIF (but not that of a BigTIFF)."""
    exif = Exif()
    with path.open("rb") as file:
        head = file.read(16)
        if head[:4] not in PREFIXES:
            return False, b""
        exif.endian, big = "<" if head[:1] == b"I" else ">", b"+" in head[:4]
        (first,) = struct.unpack_from(exif.endian + ("8xQ" if big else "4xI"), head)
        planar = _entries(file, first, exif.endian, big).get(284, bytes(20))
        content = b""
        with suppress(Exception):  # PIL cannot read all that cameras write; then there is none
            if not big:
                exif.load_from_fp(file, first)
                content = exif.tobytes() if len(_describing(exif)) else b""
        return struct.unpack_from(exif.endian + ("12xH" if big else "8xH"), planar) == (2,), content


def insert_exif(path: Path, content: bytes) -> None:
    """Gives EXIF to a TIFF that is no BigTIFF: at its end a directory of its own entries and those of EXIF."""
    exif = Exif()
    exif.load(content)
    with path.open("r+b") as file:
        exif.endian = "<" if file.read(2) == b"II" else ">"
        (first,) = struct.unpack(exif.endian + "2xI", file.read(6))
        entries = _entries(file, first, exif.endian)
        start = file.seek(file.seek(0, 2) // 2 * 2 + 2)  # even, as directories are
        file.write(_describing(exif).tobytes(start)[14:])  # after a header, which is there already
        entries = _entries(file, start, exif.endian) | entries
        last = file.seek(file.seek(0, 2) // 2 * 2 + 2)
        file.write(struct.pack(exif.endian + "H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)))
        file.write(bytes(4))
        file.seek(4)
        file.write(struct.pack(exif.endian + "I", last))


def _describing(exif: Exif) -> Exif:
    for tag in set(exif) - _DESCRIBING:
        del exif[tag]
    return exif


def _entries(file: BinaryIO, place: int, order: str, big: bool = False) -> dict[int, bytes]:
    """Of the directory of a TIFF, by their tags."""
    file.seek(place)
    (count,) = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
    entries = [file.read(20 if big else 12) for _ in range(count)]
    return {struct.unpack_from(order + "H", entry)[0]: entry for entry in entries}
