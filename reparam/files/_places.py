"""Where in a file networks may be: the dicts that hold tensors, and the prefixes of their keys."""

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
"""Words in the names of weights that are averaged over training steps."""
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
"""Words in the names of modules that only training needs."""
_PREFIXES = ("module.", "_orig_mod.")
"""The prefixes that DDP, torch.compile and torch's AveragedModel add to keys."""


class Place(NamedTuple):
    """Where a state dict is."""

    keys: tuple[str, ...]
    """The keys of the dicts around it, outermost first."""
    prefix: str
    """The prefix of its keys in the innermost dict."""
    tensors: dict[str, Tensor]
    """The tensors by key, without the prefix."""
    note: dict[str, Any]
    """What `save_checkpoint` wrote about the model; empty for other files."""
    known: bool
    """Whether it holds a known network or block."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of everything around it, both dicts and modules."""
        return (*self.keys, *self.prefix.split(".")[:-1])

    @property
    def name(self) -> str:
        """The `wrapper` that selects it; empty for the file itself."""
        return ".".join([*self.keys, *filter(None, [_bare(self.prefix)])])


def _bare(prefix: str) -> str:
    while inner := next((p for p in _PREFIXES if f".{prefix}".endswith(f".{p}")), None):
        prefix = prefix.removesuffix(inner)
    return prefix.removesuffix(".")


def places_in(root: Any, note: Any = None) -> Iterator[Place]:
    """The state dicts in a file's content. One that holds several networks yields each known network."""
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
    """The prefixes of the known networks in a state dict. A network that is the whole state dict need not fit."""
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
    """The words that names are made of, and each pair of neighbors: net_G yields net, g and netg."""
    found = set()
    for name in names:
        words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
        found |= {*words, *map("".join, pairwise(words))}
    return found


def without_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the prefixes that DDP, torch.compile and torch's AveragedModel add to keys."""
    tensors = {key: tensor for key, tensor in state_dict.items() if key != "n_averaged"}
    while prefix := next((p for p in _PREFIXES if tensors and all(key.startswith(p) for key in tensors)), None):
        tensors = {key[len(prefix) :]: tensor for key, tensor in tensors.items()}
    return tensors
