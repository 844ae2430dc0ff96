"""Find out from its source which outputs an untraceable forward passes from one of its modules to the next.

A name stands for the modules whose outputs it may hold at that line. Both branches of a condition are followed, and
loops until nothing changes. Any use of a value except as the only argument of a module counts as a read by others.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from types import FunctionType

from torch import nn

from .known import Known, assigned_in
from .trees import sources_of
from .uses import Used

Values = frozenset[ast.Call | None]
"""The calls of modules whose output a value may be; None for any other value."""
_OTHER: Values = frozenset([None])
_NOT_FOLLOWED = (ast.Try, ast.Match, ast.Yield, ast.YieldFrom, ast.Await, ast.Global, ast.Nonlocal, ast.Delete)


def handed_on(
    module: nn.Module, used: Used, passes: Callable[[nn.Module], bool]
) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Pairs of modules in a forward, of which the second gets every output of the first and nothing else.

    Args:
        module: the module with this forward.
        used: the modules that forwards use, this one included.
        passes: whether a module returns its input unchanged.
    """
    function = inspect.unwrap(type(module).forward)
    nodes = sources_of(function.__code__) if isinstance(function, FunctionType) else []
    if len(nodes) != 1 or any(isinstance(part, _NOT_FOLLOWED) for part in ast.walk(nodes[0])):
        return
    flow = _Flow(module, nodes[0], used.stored, passes)
    flow.run()
    for call, readers in flow.readers.items():
        reader = next(iter(readers), None)
        if len(readers) != 1 or reader is None or flow.given[reader] != {call}:
            continue
        if all(used.sites.get(id(flow.called[one])) == {one} for one in (call, reader)):
            yield flow.called[call], flow.called[reader]


class _Flow:
    def __init__(
        self, module: nn.Module, node: ast.FunctionDef, stored: set[str], passes: Callable[[nn.Module], bool]
    ) -> None:
        self.node, self.passes = node, passes
        me = node.args.args[0].arg if node.args.args else ""
        self.known = Known({}, None if me in assigned_in(node).names else (me, module), stored)
        inner = [
            part for part in ast.walk(node) if isinstance(part, (ast.FunctionDef, ast.Lambda)) and part is not node
        ]
        self.kept = {part.id for one in inner for part in ast.walk(one) if isinstance(part, ast.Name)}
        self.called: dict[ast.Call, nn.Module] = {}
        self.readers: dict[ast.Call, set[ast.Call | None]] = {}
        self.given: dict[ast.Call, set[ast.Call | None]] = {}
        self.names: dict[str, Values] = {}
        self.jumps: list[dict[str, Values]] = []

    def run(self) -> None:
        """Follow the whole function."""
        self._lines(self.node.body)

    def _read(self, values: Values, by: ast.Call | None = None) -> None:
        for value in values:
            if value is not None:
                self.readers[value].add(by)

    def _lines(self, lines: list[ast.stmt]) -> None:
        for line in lines:
            if isinstance(line, ast.If):
                self._if(line)
            elif isinstance(line, (ast.For, ast.While)):
                self._loop(line)
            elif isinstance(line, ast.Assign):
                self._assign(line.targets, self._value(line.value))
            elif isinstance(line, ast.AnnAssign) and line.value is not None:
                self._assign([line.target], self._value(line.value))
            elif isinstance(line, ast.With):
                for item in line.items:
                    self._assign([item.optional_vars] if item.optional_vars else [], self._value(item.context_expr))
                self._lines(line.body)
            elif isinstance(line, (ast.Break, ast.Continue)):
                self.jumps.append(dict(self.names))
            else:
                self._other(line)

    def _if(self, line: ast.If) -> None:
        self._read(self._value(line.test))
        holds, before = self.known.truth(line.test), dict(self.names)
        ways = []
        for lines in ([line.body] if holds is not False else []) + ([line.orelse] if holds is not True else []):
            self.names = dict(before)
            self._lines(lines)
            ways.append(self.names)
        self.names = _joined(ways)

    def _loop(self, line: ast.For | ast.While) -> None:
        outer, self.jumps, before = self.jumps, [], None
        while before != self.names:
            before = dict(self.names)
            if isinstance(line, ast.For):
                self._assign([line.target], self._value(line.iter))
            else:
                self._read(self._value(line.test))
            self._lines(line.body)
            self.names = _joined([before, self.names, *self.jumps])
        self._lines(line.orelse)
        self.jumps = outer

    def _assign(self, targets: list[ast.expr], values: Values) -> None:
        alone = len(targets) == 1 and isinstance(targets[0], ast.Name)
        if not alone:  # unpacked, or stored somewhere
            self._read(values)
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    self.names[part.id] = values if alone else _OTHER
                    if part.id in self.kept:
                        self._read(values)
            if not isinstance(target, ast.Name):
                self._other(target)

    def _other(self, node: ast.AST) -> None:
        """Count all values in any other piece of source as read by others."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._read(self._value(child))
            else:
                self._other(child)

    def _value(self, node: ast.expr) -> Values:
        if isinstance(node, ast.Name):
            return self.names.get(node.id, _OTHER)
        if isinstance(node, ast.NamedExpr):
            values = self._value(node.value)
            self._assign([node.target], values)
            return values
        if isinstance(node, ast.IfExp):
            self._read(self._value(node.test))
            holds = self.known.truth(node.test)
            ways = ([node.body] if holds is not False else []) + ([node.orelse] if holds is not True else [])
            return frozenset().union(*map(self._value, ways))
        if isinstance(node, ast.Call) and (module := self._module(node.func)) is not None:
            return self._call(node, module)
        self._other(node)
        return _OTHER

    def _module(self, node: ast.expr) -> nn.Module | None:
        """The module that `self.name` denotes; None for anything else."""
        if self.known.me is None or not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            return None
        found = self.known.value(node)
        return found if isinstance(found, nn.Module) else None

    def _call(self, node: ast.Call, module: nn.Module) -> Values:
        given = [self._value(arg) for arg in [*node.args, *(keyword.value for keyword in node.keywords)]]
        alone = len(given) == len(node.args) == 1 and not isinstance(node.args[0], ast.Starred)
        if alone and self.passes(module):
            return given[0]
        self.called[node] = module
        self.readers.setdefault(node, set())
        for values in given:
            self._read(values, node if alone else None)
            self.given.setdefault(node, set()).update(values if alone else _OTHER)
        return frozenset([node])


def _joined(ways: list[dict[str, Values]]) -> dict[str, Values]:
    """What names may hold after any of these paths; a name that one path does not set is unknown."""
    return {name: frozenset().union(*(way.get(name, _OTHER) for way in ways)) for way in ways for name in way}
