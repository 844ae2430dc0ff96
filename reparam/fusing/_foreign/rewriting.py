"""Rewrite forwards so that they call the convolutions instead of the replaced layers."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node

from .._regions import Piece
from .forms import CONV_NAMES
from .reading import Forward

Keep = Callable[[Any], Any]


@dataclass(frozen=True)
class InPlace:
    """Consecutive layers in a forward that stays: the first is replaced, the others become identities."""


@dataclass(frozen=True)
class Rewriting:
    """A module whose new forward calls convolutions instead of its branches."""

    forward: Forward
    pieces: Mapping[str, Piece]

    def calls(self) -> list[str]:
        """The names of the modules that the new forward still calls."""
        nodes = self._graph().nodes
        return list(
            dict.fromkeys(
                str(node.target) for node in nodes if node.op == "call_module" and node.target not in self.pieces
            )
        )

    def _graph(self) -> Graph:
        graph = Graph()
        twins: dict[Node, Node] = {}
        graph.output(graph.graph_copy(self.forward.graph, twins))
        for name, piece in self.pieces.items():
            with graph.inserting_before(twins[piece.output]):
                conv = graph.call_module(name, (twins[piece.source],))
            twins[piece.output].replace_all_uses_with(conv)
            self._ask_of_another(twins, piece, conv)
        dead = {twins[step.key] for piece in self.pieces.values() for step in piece.steps}
        dead |= {twins[node] for node in self.forward.no_steps() if node in twins}
        for node in reversed(graph.nodes):
            if node in dead and not node.users:
                graph.erase_node(node)
        return graph

    def _ask_of_another(self, twins: Mapping[Node, Node], piece: Piece, conv: Node) -> None:
        """Redirect reads of the dtype or device of a removed value to the value that replaces it."""
        place = {node: index for index, node in enumerate(self.forward.graph.nodes)}
        node: Any
        for node in self.forward.no_steps():
            if node.target is getattr and node.args[0] in piece.gone:
                later = place[node] > place[piece.output]
                twins[node].replace_input_with(twins[node.args[0]], conv if later else twins[piece.source])

    def make(self, module: nn.Module, layers: Mapping[str, nn.Module], keep: Keep) -> nn.Module:
        """Build the new module: an `nn.Sequential` if its forward only calls modules in a row, else a `GraphModule`.

        Args:
            module: the user's module.
            layers: the convolutions, by name.
            keep: returns what to keep for a part: a copy, or the part itself.
        """
        graph = self._graph()
        parts = {name: keep(module.get_submodule(name)) for name in self.calls()} | dict(layers)
        row = _row(graph)
        made: nn.Module
        if row is not None and not any("." in name for name in row):
            made = nn.Sequential(OrderedDict((name, parts[name]) for name in row))
        else:
            numbers = {str(node.target): node for node in graph.nodes if node.op == "get_attr"}
            parts |= {name: keep(_attribute(module, self.forward.root, name)) for name in numbers}
            made = GraphModule(parts, graph, type(module).__name__)
        for name, value in vars(module).items():
            if name[0] != "_" and _is_plain(value) and not hasattr(made, name):
                setattr(made, name, copy.deepcopy(value))
        return made.train(module.training)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (int, float, str, bool, type(None)))


def _attribute(module: nn.Module, root: nn.Module, name: str) -> Any:
    path, _, last = name.rpartition(".")
    holder = module.get_submodule(path)
    return getattr(holder if hasattr(holder, last) else root.get_submodule(path), last)


def _row(graph: Graph) -> list[str] | None:
    """The names of the modules that the graph calls one after the other, if it does nothing else."""
    names, last = [], None
    for node in graph.nodes:
        if node.op == "placeholder" and last is None:
            last = node
        elif node.op == "call_module" and node.args == (last,) and not node.kwargs and node.target not in names:
            names.append(str(node.target))
            last = node
        elif node.op != "output" or node.args != (last,):
            return None
    return names


def name_pieces(forward: Forward, pieces: Sequence[Piece]) -> dict[str, Piece]:
    """Name the convolutions `conv`, `conv2`, ..., without names that the module uses otherwise."""
    known = next((name for part, name in CONV_NAMES.items() if part in forward.root._modules), None)
    gone = {str(key.target) for piece in pieces for key in piece.gone}
    stays = {str(node.target).partition(".")[0] for node in forward.graph.nodes if str(node.target) not in gone}
    names = _names(known or "conv", stays)
    return {next(names): piece for piece in pieces}


def _names(first: str, taken: set[str]) -> Iterator[str]:
    return (name for index in count(1) if (name := first if index == 1 else f"{first}{index}") not in taken)
