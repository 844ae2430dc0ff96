"""The re-parameterizable modules of other people's codes in a model, and the layers that they become."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..branches import Branch
from ..errors import NotLinearError
from ..precision import in_float64
from ..spec import ConvSpec
from .affine import Affine
from .equations import is_whole_block
from .kernel_of import linear_parts
from .layers import layer_affine
from .reading import is_registered, like_of
from .recipes import Recipe, Row, recipe_of
from .trace import is_any_norm, is_torch_layer, same_hooks


@dataclass(frozen=True)
class ForeignBlock:
    """A module with convolutions that its branches become."""

    module: nn.Module
    recipe: Recipe | Row | None
    """None: it becomes a layer as a whole."""
    values: Mapping[str, Affine]
    """Its convolutions in float64, by their name in it."""

    def parts(self, conv: str) -> list[nn.Module]:
        """What a convolution replaces."""
        if not isinstance(self.recipe, Recipe):
            return [self.module]
        names = next(slot.parts for slot in self.recipe.slots if slot.conv == conv)
        return [part for name in names if (part := self.module._modules.get(name)) is not None]

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
        if self.recipe is None:
            return {}
        if isinstance(self.recipe, Row):
            return {name: part for name, part in self.module.named_children() if name == self.recipe.then}
        gone = {id(part) for conv in self.values for part in self.parts(conv)}
        return {name: part for name, part in self.module.named_children() if id(part) not in gone}


def find_foreign(model: nn.Module) -> dict[str, ForeignBlock]:
    """The foreign blocks of a model by dotted name, each once; what one of them keeps is searched as well."""

    def walk(module: nn.Module, name: str) -> Iterator[tuple[str, ForeignBlock]]:
        if isinstance(module, Branch):
            return
        block = foreign_block(module)
        if block:
            yield name, block
        for child_name, child in block.kept.items() if block else module.named_children():
            yield from walk(child, f"{name}.{child_name}" if name else child_name)

    found: dict[int, tuple[str, ForeignBlock]] = {}
    for name, block in walk(model, ""):
        found.setdefault(id(block.module), (name, block))
    return dict(found.values())


def foreign_block(module: nn.Module) -> ForeignBlock | None:
    """A module as a foreign block, if it is one."""
    recipe = None if is_registered(module) else recipe_of(module)
    known = recipe or is_registered(module) or is_whole_block(module)
    if not known and (not _says_it_fuses(module) or _keeps_itself(module)):
        return None
    try:
        with torch.no_grad():
            copied = exact(module)
            values = linear_parts(copied, like_of(copied))
    except NotLinearError:
        if is_registered(module):
            raise
        return None
    return ForeignBlock(module, recipe, values)


def _says_it_fuses(module: nn.Module) -> bool:
    """Whether a module has one of the usual methods, and holds linear layers, several, and nothing else."""
    says = any(callable(getattr(module, name, None)) for name in ("fuse", "reparameterize", "switch_to_deploy"))
    if not says or is_torch_layer(module):
        return False
    layers = [part for part in module.modules() if is_torch_layer(part) and not is_any_norm(part)]
    several = sum(isinstance(part, (_ConvNd, nn.Linear)) or is_any_norm(part) for part in module.modules()) > 1
    return several and not any(layer_affine.dispatch(type(layer)) is _NOT_LINEAR for layer in layers)


_NOT_LINEAR = layer_affine.dispatch(object)


def _keeps_itself(module: nn.Module) -> bool:
    """Whether the `fuse` of a class leaves the module in its place, tried out on a copy without numbers."""
    try:
        blank = with_tensors(module, lambda tensor: tensor.to("meta"))
        return blank.fuse() is blank
    except Exception:  # a foreign method may raise anything; not every one of them works without numbers
        return False


def with_tensors(module: nn.Module, make: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a module in eval mode that holds other tensors; those of integers are kept."""
    memo = same_hooks(module)
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            made = make(tensor).detach()
            memo[id(tensor)] = nn.Parameter(made) if isinstance(tensor, nn.Parameter) else made
        else:
            memo[id(tensor)] = tensor
    return copy.deepcopy(module, memo).eval()


def exact(module: nn.Module) -> Any:
    """A copy in float64 and eval mode, on the same device if that knows float64.

    Weights of torch's convolutions stay as they are: they are large, and become float64 where they are used.
    """
    opaque = any(is_registered(part) or isinstance(part, Branch) for part in module.modules())
    convs = [part for part in module.modules() if isinstance(part, _ConvNd) and is_torch_layer(part)]
    raw = {id(tensor) for conv in convs if not opaque for tensor in conv._parameters.values()}
    return with_tensors(module, lambda tensor: tensor if tensor.dim() > 1 and id(tensor) in raw else in_float64(tensor))
