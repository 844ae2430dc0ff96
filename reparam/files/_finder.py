"""Finds the state dict that is meant among everything that a file holds."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from ._fits import fits, prefixes_in
from ._places import DISCRIMINATOR, EMA, GENERATOR, Place, places_in, without_prefixes, words_of
from ._tensor_files import read_content
from ._tree import A_MODULE, drawn, inside_of, is_inner, kind_of, some_keys, tensors_of

WRAPPERS = ("", "params_ema", "params", "state_dict", "model")
"""The keys under which most files hold the state dict, best first."""
_MOST_SHARING = 16
"""How often the same bytes of a file may be used, as those of a layer that appears in several places are."""


class Contents(NamedTuple):
    """What a file holds."""

    state_dict: dict[str, Tensor]
    wrapper: str | None
    """Where the state dict was found, as an argument `wrapper`; None for the file itself."""
    keys: tuple[str, ...]
    """The keys of the dicts around it, outermost first."""
    note: dict[str, Any]
    """What `save_checkpoint` wrote about the model; empty for other files."""
    beside: str
    """What else the file holds, for errors about this state dict."""


def read_file(path: str | os.PathLike[str], wrapper: str | None = None) -> Contents:
    """Read the state dict of a `.pth`, `.pt` or `.safetensors` file, wherever in the file it is.

    Args:
        path: the file.
        wrapper: where to look: a key, several keys joined by dots, or a prefix of keys; None looks everywhere.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged, holds code, or holds no state dict, or several of equal rank.
    """
    path = Path(path)
    content, note = read_content(path)
    if not is_inner(content):
        raise CheckpointError(f"{path} holds {kind_of(content)}, not a state dict{_advice(content)}")
    start, prefix, inside = ((), "", content) if wrapper is None else _at(content, wrapper, path)
    places = [
        place._replace(keys=(*start, *place.keys), prefix=prefix + place.prefix) for place in places_in(inside, note)
    ]
    if not places:
        raise CheckpointError(f"{path} holds no named tensors, but\n{drawn(inside)}{_advice(inside)}")
    found = preferred([place for place in places if place.known] or places)
    if len(found) > 1:
        raise CheckpointError(f"{path} holds {_several(found)}")
    _check(found[0].tensors, path)
    beside = _beside(found[0], places, content)
    return Contents(found[0].tensors, found[0].name or None, found[0].keys, found[0].note, beside)


def _at(content: Any, wrapper: str, path: Path) -> tuple[tuple[str, ...], str, Any]:
    """What is under the keys of a wrapper, or the tensors whose keys begin with it."""
    found = next(_under(content, wrapper), None)
    if found is None:
        of = f"; its keys are {some_keys(content)}" if isinstance(content, Mapping) else f"\n{drawn(content)}"
        raise CheckpointError(f"{path} holds no state dict under {wrapper!r}{of}")
    return found


def _under(content: Any, name: str) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    for key, value in inside_of(content):
        if key == name:
            yield (key,), "", value
        elif name.startswith(f"{key}."):
            for keys, prefix, inner in _under(value, name[len(key) + 1 :]):
                yield (key, *keys), prefix, inner
    tensors, prefix = without_prefixes(tensors_of(content)), f"{name}."
    if inside := {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}:
        yield (), prefix, inside


def preferred(places: Sequence[Place]) -> Sequence[Place]:
    """The best of several places, or the equally good ones: not a discriminator, then EMA, generator, usual wrapper.

    Only the part in which names differ counts: in {"ema": {"ema_model": ..., "model": ...}} the first is the EMA.
    """
    rules: list[Callable[[Place, set[str], str], bool]] = [
        lambda place, words, first: not words & (DISCRIMINATOR | {"d"}),
        lambda place, words, first: bool(words & EMA),
        lambda place, words, first: bool(words & (GENERATOR | {"g"})),
        *(lambda place, words, first, usual=usual: first == usual for usual in WRAPPERS),
        lambda place, words, first: fits(place.tensors),
    ]
    for rule in rules:
        places = _narrowed(places, rule)
    return places


def _narrowed(places: Sequence[Place], rule: Callable[[Place, set[str], str], bool]) -> Sequence[Place]:
    while len(places) > 1:
        levels = zip(*(place.names for place in places))
        common = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, levels))
        ends = [place.names[common:] for place in places]
        chosen = [place for place, end in zip(places, ends) if rule(place, words_of(end), next(iter(end), ""))]
        if len(chosen) in (0, len(places)):
            break
        places = chosen
    return places


def _several(places: Sequence[Place]) -> str:
    what = "networks" if places[0].known else "state dicts, none of a known network"
    names = [place.name for place in places]
    return (
        f"{len(names)} {what}: {_listed(names)}, and their names do not say which one is meant; choose one, such as "
        f"wrapper={names[0]!r} (on the command line: --wrapper {names[0]})"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(reprlib.repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")


def _beside(place: Place, places: Sequence[Place], content: Any) -> str:
    others = [other.name for other in places if other.known and other != place]
    if place.known:
        return f"; it was read from {place.name!r}, and there is also wrapper={_listed(others)}" if others else ""
    inner = [prefix for prefix in prefixes_in(place.tensors) if not re.search(r"\b[0-9]", prefix)]
    if parts := [place._replace(prefix=place.prefix + prefix).name for prefix in inner]:
        return (
            f"; under {_listed(parts)} are keys of a known network, with others next to them: wrapper={parts[0]!r} "
            "reads it alone"
        )
    return f"; the file holds\n{drawn(content)}" if place.names else ""


def _advice(content: Any) -> str:
    whole = A_MODULE in (drawn(content) if is_inner(content) else kind_of(content))
    return "; a model saved as an object needs its own code: load it there and save its state_dict()" if whole else ""


def _check(state_dict: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that would take much more memory than the file has bytes."""
    for key, tensor in state_dict.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{path}: tensor {reprlib.repr(key)} of shape {tuple(tensor.shape)} is not stored in full"
            )
    size, total = path.stat().st_size, sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
    if total > _MOST_SHARING * size:
        raise CheckpointError(f"{path}: a file of {size} bytes whose tensors share memory and would take {total} bytes")
