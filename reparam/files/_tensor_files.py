"""Reading and writing files of tensors: nothing that a file holds is ever executed."""

from __future__ import annotations

import json
import os
import pickle
import reprlib
import warnings
import zipfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ._kinds import what_it_is
from ._writing import written

WRAPPERS = ("params_ema", "params", "state_dict", "model")
"""Under which keys files hold the state dict, best first."""
_PREFIXES = ("module.", "_orig_mod.")
_NOTE = "reparam"
"""Under which key our files say what they hold."""
_MOST_SHARING = 16
"""How often the numbers of a file may be used, as those of a layer that stands in several places are."""


class Contents(NamedTuple):
    """What a file holds."""

    state_dict: dict[str, Tensor]
    wrapper: str | None
    """The key that the state dict was found under."""
    note: dict[str, Any]
    """What `save_checkpoint` wrote about the model; empty for other files."""


def read_file(path: str | os.PathLike[str], wrapper: str | None = None) -> Contents:
    """Reads the state dict of a `.pth`, `.pt` or `.safetensors` file; the format is known by its content.

    Args:
        path: the file.
        wrapper: the key under which the state dict is; None looks for `params_ema`, `params`, `state_dict` and
            `model`, in this order, and for a state dict without one.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged, holds code, or no state dict.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise CheckpointError(f"cannot read {path}: it is {'a directory' if path.is_dir() else 'no regular file'}")
    with path.open("rb") as file:
        head = file.read(512)
    if what := what_it_is(path, head):
        raise CheckpointError(f"cannot read {path}: it is {what}, no checkpoint of torch or safetensors")
    if head[8:9] == b"{":  # eight bytes of length, then JSON
        content, note = _read_safetensors(path)
    else:
        content = _read_torch(path, zipped=head[:2] == b"PK")
        note = content.get(_NOTE) if isinstance(content, dict) else None
    state_dict, wrapper = _unwrap(content, wrapper, path)
    _check(state_dict, path)
    return Contents(_without_prefixes(state_dict), wrapper, note if isinstance(note, dict) else {})


def write_file(
    state_dict: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    wrapper: str | None = None,
    note: Mapping[str, Any] | None = None,
) -> None:
    """Writes a state dict as `.safetensors`, or as a torch file for any other ending: whole, or not at all.

    Args:
        state_dict: tensors by key.
        path: where to; an existing file is replaced at the end, in one step.
        wrapper: the key to put the state dict under, in a torch file only.
        note: JSON values about the model; a torch file takes it beside a wrapper only.

    Raises:
        CheckpointError: for a wrapper in a safetensors file, which has none.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and wrapper:
        raise CheckpointError(
            f"a safetensors file holds tensors only, but wrapper={wrapper!r} was asked for {path.name}; "
            "leave the wrapper out, or write a .pth file"
        )
    tensors = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in state_dict.items()
    }
    try:
        with written(path) as unfinished:
            if path.suffix == ".safetensors":
                save_file(tensors, unfinished, {_NOTE: json.dumps(note)} if note else None)
            elif wrapper:
                torch.save({wrapper: tensors, **({_NOTE: dict(note)} if note else {})}, unfinished)
            else:
                torch.save(tensors, unfinished)
    except (RuntimeError, SafetensorError) as error:  # what torch and safetensors make of a full disk
        raise CheckpointError(f"cannot write {path}: {error}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no dict
            return tensors, json.loads((file.metadata() or {}).get(_NOTE, "null"))
    except (SafetensorError, ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(f"cannot read {path}: not a whole safetensors file ({error})") from error


def _read_torch(path: Path, zipped: bool) -> Any:
    if zipped:
        _check_zip(path)
    try:
        with path.open("rb") as file, warnings.catch_warnings():  # a file, as torch goes by the ending of a path
            warnings.simplefilter("ignore")  # of pickle protocols and sparse tensors, where an error follows
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        why = str(error).partition("WeightsUnpickler error: ")[2].strip().partition("\n")[0].partition(" was not")[0]
        raise CheckpointError(
            f"cannot read {path}: {why or 'no pickle of tensors'}. Files are read without executing what they hold; if "
            "you trust this one, load it with torch and save its state dict"
        ) from error
    except Exception as error:  # torch raises whatever a damaged file runs it into
        raise CheckpointError(
            f"cannot read {path}: not a whole file of torch or safetensors ({type(error).__name__}: {error})"
        ) from error


def _check_zip(path: Path) -> None:
    """Refuses archives larger than their file, which are packed or name one place twice: torch writes neither."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise CheckpointError(f"cannot read {path}: a damaged archive ({error})") from error
    if unpacked > (size := path.stat().st_size):
        raise CheckpointError(
            f"cannot read {path}: an archive of {unpacked} bytes packed into {size}, which torch never writes"
        )


def _unwrap(content: Any, wrapper: str | None, path: Path) -> tuple[dict[str, Tensor], str | None]:
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    if wrapper is not None and not isinstance(content.get(wrapper), dict):
        raise CheckpointError(f"{path} holds no state dict under {wrapper!r}; its keys are {some_keys(content)}")
    names = [wrapper] if wrapper else [name for name in WRAPPERS if isinstance(content.get(name), dict)]
    return (content[names[0]], names[0]) if names else (content, None)


def _check(state_dict: Mapping[Any, Any], path: Path) -> None:
    """Refuses what is no tensor, and tensors that would take more memory than the file has."""
    for key, tensor in state_dict.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path} is no state dict of tensors by name: under {reprlib.repr(key)} is a {type(tensor).__name__}; "
                f"its keys are {some_keys(state_dict)}; looked for a state dict under {', '.join(WRAPPERS)} too"
            )
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{path}: tensor {reprlib.repr(key)} of shape {tuple(tensor.shape)} is not stored in full"
            )
    if not state_dict:
        raise CheckpointError(f"{path} holds no tensors")
    size, total = path.stat().st_size, sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
    if total > _MOST_SHARING * size:
        raise CheckpointError(f"{path}: a file of {size} bytes with tensors of {total}, which share their memory")


def _without_prefixes(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what DDP, torch.compile and torch's AveragedModel put before the keys."""
    tensors = {key: tensor for key, tensor in state_dict.items() if key != "n_averaged"}
    while prefix := next((p for p in _PREFIXES if tensors and all(key.startswith(p) for key in tensors)), None):
        tensors = {key[len(prefix) :]: tensor for key, tensor in tensors.items()}
    return tensors


def some_keys(content: Mapping[Any, Any]) -> str:
    """The first keys of a dict, none of them at great length."""
    keys = ", ".join(reprlib.repr(key) for key in islice(content, 5)) or "none"
    return keys + (", ..." if len(content) > 5 else "")
