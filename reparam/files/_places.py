"""Where in a file networks may be: by the dicts that hold tensors, and the prefixes of their keys."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from ._fits import fits, prefixes_in
from ._found_blocks import recognised
from ._tensor_files import NOTE
from ._tree import dicts_in, tensors_of

EMA = frozenset({"ema", "swa", "avg", "average", "averaged", "nete"})
"""Words in the names of weights that are means over the steps of a training."""
GENERATOR = frozenset({"gen", "generator", "netg"})
DISCRIMINATOR = frozenset({"disc", "discriminator", "netd", "critic"})
BESIDE = DISCRIMINATOR | {
    "loss",
    "losses",
    "criterion",
    "cri",
    "perceptual",
    "vgg",
    "lpips",
    "dists",
    "inception",
    "metric",
}
"""Words in the names of what a training needs and nobody else."""
_PREFIXES = ("module.", "_orig_mod.")
"""What DDP, torch.compile and torch's AveragedModel put before the keys."""


class Place(NamedTuple):
    """Where a state dict is."""

    keys: tuple[str, ...]
    """Of the dicts, from the outermost on."""
    prefix: str
    """Of the keys in the innermost."""
    tensors: dict[str, Tensor]
    """Without the prefix."""
    note: dict[str, Any]
    """What `save_checkpoint` wrote about the model; empty for other files."""
    known: bool
    """Whether there is a network or a block that is known."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that is around it, dicts and modules alike."""
        return (*self.keys, *self.prefix.split(".")[:-1])

    @property
    def name(self) -> str:
        """What to pass as a wrapper for it; empty for the file itself."""
        return ".".join([*self.keys, *filter(None, [_bare(self.prefix)])])


def _bare(prefix: str) -> str:
    while inner := next((p for p in _PREFIXES if f".{prefix}".endswith(f".{p}")), None):
        prefix = prefix.removesuffix(inner)
    return prefix.removesuffix(".")


def places_in(root: Any, note: Any = None) -> Iterator[Place]:
    """The state dicts in what a file holds; in those of several networks, each of the known ones."""
    for node in dicts_in(root, NOTE):
        tensors = without_prefixes(tensors_of(node.content))
        told = next((found for found in (node.note, note) if isinstance(found, dict)), {})
        prefixes = [] if "model" in told else _networks_in(tensors)
        for prefix in prefixes:
            inside = _inside(tensors, prefix)
            yield Place(node.keys, prefix, inside if prefix or fits(inside) else tensors, told, known=True)
        if tensors and not prefixes:
            known = "model" in told or any(True for _ in recognised(tensors))
            yield Place(node.keys, "", tensors, told, known)


def _networks_in(tensors: Mapping[str, Tensor]) -> list[str]:
    """The prefixes of the known networks in a state dict; that of one that takes it all need not fit."""
    found = prefixes_in(tensors)
    if found == [""]:
        return found
    others = [key.split(".") for key, t in tensors.items() if t.dim() and not key.startswith(tuple(found))]
    alone = all(words_of(names[:-1]) & BESIDE for names in others)
    wanted = [prefix for prefix in found if alone or words_of(prefix.split(".")) & (GENERATOR | EMA)]
    return [prefix for prefix in wanted if fits(_inside(tensors, prefix))]


def _inside(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    inside = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return {key: tensor for key, tensor in inside.items() if not words_of(key.split(".")[:1]) & BESIDE}


def words_of(names: Collection[str]) -> set[str]:
    """The words that names are made of, and pairs of those that follow each other: net_G is net, g and netg."""
    found = set()
    for name in names:
        words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
        found |= {*words, *map("".join, pairwise(words))}
    return found


def without_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what DDP, torch.compile and torch's AveragedModel put before the keys."""
    tensors = {key: tensor for key, tensor in state_dict.items() if key != "n_averaged"}
    while prefix := next((p for p in _PREFIXES if tensors and all(key.startswith(p) for key in tensors)), None):
        tensors = {key[len(prefix) :]: tensor for key, tensor in tensors.items()}
    return tensors
