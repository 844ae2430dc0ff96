"""Makes a network fit float16, which holds no value above 65504: measures its values and rescales it if needed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker

from ..errors import ExportError
from ..modules._hooks import copy_module
from ._plain import Plain, Step, plain_steps

LARGEST = 65504.0
"""The largest value of float16."""
_ROOM = LARGEST / 16
"""The limit on the images at hand. Other images may reach more, and so may sums inside a convolution."""
_SAME_SCALE = {"prelu", "add", "maximum", "minimum", "concat", "gather", "crop", "shuffle", "unshuffle", "resize"}
_SAME_SCALE |= {"average", "largest", "mean"}
"""Steps with f(2^k x) = 2^k f(x)."""


class Held(NamedTuple):
    """A network in float32 whose values all fit float16, on the images that were tried."""

    net: nn.Module
    peak: float
    """The largest value of a layer."""
    rescaled: tuple[str, ...]
    """The layers whose weights were multiplied by powers of two."""


def held_in_half(net: nn.Module, images: Sequence[Tensor]) -> Held:
    r"""The same function with smaller values inside, if it has large ones.

    $$f(x) = W_2\,\mathrm{PReLU}(W_1 x + b_1) = 2^k W_2\,\mathrm{PReLU}(2^{-k} W_1 x + 2^{-k} b_1)$$

    This is exact, because a power of two changes no digit. It works wherever everything between two convolutions is
    positively homogeneous: PReLU, ReLU, sums, the pixel shuffle.

    Args:
        net: the network, fused, in eval mode; it is not changed.
        images: typical inputs, each (N, C, H, W) in float32.

    Raises:
        ExportError: if a value or a parameter is still above 65504.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False))
        >>> _ = net[0].weight.data.fill_(2.0**20), net[2].weight.data.fill_(2.0**-20)
        >>> held = held_in_half(net.eval(), [torch.ones(1, 1, 4, 4)])
        >>> held.peak, held.rescaled, held.net[0].weight.item(), bool(held.net(torch.ones(1, 1, 4, 4)).eq(1).all())
        (2048.0, ('0', '2'), 2048.0, True)
    """
    peaks, rescaled = _peaks(net, images), tuple[str, ...]()
    if any(not peak <= _ROOM for peak in peaks.values()):
        net = copy_module(net)
        rescaled = _rescale(net, images, peaks)
        peaks = _peaks(net, images)
    _check(net, peaks)
    return Held(net, max(peaks.values(), default=0.0), rescaled)


def smooth_pictures(colors: int, height: int = 48, width: int = 48) -> Tensor:
    """Test pictures that provoke large values in image networks, (4, colors, H, W): soft, with edges, white, black."""
    few = torch.rand(1, colors, 5, 5, generator=torch.Generator().manual_seed(0))
    soft = F.interpolate(few, size=(height, width), mode="bilinear", align_corners=True)
    return torch.cat([soft, (soft > 0.5).float(), torch.ones_like(soft), torch.zeros_like(soft)])


Peaks = dict[tuple[str, tuple[int, ...]], float]
"""The largest absolute value, by layer and shape."""


class _Watch(TorchDispatchMode):
    """Records the largest value of everything that is computed, layer by layer."""

    def __init__(self, layers: ModuleTracker) -> None:
        super().__init__()
        self.layers, self.peaks = layers, Peaks()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute what torch would."""
        result = func(*args, **(kwargs or {}))
        layer = max(self.layers.parents, key=len).partition(".")[2]  # the innermost, after the name of the class
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and one.is_floating_point() and one.numel():
                key = layer, tuple(one.shape)
                self.peaks[key] = max(float(one.abs().nan_to_num(math.inf).max()), self.peaks.get(key, 0.0))
        return result


@torch.no_grad()
def _peaks(net: nn.Module, images: Iterable[Tensor]) -> Peaks:
    with ModuleTracker() as layers, _Watch(layers) as watch:
        for one in images:
            net(one.clone())  # the network may change its input
    return watch.peaks


