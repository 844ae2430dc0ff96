"""What looks like the branches of a block without being one that is known."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node
from torch.nn.modules.conv import _ConvNd

from .exact import copied_with
from .forms import FORMS
from .layers import layer_affine
from .trace import called, is_any_norm, is_torch_layer

_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_METHODS = ("fuse", "reparameterize", "switch_to_deploy")
_NOT_LINEAR = layer_affine.dispatch(object)


def says_it_fuses(module: nn.Module) -> bool:
    """Whether a module has one of the usual methods, and several linear layers to use it on.

    One with an activation inside can be no layer as a whole. It is meant if no part of it has such a method, and it is
    not the inference form of a known class.
    """
    if not _has_a_method(module) or not _is_several(module) or _keeps_itself(module):
        return False
    layers = [part for part in module.modules() if is_torch_layer(part) and not is_any_norm(part)]
    if not any(layer_affine.dispatch(type(layer)) is _NOT_LINEAR for layer in layers):
        return True
    inner = any(_has_a_method(part) for child in module.children() for part in child.modules())
    return not inner and not _is_fused(module)


def _has_a_method(module: nn.Module) -> bool:
    return not is_torch_layer(module) and any(callable(getattr(module, name, None)) for name in _METHODS)


def _is_several(module: nn.Module) -> bool:
    return sum(isinstance(part, (_ConvNd, nn.Linear)) or is_any_norm(part) for part in module.modules()) > 1


def _keeps_itself(module: nn.Module) -> bool:
    """Whether the `fuse` of a class leaves the module in its place, tried out on a copy without numbers."""
    try:
        blank = copied_with(module, lambda tensor: tensor.to("meta"))
        return blank.fuse() is blank
    except Exception:  # a foreign method may raise anything; not every one of them works without numbers
        return False


def _is_fused(module: nn.Module) -> bool:
    names = {slot.conv for form in FORMS for slot in form.slots}
    return any("fused_from" in vars(part) for part in module.modules()) or any(
        module._modules.get(name) is not None for name in names
    )


def sums_of_layers(root: nn.Module, graph: Graph) -> Iterator[str]:
    """Where a forward adds what several linear layers make of one value: names of the modules in `root` that do."""
    trees = {node: _layers_under(root, node) for node in graph.nodes if node.target in _SUMS}
    for node, (source, layers) in trees.items():
        whole = not any(user in trees and trees[user][0] is not None for user in node.users)
        if source is not None and layers > 1 and whole:
            yield next(reversed(node.meta.get("nn_module_stack", {"": None})))


def _layers_under(root: nn.Module, node: Any) -> tuple[Any, int]:
    """The one value that a value is a linear function of, as far as layers and sums go, and the number of layers."""
    if not isinstance(node, Node):
        return None, 0
    module = called(root, node)
    if node.target in _SUMS:
        (a, n), (b, m) = (_layers_under(root, arg) for arg in node.args[:2])
        return (a, n + m) if a is b else (None, 0)
    if module is None or not _is_linear(module) or not node.args:
        return node, 0
    source, layers = _layers_under(root, node.args[0])
    return source, layers + isinstance(module, (_ConvNd, nn.Linear)) + is_any_norm(module)


def _is_linear(module: nn.Module) -> bool:
    known = is_any_norm(module) or (is_torch_layer(module) and layer_affine.dispatch(type(module)) is not _NOT_LINEAR)
    return known and all(isinstance(part, nn.Identity) for part in module.children())
