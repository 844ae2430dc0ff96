"""Which regions of a forward are worth a convolution, and which are somebody else's concern."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

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
    """What could be merged, and is not for a reason that has nothing to do with numbers."""


def leaves_layers(forward: Forward) -> bool:
    """Whether a forward leaves out layers that its module holds, as one that sums in training mode only does."""
    used = {str(node.target).partition(".")[0] for node in forward.graph.nodes}
    return any(name not in used and isinstance(part, _ConvNd) for name, part in forward.root.named_children())


def as_a_whole(forward: Forward, like: Tensor) -> LinearOp | None:
    """What a module that means to become a layer is as one, if that costs no more."""
    try:
        pays = balanced(forward.apply(the_input(like.to("meta")))).multiply_adds <= forward.cost()
        return balanced(forward.apply(the_input(like))) if pays else None
    except NotLinearError:
        return None


def check_most(module: nn.Module, forward: Forward, pieces: list[Piece]) -> None:
    """Checks that a whole model, whose class goes with its forward, is not rewritten for the sake of a small part.

    Raises:
        StaysError: if most of its layers are elsewhere.
    """
    inside = [forward.root.get_submodule(name) for piece in pieces for name in modules_of(forward, piece)]
    taken = len({id(part) for inner in inside for part in inner.modules() if is_layer(part)})
    total = sum(map(is_layer, module.modules()))
    if 2 * taken < total:
        raise StaysError(
            f"its own forward adds up layers that could be one ({taken} of {total} in all), but would have to be "
            "rewritten, and the model would lose its class; move them into a module of their own"
        )


def regions_of(forward: Forward, opaque: Container[int]) -> Regions:
    """What of a forward becomes convolutions, past modules that are not looked into."""
    steps = [
        replace(step, apply=None) if id(called(forward.root, step.key)) in opaque else step for step in forward.steps
    ]
    found = find_regions(steps, forward.outputs(), widths_of(forward.root, forward.graph))
    return found._replace(pieces=[piece for piece in found.pieces if forward.is_safe(piece)])


def _layers(piece: Piece, forward: Forward) -> list[nn.Module | None]:
    """The layers in a piece; None for a function that is one."""
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
    return getattr(node.target, "__name__", "") in ("conv1d", "conv2d", "conv3d", "linear", "batch_norm")


def is_worth_it(piece: Piece, forward: Forward) -> bool:
    """Whether a piece has several layers, of which norms next to their layer are no concern here."""
    layers = _layers(piece, forward)
    if is_chain(piece, forward):
        return sum(_weights_in(module) for module in layers) > 1
    return len(layers) > 1 or any(forward.computes_weight(step.key) for step in piece.steps)


def _weights_in(module: nn.Module | None) -> int:
    """Layers with a kernel in a module, or a function that is one."""
    if module is None:
        return 1
    return sum(map(is_layer, module.modules())) - is_any_norm(module)


def is_chain(piece: Piece, forward: Forward) -> bool:
    """Whether modules are called one after the other, and nothing else is done."""
    modules = [called(forward.root, step.key) for step in piece.steps]
    return all(len(step.inputs) == 1 for step in piece.steps) and all(
        module is not None or step.cost == 0 for step, module in zip(piece.steps, modules)
    )


def modules_of(forward: Forward, piece: Piece) -> tuple[str, ...]:
    """The names of the modules that a piece replaces."""
    names = [str(step.key.target) for step in piece.steps if step.key in piece.gone and step.key.op == "call_module"]
    return tuple(dict.fromkeys(names))
