"""Two hundred files that no network can be loaded from, made from a seed."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

Maker = Callable[[np.random.Generator, dict[str, Tensor], int], bytes]
"""Makes a file from random numbers, a state dict that it may spoil, and how many of its kind there were before."""
MAKERS: dict[str, tuple[int, Maker]] = {}


def kind(count: int) -> Callable[[Maker], Maker]:
    """Registers a way to break a file, of which `count` are made."""

    def register(maker: Maker) -> Maker:
        MAKERS[maker.__name__] = (count, maker)
        return maker

    return register


def of_torch(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def any_format(rng: np.random.Generator, state_dict: Mapping[str, Tensor]) -> bytes:
    write = (of_torch, lambda sd: of_torch(sd, _use_new_zipfile_serialization=False), lambda sd: save(dict(sd)))
    return write[rng.integers(3)](state_dict)


def zipped(entries: Mapping[str, bytes], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def entries_of(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return {name: file.read(name) for name in file.namelist()}


def header_of(file: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", file[:8])[0]
    return json.loads(file[8 : 8 + size]), file[8 + size :]


def with_header(header: Mapping | bytes, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@kind(24)
def truncated(rng, sd, index):
    file = any_format(rng, sd)
    return file[: rng.integers(len(file))]


@kind(40)
def flipped(rng, sd, index):
    """A bit of the first part, of the last part, or of anywhere."""
    file = bytearray(any_format(rng, sd))
    place = (rng.integers(min(len(file), 600)), len(file) - 1 - rng.integers(600), rng.integers(len(file)))
    file[int(place[rng.integers(3)])] ^= 1 << int(rng.integers(8))
    return bytes(file)


@kind(10)
def random_bytes(rng, sd, index):
    start = (b"", b"PK\x03\x04", b"\x80\x02", struct.pack("<Q", 50) + b"{")
    return start[index % 4] + rng.bytes(int(rng.integers(0, 500)))


@kind(4)
def text(rng, sd, index):
    texts = (b"", b"{}", b'{"body.0.weight": [1, 2]}', b"<html><body>404 Not Found</body></html>")
    return texts[index]


@kind(10)
def missing_key(rng, sd, index):
    sd.pop(list(sd)[rng.integers(len(sd))])
    return any_format(rng, sd)


@kind(10)
def extra_key(rng, sd, index):
    name = ("body.40.weight", "body.0.weights", "optimizer", "body.2.bias.0")[index % 4]
    return any_format(rng, {**sd, name: torch.rand(3)})


@kind(16)
def wrong_shape(rng, sd, index):
    key = list(sd)[rng.integers(len(sd))]
    shape = [int(size) + int(rng.integers(2)) for size in sd[key].shape] + [1] * int(rng.integers(2))
    sd[key] = torch.rand(shape if tuple(shape) != tuple(sd[key].shape) else [*shape, 2])
    return any_format(rng, sd)


@kind(6)
def of_integers(rng, sd, index):
    sd[list(sd)[rng.integers(len(sd))]] = torch.ones(1, dtype=(torch.int64, torch.bool)[rng.integers(2)])
    return any_format(rng, sd)


@kind(12)
def mixed(rng, sd, index):
    """Entries that are no tensors, keys that are no names, and several state dicts of which none is better."""
    key = list(sd)[rng.integers(len(sd))]
    contents = (
        {**sd, key: 3},
        {**{k: v for k, v in sd.items() if k != key}, 7: sd[key]},
        {("body", 0): torch.rand(1)},
        {"state_dict": {"params": {**sd, key: "a text"}}},
        {"params": {}},
        {"model": {"body.0.weight": [1.0]}},
        {"first": sd, "second": sd},
        [sd, sd],
        torch.rand(3),
        "a text",
        {"x" * 100_000: "y"},
        None,
    )
    return of_torch(contents[index])


@kind(12)
def not_in_full(rng, sd, index):
    """Tensors far larger than the file: repeated, sparse, without data, sharing one memory."""
    one, key = torch.ones(1), next(iter(sd))
    huge = (
        one.expand(64, 3, 1 << 40, 3),
        one.expand(1 << 20, 1 << 20, 3, 3),
        torch.sparse_coo_tensor(
            torch.zeros(4, 1, dtype=torch.long), one, (1 << 20, 1 << 20, 3, 3), check_invariants=True
        ),
        torch.empty(1 << 30, 1 << 20, 3, 3, device="meta"),
    )
    chosen = index % 5
    if chosen == 4:
        shared = torch.ones(64, 64, 3, 3)
        return of_torch({f"body.{2 * index}.weight": shared for index in range(200)})
    return of_torch({**sd, key: huge[chosen]}, _use_new_zipfile_serialization=bool(rng.integers(2)))


@kind(10)
def bomb(rng, sd, index):
    """Archives that unpack to far more than they are: packed, or one entry named many times."""
    entries = entries_of(of_torch(sd))
    if index % 2:
        entries["archive/data/0"] = bytes(50_000_000)
        return zipped(entries, compression=zipfile.ZIP_DEFLATED)
    entries["archive/data/0"] = bytes(1_000_000)
    packed = bytearray(zipped(entries, compression=zipfile.ZIP_DEFLATED if index % 4 else zipfile.ZIP_STORED))
    place = packed.find(b"PK\x01\x02") + 24  # where the directory says how large an entry is
    packed[place : place + 4] = struct.pack("<I", 3_000_000_000)
    return bytes(packed)


@kind(14)
def lying_header(rng, sd, index):
    """Headers of safetensors with sizes, types and places that the file has not."""
    header, body = header_of(save(sd))
    key = list(header)[rng.integers(1, len(header))]
    huge = 1 << 50
    chosen = index % 9
    changes = (
        {"shape": [huge, 3, 3, 3]},
        {"data_offsets": [0, huge]},
        {"data_offsets": [huge, 0]},
        {"data_offsets": [-4, 0]},
        {"shape": [1 << 32, 1 << 32]},
        {"dtype": "F4096"},
        {"shape": "many"},
    )
    if chosen < len(changes):
        header[key] = {**header[key], **changes[chosen]}
        return with_header(header, body)
    if chosen == 7:
        return struct.pack("<Q", huge) + b"{" + body
    return with_header(b'{"a":' * 100_000, body)


NOTES: tuple[Any, ...] = (
    {"model": "PlainSR", "options": {"num_blocks": 10**9}},
    {"model": "PlainSR", "options": {"num_blocks": 2, "channels": 10**12}},
    {"model": "RepSR", "options": {"expansion": 1e300}},
    {"model": "RepSR", "options": {"expansion": float("nan")}},
    {"model": "RepSR", "options": {"device": "meta"}},
    {"model": "RepSR", "options": {"dtype": "float16"}},
    {"model": "ECBSR", "options": {"kernel_size": [10**9, 10**9]}},
    {"model": "EDSR", "options": {"block": "print"}},
    {"model": "EDSR", "options": {"mean": "abc"}},
    {"model": "SESR", "options": {"scale": [2]}},
    {"model": "os.system", "options": {"command": "true"}},
    {"model": ["PlainSR"], "options": {}},
    {"model": "PlainSR", "options": [1]},
    {"model": "PlainSR", "options": {"act": {"a": 1}}},
    {"model": "PlainSR", "options": {"self": 1}},
    {"model": "RepVGGSR", "options": {"ndim": -3}},
)


@kind(32)
def absurd_note(rng, sd, index):
    note = NOTES[index // 2]
    if index % 2:
        return save(sd, {"reparam": json.dumps(note)})
    return of_torch({"params": sd, "reparam": note})


class Touch:
    """Unpickled by a careless program, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def armed(path: Path, sd: Mapping[str, Tensor]) -> Iterator[bytes]:
    """Files that make the file `path` when what they hold is executed."""
    for content in (Touch(path), {**sd, "x": Touch(path)}, {"params": sd, "epoch": Touch(path)}):
        yield pickle.dumps(content, protocol=2)
        yield of_torch(content)
        yield of_torch(content, _use_new_zipfile_serialization=False)


def broken_files(make_state_dict: Callable[[], dict[str, Tensor]]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file."""
    for number, (name, (count, maker)) in enumerate(MAKERS.items()):
        for index in range(count):
            yield f"{name}-{index}", maker(np.random.default_rng([number, index]), make_state_dict(), index)
