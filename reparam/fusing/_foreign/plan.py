"""The plan of fusing: what becomes of each module of a model, computed before anything is changed."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from ...algebra import _kernels as kernels
from ...algebra._kernels import Kernel
from ...algebra._linear import LinearOp
from ...branches import Branch
from ...numerics._precision import in_float64
from .blocks import ForeignBlock
from .exact import exact
from .forms import InferenceForm, Row
from .layers import norm_scale_shift
from .pairs import Neighbors
from .rewriting import InPlace, Rewriting

Keep = Callable[[nn.Module], nn.Module]
"""Returns what to keep for a module: a copy, or the module itself."""
Make = Callable[[Keep], nn.Module]


@dataclass(frozen=True)
class Edit:
    """A block that keeps its class."""

    block: ForeignBlock
    sets: Mapping[str, Callable[[Keep], Any]]
    """Callables that make the values of attributes."""

    def apply(self, module: nn.Module, keep: Keep) -> None:
        """Give the block, or a copy of it, its inference form."""
        for name in {name for names in self.block.swallows.values() for name in names}:
            delattr(module, name)
        for name, make in self.sets.items():
            setattr(module, name, make(keep))


@dataclass
class Plan:
    """Which modules are replaced by what."""

    instead: dict[int, Make] = field(default_factory=dict)
    """What replaces a module, by its id."""
    edits: list[Edit] = field(default_factory=list)
    around: dict[int, Make] = field(default_factory=dict)
    """As `instead`, for modules that keep parts with replaced modules inside; outer ones first."""

    def makes(self) -> dict[int, Make]:
        """All replacements, inner modules before outer ones."""
        return {**self.instead, **dict(reversed(self.around.items()))}

    def fill(self, memo: dict[int, Any]) -> None:
        """Fill the memo of a deepcopy so that it puts every replacement in place, except for edits."""
        for edit in self.edits:
            memo.update((id(part), nn.Identity()) for part in edit.block.gone)  # saves copies that are not used
        for key, make in self.makes().items():
            memo[key] = make(partial(copy.deepcopy, memo=memo))


def add_foreign(plan: Plan, blocks: Iterable[ForeignBlock]) -> None:
    """Add the replacements of foreign blocks to a plan."""
    for block in blocks:
        layers = {conv: layer_of(value, block, conv) for conv, value in block.values.items()}
        if isinstance(block.form, InferenceForm):
            plan.edits.append(Edit(block, _in_place(block.form, block.module, layers)))
        elif isinstance(block.form, Row):
            plan.around[id(block.module)] = partial(_row, block, layers)
        elif isinstance(block.form, Rewriting):
            plan.around[id(block.module)] = partial(block.form.make, block.module, layers)
        elif isinstance(block.form, InPlace):
            for conv, layer in layers.items():
                for name in block.swallows[conv]:
                    made = layer if name == conv else nn.Identity().train(layer.training)
                    plan.instead[id(block.module.get_submodule(name))] = partial(given, made)
        else:
            plan.instead[id(block.module)] = partial(given, layers[""])


def given(module: nn.Module, keep: Keep) -> nn.Module:
    """A `Make` that keeps the module."""
    return module


def _row(block: ForeignBlock, layers: Mapping[str, nn.Module], keep: Keep) -> nn.Module:
    kept = {name: keep(part) for name, part in block.kept.items()}
    return nn.Sequential(OrderedDict({**layers, **kept})).train(block.module.training)


def _in_place(form: InferenceForm, module: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, Callable]:
    def make(layer: nn.Module, then: nn.Module | None, keep: Keep) -> nn.Module:
        return layer if then is None else nn.Sequential(layer, keep(then)).train(module.training)

    followers = {conv: module._modules.get(form.then.get(conv, "")) for conv in form.convs}
    convs = {name: partial(make, layer, followers[name]) for name, layer in layers.items()}
    return {**convs, **{name: partial(_value, value) for name, value in form.sets.items()}}


def _value(value: Any, keep: Keep) -> Any:
    return value() if callable(value) else value


def layer_of(value: LinearOp, block: ForeignBlock, conv: str) -> nn.Module:
    """The plain layer of a float64 value, rounded once to the dtype of the block's parts."""
    parts = block.parts(conv)
    like = _like(parts)
    weight, bias = _placed(value.kernel, like)
    layer: nn.Module
    if value.flat:
        layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        layer.weight, layer.bias = nn.Parameter(weight.squeeze(-1)), nn.Parameter(bias)
    else:
        layer = value.spec().build_conv(weight, bias)
    return _in_place_of(block.module, layer, parts)


