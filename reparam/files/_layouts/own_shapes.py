"""What keys and shapes say about a branch of this library before it is built: its kind, taps, channels, groups."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .base import Tensors

HEADS: Mapping[frozenset[str], str] = {
    frozenset(heads.split()): kind
    for kind, several in {
        "identity": ("norm",),
        "conv": ("conv", "conv norm"),
        "expand": ("expand squeeze", "expand norm squeeze"),
        "edge": ("conv filter",),
        "pool": ("conv conv_norm norm",),
        "chain": ("layers",),
        "lora": ("down up scale",),
        "scaled": ("branch scale", "scale"),
        "slice": ("branch place", "place"),
        "side": ("convs out", "convs norms out", "convs norms norm_convs out"),
    }.items()
    for heads in several
}
"""The first words of a branch's keys, and the kind of branch."""


def below(t: Tensors, name: str) -> dict[str, Tensor]:
    """The tensors under a name, with the name removed from their keys."""
    return {key[len(name) + 1 :]: tensor for key, tensor in t.items() if key.startswith(f"{name}.")}


def numbered(t: Tensors, name: str) -> dict[int, dict[str, Tensor]]:
    """The tensors under each number under a name."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, tensor in below(t, name).items():
        index, _, rest = key.partition(".")
        if rest and index.isdecimal() and len(index) < 5:
            found.setdefault(int(index), {})[rest] = tensor
    return dict(sorted(found.items()))


def heads_of(t: Tensors) -> frozenset[str]:
    """The first words of the keys."""
    return frozenset(key.partition(".")[0] for key in t)


def size_of(weight: Tensor) -> tuple[int, ...]:
    """Taps per axis."""
    return tuple(weight.shape[2:])


def shape_of(size: tuple[int, ...], whole: tuple[int, ...]) -> str:
    """How many of the whole kernel's taps a kernel has, by axis: one, all, or some."""
    return "".join("1" if k == 1 else "k" if k == most else "s" for k, most in zip(size, whole))


def is_small(size: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether a kernel of several taps has fewer than the whole kernel, and so may be dilated."""
    return any(1 < k < most for k, most in zip(size, whole))


def unscaled(t: Tensors) -> Tensors:
    """The tensors of the branch inside a scaled one."""
    return unscaled(below(t, "branch")) if "scale.scale" in t and "down.weight" not in t else t


def has_weight(t: Tensors) -> bool:
    """Whether a branch is more than an identity."""
    return any(tensor.dim() > 2 for tensor in t.values())


def taps(t: Tensors) -> tuple[int, ...]:
    """Taps per axis of the largest kernels."""
    sizes = [size_of(tensor) for tensor in t.values() if tensor.dim() > 2]
    return tuple(map(max, zip(*sizes)))


def first_weight(t: Tensors) -> Tensor:
    """The first weight of a branch, which has the number of inputs per group."""
    return next(tensor for key, tensor in t.items() if tensor.dim() > 2 and key.endswith("weight"))


def outputs_of(parts: Mapping[int, Tensors]) -> int:
    """Output channels, from the end of the first branch."""
    part = next(filter(has_weight, map(unscaled, parts.values())), next(iter(parts.values())))
    last = {
        "expand": "squeeze.weight",
        "lora": "up.weight",
        "side": "out.weight",
        "conv": "conv.weight",
        "edge": "conv.weight",
    }
    if inner := numbered(part, "branches"):
        return outputs_of(inner)
    kind = HEADS[heads_of(part)]
    if kind == "chain":
        channels = 0
        for layer in numbered(part, "layers").values():
            channels = outputs_after(layer, channels)
        return channels
    return part[last.get(kind, "norm.running_var" if "norm.running_var" in part else "conv.weight")].shape[0]


def outputs_after(t: Tensors, channels: int) -> int:
    """Channels after a layer of a chain."""
    if any(key.startswith("branches.") for key in t):
        return outputs_of(numbered(t, "branches"))
    return t["weight"].shape[0] if "weight" in t and t["weight"].dim() > 2 else channels


def groups_inside(t: Tensors) -> list[int]:
    """The groups of every convolution of a branch but the first, computed from the convolution before it."""
    t = unscaled(t)
    for first, second in (("expand", "squeeze"), ("down", "up")):
        if f"{first}.weight" in t:
            return [t[f"{first}.weight"].shape[0] // t[f"{second}.weight"].shape[1]]
    if "out.weight" in t:
        terms = len(numbered(t, "convs")) + len(numbered(t, "norms"))
        return [terms * t["convs.0.weight"].shape[0] // t["out.weight"].shape[1]]
    found, channels = [number for part in numbered(t, "branches").values() for number in groups_inside(part)], 0
    for layer in numbered(t, "layers").values():
        if any(key.startswith("branches.") for key in layer) and not channels:
            found += [number for part in numbered(layer, "branches").values() for number in groups_inside(part)]
        elif channels and "weight" in layer and layer["weight"].dim() > 2:
            found.append(channels // layer["weight"].shape[1])
        elif channels and any(key.startswith("branches.") for key in layer):
            found.append(channels // first_weight(layer).shape[1])
        channels = outputs_after(layer, channels)
    return found
