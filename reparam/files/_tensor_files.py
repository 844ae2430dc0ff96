"""Reads and writes files of tensors. Nothing that a file holds is ever executed."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ._kinds import what_it_is
from ._unpickling import load
from ._writing import written

NOTE = "reparam"
"""The key of the note in which our files say what they hold."""
_ANEW = "download or copy it again"


def read_content(path: Path) -> tuple[Any, Any]:
    """What a `.pth`, `.pt` or `.safetensors` file holds, and its note. The content decides which format it is.

    Only a safetensors file has its note apart; in a torch file the note lies next to the state dict.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged, holds code, or is of another kind.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"cannot read {path}: it is {'a directory' if path.is_dir() else 'not a regular file'}")
    with path.open("rb") as file:
        head = file.read(512)
    if what := what_it_is(path, head):
        raise CheckpointError(f"cannot read {path}: it is not a checkpoint of torch or safetensors, but {what}")
    if head[8:9] == b"{":  # eight bytes of length, then JSON
        return _read_safetensors(path)
    return _read_torch(path, zipped=head[:2] == b"PK"), None


def write_file(
    state_dict: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    keys: Sequence[str] = (),
    note: Mapping[str, Any] | None = None,
) -> None:
    """Write a state dict as `.safetensors`, or with `torch.save` for any other ending: whole, or not at all.

    Args:
        state_dict: tensors by key.
        path: the file to write; an existing one is replaced at the end, in one step.
        keys: the key under which a torch file holds the state dict; of several, each is inside the one before.
        note: JSON values about the model; a torch file has room for it only next to a wrapper.

    Raises:
        CheckpointError: if a safetensors file is given keys, or writing fails.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and keys:
        wrapper = ".".join(keys)
        raise CheckpointError(
            f"a safetensors file holds only tensors, but got wrapper={wrapper!r} for {path.name}; "
            "leave the wrapper out, or write a .pth file"
        )
    tensors = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in state_dict.items()
    }
    try:
        with written(path) as unfinished:
            if path.suffix == ".safetensors":
                save_file(tensors, unfinished, {NOTE: json.dumps(note)} if note else None)
            elif keys:
                torch.save(_wrapped(tensors, keys, {NOTE: dict(note)} if note else {}), unfinished)
            else:
                torch.save(tensors, unfinished)
    except (RuntimeError, SafetensorError) as error:  # what torch and safetensors raise on a full disk
        raise CheckpointError(f"cannot write {path}: {error}") from error


def _wrapped(content: dict[str, Any], keys: Sequence[str], beside: Mapping[str, Any]) -> dict[str, Any]:
    *outer, inner = keys
    content = {inner: content, **beside}
    for key in reversed(outer):
        content = {key: content}
    return content


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no dict
            return tensors, json.loads((file.metadata() or {}).get(NOTE, "null"))
    except (SafetensorError, ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(f"cannot read {path}: not a whole safetensors file ({error}); {_ANEW}") from error


def _read_torch(path: Path, zipped: bool) -> Any:
    if zipped:
        _check_zip(path)
    try:
        with path.open("rb") as file:  # an open file, because torch decides by the ending of a path
            return load(file)
    except pickle.UnpicklingError as error:
        why = str(error).partition("WeightsUnpickler error: ")[2].strip().partition("\n")[0].partition(" was not")[0]
        raise CheckpointError(
            f"cannot read {path}: {why or 'not a pickle of tensors'}. Files are read without executing their code; if "
            "you trust this one, load it with torch and save its state dict"
        ) from error
    except Exception as error:  # a damaged file can make torch raise anything
        raise CheckpointError(
            f"cannot read {path}: not a whole file of torch or safetensors ({type(error).__name__}: {error}); {_ANEW}"
        ) from error


def _check_zip(path: Path) -> None:
    """Refuse archives larger than their file: compressed, or with entries that overlap. torch writes neither."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise CheckpointError(f"cannot read {path}: a damaged archive ({error}); {_ANEW}") from error
    if unpacked > (size := path.stat().st_size):
        raise CheckpointError(
            f"cannot read {path}: its archive unpacks to {unpacked} bytes, but the file has {size}, and torch never "
            "compresses; save it again with torch.save"
        )
