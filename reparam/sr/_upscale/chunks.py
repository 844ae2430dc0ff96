"""What libvips says nothing of, or not rightly: chunks of PNG and of WebP, and a tag of TIFF."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

Chunks = list[tuple[bytes, bytes]]
"""Names and contents."""
COLORS = (b"gAMA", b"cHRM", b"cICP", b"mDCV", b"cLLI")
"""What pixels mean, where no profile says it."""
_SRGB = b"\0\0\xb1\x8f"
"""The gamma of nearly all files, which changes nothing."""
_XMP = b"XML:com.adobe.xmp"
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
    """Texts, as they are; and what colours mean, if it is anything else than sRGB or a profile."""
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
    with path.open("rb") as file:
        if file.read(12)[8:] != b"WEBP":
            return False
        while len(head := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name in (b"VP8L", b"VP8 "):
                return name == b"VP8L"
            file.seek(16 if name == b"ANMF" else size + size % 2, 1)  # a frame has a header, and then the same chunks
    return False


def is_planar_tiff(path: Path) -> bool:
    """Whether it is a TIFF whose channels lie one after the other."""
    with path.open("rb") as file:
        head = file.read(16)
        if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return False
        order, big = "<" if head[:1] == b"I" else ">", b"+" in head[:4]
        (place,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
        file.seek(place)
        (count,) = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
        tags = [file.read(20 if big else 12) for _ in range(count)]
    return any(struct.unpack_from(f"{order}H{10 if big else 6}xH", tag) == (284, 2) for tag in tags)
