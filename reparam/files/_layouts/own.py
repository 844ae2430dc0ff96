"""The blocks of this library in any network: sums of branches, each read from its tensors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import product, zip_longest
from math import gcd
from typing import Any

from ... import blocks
from ...algebra._spec import ConvSpec
from ...blocks._block import ReparamBlock
from ...blocks._conv_block import ConvBlock
from ...branches import AvgPoolBranch, ConvBNBranch, IdentityBranch
from ...branches._identity import has_identity
from ...errors import CheckpointError, SpecError
from .._tree import some_keys
from .base import Layout, Options, Part, Tensors
from .own_branches import Reading, joined, kind_of, kind_of_class, norm_of, readings
from .own_shapes import (
    HEADS,
    below,
    first_weight,
    groups_inside,
    has_weight,
    heads_of,
    is_small,
    numbered,
    outputs_of,
    size_of,
    taps,
    unscaled,
)

_IN_BRANCH = re.compile(r"((?:.*?\.)??)branches\.\d+\.")


def own_blocks(state_dict: Tensors, root: str = "") -> Iterator[str]:
    """The prefixes of all blocks. A module called `branches` that holds no branch of ours is searched for blocks."""
    found = (match[1] for key in state_dict if key.startswith(root) and (match := _IN_BRANCH.match(key[len(root) :])))
    for prefix in dict.fromkeys(root + name for name in found):
        t = below(state_dict, prefix[:-1]) if prefix else state_dict
        parts = numbered(t, "branches")
        ours = any(heads_of(part) in HEADS for part in parts.values()) or all(map(_is_block, parts.values()))
        others = heads_of(t) - {"branches", "norm"}
        if ours and (prefix or not others):  # else it is a network with a list of layers called so
            yield prefix
        else:
            for index in parts:
                yield from own_blocks(state_dict, f"{prefix}branches.{index}.")


def _is_block(t: Tensors) -> bool:
    return "branches" in heads_of(t) <= {"branches", "norm"}


def _own(t: Tensors, options: Options) -> list[Part]:
    parts = numbered(t, "branches")
    for index, part in parts.items():
        if _is_block(part):
            raise CheckpointError(
                f"branch {index} is a block itself, so the keys do not distinguish a sum of blocks from a list of "
                "blocks that is called 'branches'; fuse it as a model, with reparam.fuse"
            )
        heads = heads_of(unscaled(part))
        if heads not in HEADS and heads - {"branches"}:
            raise CheckpointError(f"branch {index} is not a branch of this library; it has {some_keys(part)}")
        if HEADS.get(heads) == "slice":
            raise CheckpointError(
                f"branch {index} works on a part of the channels, and the keys do not say how many channels the block "
                "has; fuse it as a model, with reparam.fuse"
            )
    if not any(tensor.dim() > 2 for tensor in t.values()):
        raise CheckpointError("it has no convolution, so the keys do not say its size")
    ways = _told(_ways(t, parts, options), options)
    if len(ways) > 1:
        _ask(list(ways), options)
    for way, name in ways.values():
        return [Part(way.build, {"branches": "branches", "norm": "norm"}, "", kind=name)]
    raise CheckpointError("its shapes do not form a block")


OWN = Layout("a block of reparam", ("branches.0.conv.weight",), _own, keeps=False)
"""Identified by more than its marks; see `own_blocks`."""

_PAPERS = [block for block in map(vars(blocks).get, reversed(blocks.__all__)) if block in ConvBlock.__subclasses__()]
_PAPERS.sort(key=lambda block: block is blocks.RepVGGDW)  # last: with some options it equals another one
"""The blocks of the papers. Of those with the same branches, the first one lends its name."""

Ways = dict[str, tuple[Reading, str]]
"""Every way to read a block, by its kind, with the name of the class that has it."""


def _ways(t: Tensors, parts: Mapping[int, Tensors], options: Options) -> Ways:
    """All ways to read the block; only those of the papers' blocks, if there are any."""
    inputs = max(first_weight(part).shape[1] for part in parts.values() if has_weight(part))
    for several in _groups(parts, inputs, options):
        papers: Ways = {}
        own: Ways = {}
        for groups in several:
            spec = ConvSpec(groups * inputs, outputs_of(parts), size := taps(t), groups=groups, ndim=len(size))
            spec = spec.replace(bias=options.bias)
            heads = tuple(_head(parts.get(index, {}), size) for index in range(max(parts) + 1))
            known = _papers(*_small(spec), heads).get(_keys(t), {})
            for way in _sums(t, parts, spec, options):
                ours = way.kind in known or _with_identity_of_ones_own(way.kind, known)
                (papers if ours else own).setdefault(way.kind, (way, known.get(way.kind, "ReparamBlock")))
        if papers:
            return papers
    return own


