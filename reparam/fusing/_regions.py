"""Find regions of a graph that are affine in one value, and decide which of them become one convolution.

A graph is a list of steps, from torch or from a file. This code knows only one thing of a step: the linear map of
patches that it is of its inputs. A region with more than one layer becomes one convolution if that costs no more
multiply-adds than the layers it replaces; otherwise its parts do, where that pays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..algebra._affine import balanced, the_input
from ..algebra._borders import BorderError, borders_ignored
from ..algebra._linear import LinearOp
from ..errors import NotLinearError, ReparamError

Key = Any
"""The identity of a node: a torch.fx node, or a name."""
Apply = Callable[..., Any]


@dataclass(frozen=True)
class Step:
    """A node of a graph.

    `apply` computes the value of the node from those of its inputs: a `LinearOp`, or a container that another step
    takes apart. It is called with values on the meta device, which have geometry only, and again with real values.
    """

    key: Key
    inputs: tuple[Key, ...]
    apply: Apply | None = None
    """None if the step is not linear."""
    cost: Fraction | None = None
    """Multiply-adds per pixel of its input, if `apply` does not tell."""
    computes: bool = False
    """Whether it computes its weight in every run, so that replacing it alone pays."""


@dataclass(frozen=True)
class Piece:
    """A region that becomes one convolution: everything between a source and an output."""

    source: Key
    output: Key
    steps: tuple[Step, ...]
    """The steps between the two, with that of the output last."""
    gone: frozenset[Key]
    """The steps among them whose values nothing else reads."""
    before: Fraction
    after: Fraction
    """Multiply-adds per pixel of the source, before and after fusing."""
    width: int = 1
    """Channels of the source, if known."""
    even: bool = True
    """Whether the padding must be symmetric."""

    def value(self, like: Tensor) -> LinearOp:
        """The convolution, in the dtype and on the device of `like`."""
        known: dict[Key, Any] = {self.source: the_input(like, self.width)}
        for step in self.steps:
            known[step.key] = applied(step, known)
        value = known[self.output]
        return balanced(value) if self.even else value


def applied(step: Step, known: Mapping[Key, Any]) -> Any:
    """Compute the value of a step.

    Raises:
        NotLinearError: if the step is not linear.
    """
    if step.apply is None:
        raise NotLinearError(f"{step.key} is not linear")
    try:
        return step.apply(*(known[key] for key in step.inputs))
    except ReparamError:
        raise
    except Exception as error:  # an unknown operation on a LinearOp may raise anything
        raise NotLinearError(f"{step.key} cannot be read: {error}") from error


class Regions(NamedTuple):
    """The regions of a graph, and why others stay."""

    pieces: list[Piece]
    """The regions that become one convolution each, in the order of the graph."""
    apart: dict[Key, str]
    """Why a region that could be one layer stays several, by its output."""
    refused: dict[Key, str]
    """Why values of one source that meet in a node are not one convolution, by the node."""
    source: dict[Key, Key]
    """The value that each value is affine in."""


def find_pieces(
    steps: Sequence[Step], outputs: Iterable[Key], widths: Mapping[Key, int] | None = None, even: bool = True
) -> list[Piece]:
    """The pieces of `find_regions`."""
    return find_regions(steps, outputs, widths, even).pieces


def find_regions(
    steps: Sequence[Step], outputs: Iterable[Key], widths: Mapping[Key, int] | None = None, even: bool = True
) -> Regions:
    """Find the regions of a graph that become one convolution each, and similar ones that do not.

    Args:
        steps: the steps, in the order in which they run; a key without a step is an input of the graph.
        outputs: the values that must exist afterwards.
        widths: channels of values, where known; needed only if channels are selected from a value.
        even: whether the padding of convolutions must be symmetric, as in torch.
    """
    finder = _Finder(steps, outputs, widths or {}, even)
    return Regions(list(finder.pieces()), finder.apart, finder.refused, finder.source)


class _Finder:
    def __init__(self, steps: Sequence[Step], outputs: Iterable[Key], widths: Mapping[Key, int], even: bool) -> None:
        self.widths, self.even = widths, even
        self.apart: dict[Key, str] = {}
        self.refused: dict[Key, str] = {}
        self.steps = {step.key: step for step in steps}
        self.place = {step.key: index for index, step in enumerate(steps)}
        self.readers: dict[Key, list[Key]] = {}
        for step in steps:
            for key in step.inputs:
                self.readers.setdefault(key, []).append(step.key)
        self.outputs = set(outputs)
        self.needed: set[Key] = set(self.outputs)
        self._from: dict[Key, dict[Key, Any]] = {}
        self.borders: dict[Key, dict[Key, str]] = {}
        """Steps that are affine in a source but for their borders, and why these differ."""
        self._best: dict[tuple[Key, Key], tuple[Fraction, tuple[Piece, ...]]] = {}
        self.source = self._sources()

    def pieces(self) -> Iterator[Piece]:
        """The pieces, from the first output of a region to the last."""
        told: set[tuple[Key, Key]] = set()
        for key in self.steps:
            source = self.source.get(key, key)
            if key in self.needed and source != key:
                for piece in self.best(source, key)[1]:
                    self.needed.add(piece.source)
                    if (piece.source, piece.output) not in told:
                        told.add((piece.source, piece.output))
                        yield piece

    def _sources(self) -> dict[Key, Key]:
        """The value that each value is affine in: the earliest one, or the value itself."""
        source: dict[Key, Key] = {}
        for step in self.steps.values():
            of = sorted({source.get(key, key) for key in step.inputs}, key=lambda key: self.place.get(key, -1))
            source[step.key] = step.key
            common = next((one for one in of if step.key in self.relative(one)), None) if step.apply else None
            if common is not None:
                source[step.key] = common
                continue
            if step.apply and len(of) == 1 and len(set(step.inputs)) > 1:
                self._refuse(step, of[0])
            if step.apply and len(of) > 1 and of[0] in self.borders:
                self._refuse_borders(step, of[0])
            if (one := self._earliest(step)) is not None:
                source[step.key] = one
            self.needed |= {one} if one is not None else {key for key in step.inputs if source.get(key, key) != key}
        return source

    def _refuse(self, step: Step, source: Key) -> None:
        """Record why values of one source do not become one, if several layers make them."""
        known = self.relative(source)
        made = [key for key in step.inputs if isinstance(value := known.get(key), LinearOp) and not value.untouched]
        if len(made) > 1:
            try:
                applied(step, known)
            except NotLinearError as error:
                if type(error) is NotLinearError:  # not a product of values, which is not meant to be a sum
                    self.refused[step.key] = str(error)

    def _refuse_borders(self, step: Step, source: Key) -> None:
        """Record why values of one source do not become one, if only their borders differ and it would pay."""
        before = self.between(source, step.key)
        why = next((why for one in before if (why := self.borders[source].get(one.key))), None)
        if why is None:
            return
        inside = {one.key for one in before}
        read = {key for key in inside if key in self.outputs or not inside.issuperset(self.readers.get(key, ()))}
        with borders_ignored():
            nearly = _Finder(before, read | {step.key}, self.widths, self.even).merged(source, step.key)
        if nearly is not None:
            self.refused[step.key] = f"{why}; pad before the first of them, as ExpandSqueezeBranch does"

    def _earliest(self, step: Step) -> Key | None:
        """The earliest value before a step that the step is affine in."""
        found: Key | None = None
        above = step
        while len(into := set(above.inputs)) == 1:
            (one,) = into
            if step.key not in self.relative(one):
                break
            found = one
            if one not in self.steps:
                break
            above = self.steps[one]
        return found

    def relative(self, source: Key) -> dict[Key, Any]:
        """The values that are affine in `source`, on the meta device."""
        if source not in self._from:
            like = torch.empty(0, device="meta")
            known: dict[Key, Any] = {source: the_input(like, self.widths.get(source, 1))}
            waiting = set(self.readers.get(source, ()))
            while waiting:
                step = self.steps[key := min(waiting, key=self.place.__getitem__)]
                waiting.discard(key)
                if step.apply is not None and all(one in known for one in step.inputs):
                    try:
                        known[key] = applied(step, known)
                    except NotLinearError as error:
                        if isinstance(error, BorderError):
                            self.borders.setdefault(source, {})[key] = str(error)
                        continue
                    waiting.update(self.readers.get(key, ()))
            self._from[source] = known
        return self._from[source]

    def between(self, source: Key, output: Key) -> list[Step]:
        """The steps from one value to another, in order."""
        found: set[Key] = set()
        waiting = [output]
        while waiting:
            key = waiting.pop()
            if key != source and key not in found and key in self.steps:
                found.add(key)
                waiting.extend(self.steps[key].inputs)
        return [self.steps[key] for key in sorted(found, key=self.place.__getitem__)]

    def replaced(self, source: Key, output: Key) -> set[Key]:
        """The steps whose values nobody would read if the output were computed directly from the source."""
        gone: set[Key] = {output}
        for step in reversed(self.between(source, output)):
            readers = self.readers.get(step.key, ())
            if step.key not in self.needed and readers and all(reader in gone for reader in readers):
                gone.add(step.key)
        return gone

    def own_cost(self, source: Key, step: Step) -> Fraction:
        """Multiply-adds of one step per pixel of the source."""
        known = self.relative(source)
        inputs = [known[key] for key in step.inputs if isinstance(known.get(key), LinearOp)]
        density = _density(inputs[0]) if inputs else Fraction(1)
        if step.cost is not None:
            return step.cost * density
        if len(set(step.inputs)) == 1:
            alone = self.relative(step.inputs[0]).get(step.key)
            return alone.multiply_adds * density if isinstance(alone, LinearOp) else Fraction(0)
        value = known[step.key]
        return value.outputs * _density(value) if isinstance(value, LinearOp) else Fraction(0)

    def merged(self, source: Key, output: Key) -> Piece | None:
        """Everything between two values as one convolution, if that pays."""
        source, output = self._without_nothing(source, output)
        value = self.relative(source).get(output)
        if not isinstance(value, LinearOp) or not value.ndim:
            return None
        value = balanced(value) if self.even else value
        if value.reads or value.turned or (value.flat and value.ndim > 1) or (not value.flat and self._crops(value)):
            return None
        gone = self.replaced(source, output)
        steps = self.between(source, output)
        costs = [cost for step in steps if step.key in gone and (cost := self.own_cost(source, step))]
        before, after = sum(costs, Fraction(0)), value.multiply_adds
        if len(costs) < 2 and not any(step.computes for step in steps):
            return None
        if after > before:
            if any(len(set(step.inputs)) > 1 for step in steps):
                words = f"one convolution would take {_number(after)} multiply-adds per pixel of its input"
                self.apart[output] = f"{words}, its parts take {_number(before)}"
            return None
        width = self.widths.get(source, 1)
        return Piece(source, output, tuple(steps), frozenset(gone), before, after, width, self.even)

    def _crops(self, value: LinearOp) -> bool:
        """Whether no convolution can pad this way."""
        return any(min(low, high) < 0 or (self.even and low != high) for low, high in value.pads)

    def _without_nothing(self, source: Key, output: Key) -> tuple[Key, Key]:
        """The same ends without steps that do nothing, such as a dropout; these stay."""
        while output != source and self._does_nothing(step := self.steps[output]):
            output = step.inputs[0]
        while len(after := {step.key for step in self.between(source, output) if source in step.inputs}) == 1:
            (first,) = after
            if first == output or not self._does_nothing(self.steps[first]):
                break
            source = first
        return source, output

    def _does_nothing(self, step: Step) -> bool:
        value = self.relative(step.inputs[0]).get(step.key) if len(set(step.inputs)) == 1 else None
        return isinstance(value, LinearOp) and value.untouched and not value.is_padded

    def best(self, source: Key, output: Key) -> tuple[Fraction, tuple[Piece, ...]]:
        """The least cost of computing a value from another one, and the pieces that do it."""
        if source == output:
            return Fraction(0), ()
        if (source, output) not in self._best:
            self._best[source, output] = self._worked_out(source, output)
        return self._best[source, output]

    def _worked_out(self, source: Key, output: Key) -> tuple[Fraction, tuple[Piece, ...]]:
        whole = self.merged(source, output)
        if whole is not None:
            return whole.after, (whole,)
        waists = [
            step.key
            for step in self.between(source, output)
            if step.key != output and output in self.relative(step.key) and step.key in self.relative(source)
        ]
        ways = [_both(self._made(source, waist), self.best(waist, output)) for waist in waists]
        if ways:
            return min(ways, key=lambda way: (way[0], -sum(len(piece.steps) for piece in way[1])))
        step = self.steps[output]
        made = [self._made(source, key) for key in dict.fromkeys(step.inputs)]
        return self.own_cost(source, step) + sum(cost for cost, _ in made), tuple(
            dict.fromkeys(piece for _, pieces in made for piece in pieces)
        )

    def _made(self, source: Key, key: Key) -> tuple[Fraction, tuple[Piece, ...]]:
        """As `best`, for an intermediate value; it costs nothing if it is computed anyway."""
        return (Fraction(0), ()) if key in self.needed else self.best(source, key)


def _number(amount: Fraction) -> str:
    return f"{float(amount):,.0f}" if amount >= 100 else f"{float(amount):.3g}"


def _density(value: LinearOp) -> Fraction:
    """Pixels of a value per pixel of its source."""
    pixels = 1
    for step in value.stride:
        pixels *= step
    return Fraction(1, pixels)


def _both(
    first: tuple[Fraction, tuple[Piece, ...]], second: tuple[Fraction, tuple[Piece, ...]]
) -> tuple[Fraction, tuple[Piece, ...]]:
    return first[0] + second[0], first[1] + second[1]