def _in_place_of(module: nn.Module, layer: nn.Module, parts: Iterable[nn.Module]) -> nn.Module:
    layer.requires_grad_(any(parameter.requires_grad for part in parts for parameter in part.parameters()))
    layer.fused_from = type(module).__name__  # type: ignore[assignment]  # not declared by torch's class
    return layer.train(module.training)


def _like(parts: Iterable[nn.Module]) -> Tensor:
    """The weight that decides dtype, device and memory format: one in channels last, if any."""
    found = [parameter for part in parts for parameter in part.parameters()]
    weights = [parameter for parameter in found if parameter.dim() > 1] or found
    return next(filter(_is_channels_last, weights), weights[0])


def _is_channels_last(weight: Tensor) -> bool:
    is_last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return is_last and not weight.is_contiguous()


def _placed(kernel: Kernel, like: Tensor) -> Kernel:
    """A kernel in the dtype, on the device and in the memory format of a weight."""
    weight, bias = (tensor.detach().to(like) for tensor in kernel)
    return Kernel(weight.contiguous(memory_format=torch.channels_last) if _is_channels_last(like) else weight, bias)


@dataclass
class _Layer:
    """A layer that norms are merged into: its kernel in float64, and a function that builds the new layer."""

    kernel: Kernel
    groups: int
    build: Callable[[Kernel], nn.Module]


@torch.no_grad()
def add_neighbors(plan: Plan, neighbors: Iterable[Neighbors]) -> None:
    """Add to a plan the layers that norms are merged into, and what remains of these norms."""
    layers: dict[int, _Layer] = {}
    for found in neighbors:
        scale, shift = norm_scale_shift(exact(found.norm))
        for module in found.layers:
            layer = layers.setdefault(id(module), _open(module))
            if found.before:
                layer.kernel = kernels.affine_before(scale, shift, layer.kernel, layer.groups)
            else:
                layer.kernel = kernels.affine(layer.kernel, scale, shift)
        plan.instead[id(found.norm)] = partial(_without_norm, found.norm)
    for key, layer in layers.items():
        plan.instead[key] = partial(given, layer.build(layer.kernel))


def _without_norm(norm: nn.Module, keep: Keep) -> nn.Module:
    """What remains of a merged norm: the activation of timm's norms, under its name; an identity for others."""
    parts = {name: keep(part) for name, part in norm.named_children() if not isinstance(part, nn.Identity)}
    left = nn.Sequential(OrderedDict(parts)) if parts else nn.Identity()
    return left.train(norm.training)


def _open(module: Any) -> _Layer:
    if isinstance(module, Branch):
        return _open_block(module)
    weight = in_float64(module.weight)
    bias = weight.new_zeros(module.out_features if isinstance(module, nn.Linear) else module.out_channels)
    bias = bias if module.bias is None else in_float64(module.bias)
    groups = 1 if isinstance(module, nn.Linear) else module.groups
    flat = isinstance(module, nn.Linear)
    turned = isinstance(module, _ConvTransposeNd)  # whose weight is (in, out / groups, *size)
    weight = weight[..., None] if flat else _turn(weight, groups) if turned else weight

    def build(kernel: Kernel) -> nn.Module:
        weight = kernel.weight
        weight = weight.squeeze(-1) if flat else _turn(weight, groups) if turned else weight
        return _with_kernel(module, Kernel(weight, kernel.bias))

    return _Layer(Kernel(weight, bias), groups, build)


def _turn(weight: Tensor, groups: int) -> Tensor:
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _with_kernel(module: Any, kernel: Kernel) -> nn.Module:
    """A copy of a layer with another weight and bias."""
    weight, bias = _placed(kernel, module.weight)
    trainable = any(parameter.requires_grad for parameter in module.parameters())
    memo: dict[int, Any] = {id(module.weight): nn.Parameter(weight, requires_grad=trainable)}
    if module.bias is not None:
        memo[id(module.bias)] = None
    layer = copy.deepcopy(module, memo)
    layer.bias = nn.Parameter(bias, requires_grad=trainable)
    layer.fused_from = type(module).__name__
    return layer


def _open_block(block: Branch) -> _Layer:
    copied = exact(block)
    weight, bias = copied._full(copied.kernel())
    bias = bias if block.spec.bias else torch.zeros_like(bias)

    def build(kernel: Kernel) -> nn.Module:
        weight, bias = _placed(kernel, _like([block]))
        return _in_place_of(block, block.spec.replace(bias=True).build_conv(weight, bias), [block])

    return _Layer(Kernel(weight, bias), block.spec.groups, build)
