"""The number of channels of the values in a forward, as far as the layers that read them determine it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from .trace import called


def widths_of(root: nn.Module, graph: Graph) -> dict[Node, int]:
    """Channels of values by node, where known."""
    found: dict[Node, int] = {}
    for node in reversed(graph.nodes):
        for user in node.users:
            module = called(root, user)
            width = _takes(module) if module is not None else found.get(user)
            if node.op != "output" and width and (module is not None or _keeps_channels(user)):
                found.setdefault(node, width)
            elif (whole := _parts_of(root, user, found)) is not None:
                found.setdefault(node, whole)
    return found


def _takes(module: nn.Module) -> int | None:
    """Channels that a layer takes."""
    for name in ("in_channels", "num_features"):
        if isinstance(width := getattr(module, name, None), int):
            return width
    for part in module.modules():
        if part is not module and isinstance(width := getattr(part, "in_channels", None), int):
            return width if isinstance(module, nn.Sequential) else None
    return None


def _keeps_channels(node: Node) -> bool:
    return getattr(node.target, "__name__", node.target) in ("add", "iadd", "sub", "mul", "relu", "add_", "mul_", "pad")


def _parts_of(root: nn.Module, node: Any, found: dict[Node, int]) -> int | None:
    """Channels of a value that a node splits into parts with known channels."""
    if node.target is operator.getitem and isinstance(node.args[1], tuple) and len(node.args[1]) > 1:
        part: Any = node.args[1][1]
        last = isinstance(part, slice) and isinstance(part.start, int) and part.stop is None and part.start > 0
        return part.start + found[node] if last and node in found else None
    if isinstance(module := called(root, node), nn.PixelUnshuffle) and node in found:
        return found[node] // module.downscale_factor**2
    if node.target not in ("chunk", "split", torch.chunk, torch.split):
        return None
    sizes = node.args[1] if len(node.args) > 1 else node.kwargs.get("chunks", node.kwargs.get("split_size_or_sections"))
    if isinstance(sizes, (list, tuple)):
        return sum(sizes) if all(isinstance(size, int) for size in sizes) else None
    widths = [found.get(user) for user in node.users if user.target is operator.getitem]
    if node.target in ("chunk", torch.chunk) and isinstance(sizes, int) and widths and len(set(widths)) == 1:
        return sizes * widths[0] if widths[0] else None
    return None