def _check(net: nn.Module, peaks: Peaks) -> None:
    """Refuse a network with a value that float16 cannot hold, and name the largest."""
    named = {f"{type(net).__name__}.{layer}".rstrip(".") + " reaches": peak for (layer, _), peak in peaks.items()}
    named |= {f"{name} holds": float(one.detach().abs().max()) for name, one in net.named_parameters() if one.numel()}
    worst = max(named, key=lambda name: named[name], default="")
    if worst and not named[worst] <= LARGEST:
        raise ExportError(
            f"{worst} {named[worst]:.6g}, but float16 holds at most {LARGEST:.0f}, and the layers around it cannot be "
            "rescaled by a power of two; export it with half=False"
        )


@torch.no_grad()
def _rescale(net: nn.Module, images: Sequence[Tensor], peaks: Peaks) -> tuple[str, ...]:
    """Multiply weights and biases by powers of two, and return their layers' names; none if the graph is unknown."""
    try:
        plain = plain_steps(net, images[0], dynamic=False)
    except ExportError:  # it does something that is not one of the steps
        return ()
    measured: dict[tuple[str, tuple[int, ...]], float] = {}
    for (layer, shape), peak in peaks.items():
        measured[layer, shape[1:]] = max(peak, measured.get((layer, shape[1:]), 0.0))
    free = _weights(net, plain)
    power = _powers(plain, free, {step.name: measured.get((step.layer, step.shape[1:]), 0.0) for step in plain.steps})
    changed = []
    for step in plain.steps:
        if step.name in free:
            before, after = power[step.inputs[0]], power[step.name]
            for tensor, factor in zip(free[step.name], (2.0 ** (before - after), 2.0**-after)):
                tensor.mul_(factor)
            changed += [step.layer] if before or after else []
    return tuple(changed)


def _weights(net: nn.Module, plain: Plain) -> dict[str, list[Tensor]]:
    """By step: weight and bias of each convolution whose parameters belong to its layer and to no other step."""
    found = {}
    for step in plain.steps:
        if step.kind in ("conv", "transposed"):
            layer = net.get_submodule(step.layer)
            held = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
            wanted = [step.settings["weight"], *([step.settings["bias"]] if step.settings["bias"].any() else [])]
            same = [[one for one in held if one.shape == number.shape and one.equal(number)] for number in wanted]
            if all(len(ones) == 1 for ones in same):
                found[step.name] = [one for (one,) in same]
    used = Counter(id(one) for ones in found.values() for one in ones)
    return {name: ones for name, ones in found.items() if all(used[id(one)] == 1 for one in ones)}


def _powers(plain: Plain, free: Iterable[str], peaks: dict[str, float]) -> dict[str, int]:
    """By how many powers of two each value is divided. Values that one step ties together are divided by the same."""
    group = {name: name for name in (plain.input, *(step.name for step in plain.steps))}

    def tie(*names: str) -> None:
        into, others = group[names[0]], {group[name] for name in names}
        group.update({name: into for name, now in group.items() if now in others})

    tie(plain.input, plain.output)
    for step in plain.steps:
        if step.name not in free:
            tie(step.name, *step.inputs, *([] if _keeps_scale(step) else [plain.input]))
    powers = dict.fromkeys(group.values(), 0)
    for name, peak in peaks.items():
        if group[name] != group[plain.input] and peak > _ROOM:
            powers[group[name]] = max(powers[group[name]], math.ceil(math.log2(min(peak, 2.0**100) / _ROOM)))
    return {name: powers[one] for name, one in group.items()}


def _keeps_scale(step: Step) -> bool:
    settings = step.settings
    if step.kind == "clamp":
        return settings["low"] == 0 and settings["high"] is None
    if step.kind == "affine":
        return not settings["shift"].any()
    return step.kind in _SAME_SCALE or (step.kind == "pad" and not settings.get("value"))
