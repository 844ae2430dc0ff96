"""The re-parameterizable modules of other people's codes in a model, and the layers that they become."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ...algebra._spec import ConvSpec
from ...branches import Branch
from ...errors import NotLinearError, ReparamError
from ...modules._walk import walk
from ...numerics._precision import has_float64, in_float64
from .affine import Affine, inputs
from .equations import is_whole_block
from .exact import copied_with, exact, numbers, without_hooks
from .forms import InferenceForm, Row, form_of
from .kernel_of import linear_parts
from .lookalikes import says_it_fuses
from .reading import affine_of, is_registered, like_of
from .trace import is_torch_layer


@dataclass(frozen=True)
class ForeignBlock:
    """A module with convolutions that its branches become."""

    module: nn.Module
    form: InferenceForm | Row | None
    """None: it becomes a layer as a whole."""
    values: Mapping[str, Affine]
    """Its convolutions in float64, by their name in it."""

    def parts(self, conv: str) -> list[nn.Module]:
        """What a convolution replaces."""
        if not isinstance(self.form, InferenceForm):
            return [self.module]
        names = next(slot.parts for slot in self.form.slots if slot.conv == conv)
        return [part for name in names if (part := self.module._modules.get(name)) is not None]

    @property
    def gone(self) -> list[nn.Module]:
        """What all of its convolutions replace."""
        return [part for conv in self.values for part in self.parts(conv)]

    def spec(self, conv: str) -> ConvSpec:
        """The geometry of a convolution; a linear layer is one with one tap on one axis."""
        value = self.values[conv]
        if value.flat:
            out, inputs, _ = value.op.kernel.weight.shape
            return ConvSpec(inputs, out, 1, ndim=1)
        return value.spec()

    @property
    def kept(self) -> dict[str, nn.Module]:
        """Its own modules that stay, by name."""
        if self.form is None:
            return {}
        if isinstance(self.form, Row):
            return {name: part for name, part in self.module.named_children() if name == self.form.then}
        gone = set(map(id, self.gone))
        return {name: part for name, part in self.module.named_children() if id(part) not in gone}


@dataclass(frozen=True)
class Refusal:
    """Why a module that looks like a block is none."""

    why: str
    asked: bool = False
    """Whether somebody registered it, so that leaving it as it is would not be what was asked for."""


def find_foreign(model: nn.Module) -> tuple[dict[str, ForeignBlock], dict[str, Refusal]]:
    """The foreign blocks of a model, and what looks like one, by dotted name, each once.

    What one of the blocks keeps is searched as well.
    """
    seen: dict[int, ForeignBlock | Refusal | None] = {}

    def inside(module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        block = seen[id(module)] = _look_at(module)
        if isinstance(block, ForeignBlock):
            return block.kept.items()
        return () if isinstance(module, Branch) else module.named_children()

    found = {name: seen[id(module)] for name, module in list(walk(model, inside))}
    blocks = {name: block for name, block in found.items() if isinstance(block, ForeignBlock)}
    return blocks, {name: block for name, block in found.items() if isinstance(block, Refusal)}


def foreign_block(module: nn.Module) -> ForeignBlock | None:
    """A module as a foreign block, if it is one."""
    block = _look_at(module)
    return block if isinstance(block, ForeignBlock) else None


def _look_at(module: nn.Module) -> ForeignBlock | Refusal | None:
    if isinstance(module, Branch):
        return None
    registered = is_registered(module)
    form = None if registered else form_of(module)
    if not (registered or form or is_whole_block(module)) and not says_it_fuses(module):
        return None
    try:
        return _read(module, form)
    except Exception as error:  # one part that cannot be read, whatever it raises, is no reason to stop at all others
        why = str(error) if isinstance(error, ReparamError) else f"{type(error).__name__}: {error}"
        return Refusal(f"{type(module).__name__}: {why}", registered)


@torch.no_grad()
def _read(module: nn.Module, form: InferenceForm | Row | None) -> ForeignBlock:
    copied = to_read(module)
    like = in_float64(like_of(copied).new_empty(0))
    block = ForeignBlock(module, form, linear_parts(copied, like))
    for conv in block.values:
        block.spec(conv)
    for part in module.modules():
        if is_registered(part):
            check_registered(part, like)
    return block


def to_read(module: nn.Module) -> Any:
    """As `exact`, but weights of torch's convolutions stay as they are.

    They are large, and become float64 where an `Affine` uses them. Such a copy can be read, and not run.
    """
    opaque = any(is_registered(part) or isinstance(part, Branch) for part in module.modules())
    convs = [part for part in module.modules() if isinstance(part, _ConvNd) and is_torch_layer(part)]
    weights = [] if opaque else [weight for conv in convs if (weight := conv._parameters.get("weight")) is not None]
    raw = {id(weight) for weight in weights if has_float64(weight.device)}
    return copied_with(module, lambda tensor: tensor if id(tensor) in raw else in_float64(tensor))


def check_registered(module: nn.Module, like: Tensor) -> None:
    """Runs a module of a registered type on made-up numbers, where it takes any, and compares.

    Raises:
        NotLinearError: if it does something else than the kernel that is registered.
    """
    value = affine_of(exact(module), like).settled()
    if value.op.kernel.weight.is_meta:
        return
    x = numbers(_shape_for(value), value.op.kernel.weight)
    try:
        wanted = without_hooks(exact(module)).forward(x)
    except Exception:  # a foreign forward may raise anything; it may want another shape, or more than one input
        return
    conv = None if value.flat else value.spec().build_conv(*value.op.kernel)
    y = F.linear(x, value.op.kernel.weight.squeeze(-1), value.op.kernel.bias) if conv is None else conv(x)
    error = float((y - wanted).abs().max()) if y.shape == getattr(wanted, "shape", None) else float("inf")
    largest = float(wanted.abs().max()) if error < float("inf") else float("nan")
    if not error <= 1e-6 * largest + 1e-12:  # a forward may well compute in float32
        raise NotLinearError(
            f"its forward is not the kernel that is registered with kernel_of: they differ by {error:.3g} where the "
            f"forward reaches {largest:.3g}, on random numbers of shape {tuple(x.shape)}; a kernel has no activation, "
            "no gate and no quantization in it: register the linear part alone, or do not register this type"
        )


def _shape_for(value: Affine) -> tuple[int, ...]:
    """Of an input that has a few outputs in the inside and at each border."""
    op = value.op
    sizes = (d * (k - 1) + 1 + 3 * s for k, s, d in zip(op.kernel.size, op.stride, op.dilation))
    return (3, inputs(op), *(() if value.flat else sizes))