def _with_identity_of_ones_own(kind: str, known: Mapping[str, str]) -> bool:
    """Whether it may be a paper's block with an identity that its user added."""
    base = kind.removesuffix("+identity)")
    return base != kind and "[" not in kind and "side" not in kind and f"{base})" in known


def _keys(t: Tensors) -> frozenset[str]:
    """The keys of the branches, without `num_batches_tracked`, which old files lack."""
    return frozenset(key for key in t if key.startswith("branches.") and not key.endswith("num_batches_tracked"))


def _groups(parts: Mapping[int, Tensors], inputs: int, options: Options) -> list[list[int]]:
    """The possible numbers of groups: first those that a paper's block would have, then all."""
    if options.groups is not None:
        return [[options.groups]]
    kinds = {index: HEADS[heads_of(part)] for index, part in parts.items()}
    if norms := [index for index, kind in kinds.items() if kind == "identity"]:  # it knows all channels
        return [[parts[norms[0]]["norm.running_var"].numel() // inputs]]
    outputs = outputs_of(parts)
    identity = [outputs // inputs] if outputs % inputs == 0 else []
    if not (inner := [number for part in parts.values() for number in groups_inside(part)]):
        return [sorted({1, *identity})]
    most = gcd(*inner)
    if most > 1 and any(first_weight(part).shape[1] != inputs for part in filter(has_weight, parts.values())):
        return [[most]]
    return [[most], sorted({1, most, *(number for number in identity if most % number == 0)})]


def _sums(t: Tensors, parts: Mapping[int, Tensors], spec: ConvSpec, options: Options) -> Iterator[Reading]:
    """Every sum of branches that these tensors may be. A number that is skipped is a branch without tensors."""
    small = [part for part in map(unscaled, parts.values()) if _open_dilation(part, spec)]
    if any(
        (most - 1) // (k - 1) > 1
        for part in small
        for k, most in zip(size_of(part["conv.weight"]), spec.kernel_size)
        if k > 1
    ):
        options.ask("dilations")
    told = options.dilations
    if told is not None and small and len(told) != len(small):
        raise CheckpointError(f"dilations needs one number for each of {len(small)} small kernels, but got {told!r}")
    dilations = iter(told) if told is not None and small else None
    each = [readings(parts.get(index, {}), spec, dilations) for index in range(max(parts) + 1)]
    identity, pool = readings({}, spec, None)
    hidden = has_identity(spec) and not any(len(ways) > 1 and ways[0].kind.endswith("identity") for ways in each)
    ends = [[], [identity], [pool], [identity, pool]] if hidden else [[]]  # a block has at most one of each
    for way, end in product(product(*each), ends):
        yield joined([*way, *end], spec, bn=norm_of(below(t, "norm"), spec.ndim))


def _open_dilation(part: Tensors, spec: ConvSpec) -> bool:
    return HEADS.get(heads_of(part)) == "conv" and is_small(size_of(part["conv.weight"]), spec.kernel_size)


def _told(ways: Ways, options: Options) -> Ways:
    """The ways that fit the options identity and pool: with as many of them as possible, or as few."""
    for kind in ("identity", "pool"):
        wanted = getattr(options, kind)
        if wanted is not None and ways:
            most = (max if wanted else min)(way.count(kind) for way in ways)
            ways = {way: found for way, found in ways.items() if way.count(kind) == most}
    return ways


def _ask(ways: list[str], options: Options) -> None:
    """Raise an error that asks for the option that decides between the ways."""
    options.ask(*(kind for kind in ("identity", "pool") if len({way.count(kind) for way in ways}) > 1))
    raise CheckpointError(
        f"it may be any of {', '.join(ways)}, and the keys do not say which; fuse it as a model, with reparam.fuse"
    )


@lru_cache(maxsize=256)
def _papers(
    inside: int, outside: int, size: tuple[int, ...], groups: int, heads: tuple[str, ...]
) -> Mapping[frozenset[str], Mapping[str, str]]:
    """The papers' blocks of a geometry whose branches look like `heads`: kinds and classes, by their keys."""
    found: dict[frozenset[str], dict[str, str]] = {}
    for block, stride in product(_PAPERS, (1, 2)):
        spec = ConvSpec(inside, outside, size, stride, groups=groups, ndim=len(size))
        for options in _variants(block, spec, len(heads)):
            if stride > 1 and "identity" in options:  # which tells as much
                continue
            try:
                factories = block.planned(spec, **options)
                if not all(head in _heads(made, size) for made, head in zip_longest(factories, heads, fillvalue="")):
                    continue
                made = ReparamBlock(spec, factories)
            except SpecError:  # it does not exist with these
                continue
            found.setdefault(_keys(made.state_dict()), {}).setdefault(kind_of(made), block.__name__)
    return found


def _heads(factory: Any, size: tuple[int, ...]) -> tuple[str, ...]:
    """What the tensors of a branch may look like, before it is built; "" stands for no tensors."""
    made, told = getattr(factory, "func", factory), getattr(factory, "keywords", {})
    if not inspect.isclass(made):
        return ("chain",)
    if issubclass(made, IdentityBranch):
        return ("identity",) if told.get("bn") else ("",)
    if issubclass(made, AvgPoolBranch):
        return "", "identity", "conv 1x1", "pool"
    if kind_of_class(made) != "conv":
        return (kind_of_class(made),)
    point = " 1x1" if told.get("kernel_size") == 1 < max(size) else ""
    return (f"conv{' bn' if told.get('bn', made is ConvBNBranch) else ''}{point}",)


def _head(part: Tensors, size: tuple[int, ...]) -> str:
    """What the tensors of a branch look like, as `_heads`."""
    kind = HEADS[heads_of(part)] if part else ""
    if kind != "conv":
        return kind
    point = " 1x1" if max(size_of(part["conv.weight"])) == 1 < max(size) else ""
    return f"conv{' bn' if 'norm.running_var' in part else ''}{point}"


def _small(spec: ConvSpec) -> tuple[int, int, tuple[int, ...], int]:
    """The smallest geometry in which a block has the same branches: channels in and out, taps, groups."""
    inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    each = (1, 1) if inputs == outputs == 1 else (2, 2 + (outputs > inputs) - (outputs < inputs))
    groups = min(spec.groups, 2)
    return each[0] * groups, each[1] * groups, tuple(min(k, 7) for k in spec.kernel_size), groups


def _variants(block: type[ConvBlock], spec: ConvSpec, count: int) -> Iterator[dict[str, Any]]:
    """The options of a block's design that decide which keys it has, each with all values that matter."""
    counts, hidden = range(max(count - 2, 1), count + 1), (spec.in_channels, 3 * spec.in_channels)
    sizes = (1, 3) if min(spec.kernel_size) > 3 else (1,)
    usual: dict[str, Any] = {
        "paths": counts,
        "conv_branches": counts,
        "hidden_channels": hidden,
        "identity": (False, True),
    }
    usual |= {"small": [([size] * (count - 1), [1] * (count - 1)) for size in sizes], "scales": (None,)}
    usual |= {"small_size": sizes}
    choices: dict[str, Any] = {}
    for name, parameter in block.options().items():
        if name in usual:
            choices[name] = usual[name]
        elif isinstance(parameter.default, bool):
            choices[name] = (False, True)
        elif parameter.default is None:
            choices[name] = (None, 2.0)
    for values in product(*choices.values()):
        yield dict(zip(choices, values))
