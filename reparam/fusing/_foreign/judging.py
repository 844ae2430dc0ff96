"""Decide which regions of a forward become a convolution, and which are handled elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Container
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ...algebra._affine import balanced, the_input
from ...algebra._linear import LinearOp
from ...errors import NotLinearError
from .._regions import Piece, Regions, find_regions
from .reading import Forward
from .trace import called, is_any_norm
from .widths import widths_of


class StaysError(NotLinearError):
    """A part that is linear, but is not merged for another reason."""


def leaves_layers(forward: Forward) -> bool:
    """Whether a forward does not use some of its layers, as in modules that sum branches in training mode only."""
    used = {str(node.target).partition(".")[0] for node in forward.graph.nodes}
    return any(name not in used and isinstance(part, _ConvNd) for name, part in forward.root.named_children())


def as_a_whole(forward: Forward, like: Tensor) -> LinearOp | None:
    """A module that is meant to become a layer, as one linear map, if that costs no more; else None."""
    try:
        pays = balanced(forward.apply(the_input(like.to("meta")))).multiply_adds <= forward.cost()
        return balanced(forward.apply(the_input(like))) if pays else None
    except NotLinearError:
        return None


def check_most(module: nn.Module, forward: Forward, pieces: list[Piece]) -> None:
    """Check that a model is not rewritten, and so loses its class, for a small part of its layers.

    Raises:
        StaysError: if most of its layers are outside the pieces.
    """
    inside = [forward.root.get_submodule(name) for piece in pieces for name in modules_of(forward, piece)]
    taken = len({id(part) for inner in inside for part in inner.modules() if is_layer(part)})
    total = sum(map(is_layer, module.modules()))
    if 2 * taken < total:
        raise StaysError(
            f"its own forward sums layers that could be one ({taken} of {total} in all), but fusing them would rewrite "
            "that forward, and the model would lose its class; move these layers into a separate module"
        )


def regions_of(forward: Forward, opaque: Container[int]) -> Regions:
    """The regions of a forward that become convolutions; opaque modules are not searched."""
    forward.regroup(_regions_of(forward, opaque).source)
    found = _regions_of(forward, opaque)
    return found._replace(pieces=[piece for piece in found.pieces if forward.is_safe(piece)])


def _regions_of(forward: Forward, opaque: Container[int]) -> Regions:
    steps = [
        replace(step, apply=None) if id(called(forward.root, step.key)) in opaque else step for step in forward.steps
    ]
    return find_regions(steps, forward.outputs(), widths_of(forward.root, forward.graph))


def _layers(piece: Piece, forward: Forward) -> list[nn.Module | None]:
    """The layers in a piece; None stands for a function that acts as a layer."""
    found: list[nn.Module | None] = []
    for step in piece.steps:
        module = called(forward.root, step.key)
        if step.key in piece.gone and (module is not None or _is_layer_function(step.key)):
            found.append(module)
    return [module for module in found if module is None or any(map(is_layer, module.modules()))]


def is_layer(module: nn.Module) -> bool:
    return (
        isinstance(module, (_ConvNd, nn.Linear)) or is_any_norm(module) or type(module).__name__.startswith("AvgPool")
    )


def _is_layer_function(node: Any) -> bool:
    return getattr(node.target, "__name__", "") in _LAYER_FUNCTIONS


_LAYER_FUNCTIONS = ("conv1d", "conv2d", "conv3d", "linear", "batch_norm", "matmul", "mm", "addmm")


def is_worth_it(piece: Piece, forward: Forward) -> bool:
    """Whether a piece has several layers. A norm next to its layer does not count; `neighbors` handles it."""
    layers = _layers(piece, forward)
    if any(module is not None and "fused_from" in vars(module) for module in layers):
        return False  # fusing a fused model changes nothing
    if is_chain(piece, forward):
        return sum(_weights_in(module) for module in layers) > 1
    return len(layers) > 1 or any(forward.computes_weight(step.key) for step in piece.steps)


def _weights_in(module: nn.Module | None) -> int:
    """The number of layers with a kernel in a module, or in a function that acts as a layer."""
    if module is None:
        return 1
    return sum(map(is_layer, module.modules())) - is_any_norm(module)


def is_chain(piece: Piece, forward: Forward) -> bool:
    """Whether the piece only calls modules one after the other."""
    modules = [called(forward.root, step.key) for step in piece.steps]
    return all(len(step.inputs) == 1 for step in piece.steps) and all(
        module is not None or step.cost == 0 for step, module in zip(piece.steps, modules)
    )


def modules_of(forward: Forward, piece: Piece) -> tuple[str, ...]:
    """The names of the modules that a piece replaces."""
    names = [str(step.key.target) for step in piece.steps if step.key in piece.gone and step.key.op == "call_module"]
    return tuple(dict.fromkeys(names))


_GEOMETRY = {"in_channels", "out_channels", "in_features", "out_features", "num_features", "kernel_size", "stride"}
_GEOMETRY |= {"padding", "dilation", "groups", "weight", "bias"}


def asks_for_geometry(module: nn.Module) -> bool:
    """Whether a forward reads attributes that change if a layer is replaced by another."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    ours = type(module).forward is nn.Sequential.forward
    return not ours and (code is None or bool(_GEOMETRY & set(code.co_names)))


def check_dtypes(forward: Forward, like: Tensor) -> None:
    """Check that the graph of a forward does not contain the dtype of the copies that are read.

    Raises:
        StaysError: if it does.
    """
    given = [one for node in forward.graph.nodes for one in (*node.args, *node.kwargs.values())]
    if like.dtype != torch.float64 and any(one is torch.float64 for one in given):
        raise StaysError("its forward asks a tensor for its dtype in a way that cannot be traced")
