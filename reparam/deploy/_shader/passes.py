"""Decides which steps of a plain network share a pass over the image, and what one pass stores for another."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isqrt

from .._plain import Plain, Step


@dataclass(frozen=True)
class Stored:
    """A value in the texture that a pass writes, next to the texels of the pass's other values."""

    writer: int
    """The number of the pass; 0 is the player, which provides the image."""
    first: int
    """The index of its first texel among the texels of a pixel of that pass."""
    channels: int
    scale: int
    """How much larger than the image it is, in each direction."""
    parts: int
    """How many of its pixels, in each direction, a pixel of the pass holds: more than one after a shuffle."""

    @property
    def groups(self) -> int:
        """Texels for the channels of one pixel, four in each."""
        return ceil(self.channels / 4)


@dataclass(frozen=True)
class Pass:
    """One sweep of threads, each of which computes everything that is needed at one pixel."""

    number: int
    scale: int
    """Threads per pixel of the image, in each direction."""
    steps: tuple[Step, ...]
    reads: dict[str, Stored]
    """Values of earlier passes, and the image, by name."""
    writes: dict[str, Stored]
    """Values for later passes; for the last pass, the output of the network."""

    @property
    def texels(self) -> int:
        """How many texels a thread writes."""
        return sum(value.groups * value.parts**2 for value in self.writes.values())

    @property
    def grid(self) -> tuple[int, int]:
        """Columns and rows in which the texels of one thread lie in the texture: nearly a square."""
        columns = isqrt(self.texels - 1) + 1
        return columns, ceil(self.texels / columns)

    @property
    def textures(self) -> tuple[int, ...]:
        """The numbers of the passes that it reads from."""
        return tuple(sorted({value.writer for value in self.reads.values()} - {0}))


def is_spatial(step: Step) -> bool:
    """Whether a step reads neighbors, which must then be in a texture; other steps need only their own pixel."""
    if step.kind == "conv":
        return tuple(step.settings["weight"].shape[2:]) != (1, 1)
    return step.kind == "resize" and step.settings["mode"] != "nearest"


def growth(step: Step) -> int:
    """How much larger, in each direction, a step makes an image."""
    if step.kind == "resize":
        return int(step.settings["factor"][0])
    return int(step.settings["factor"]) if step.kind == "shuffle" else 1


def passes_of(plain: Plain) -> tuple[Pass, ...]:
    r"""The fewest passes: a step that reads neighbors is in the pass after the one that computes its input.

    Every other step is in the pass of the last of its inputs, so activations, sums, selections of channels and 1x1
    convolutions cost no pass. Values that depend only on single pixels of the image are computed where they are needed.
    A pass stores in one texture what later passes read from it, so a shuffle only indexes texels in another way.

    Args:
        plain: a network whose steps passed `check_steps`.

    Returns:
        The passes in order; the last one writes the output.
    """
    plan = _Plan(plain)
    wanted: dict[int, list[str]] = {plan.level[plain.output]: [plain.output]}
    found: list[tuple[int, list[Step], list[str]]] = []
    for level in range(plan.level[plain.output], -1, -1):
        if level in wanted:
            steps, reads = plan.needed(level, wanted[level])
            found.append((level, steps, reads))
            for name in reads:
                earlier = wanted.setdefault(plan.level[name], []) if name != plain.input else [name]
                if name not in earlier:
                    earlier.append(name)
    stored = {plain.input: Stored(0, 0, plain.input_shape[1], 1, 1)}
    passes = []
    for number, (level, steps, reads) in enumerate(reversed(found), 1):
        writes = plan.stored(number, level, wanted[level])
        stored |= writes
        passes.append(Pass(number, plan.scales[level], tuple(steps), {name: stored[name] for name in reads}, writes))
    return tuple(passes)


class _Plan:
    """The level at which each value is computed, and how much larger than the image it is.

    Level 0 is the image and its single pixels. A level has the size of the images whose neighbors it reads.
    """

    def __init__(self, plain: Plain) -> None:
        self.plain = plain
        self.scale = {plain.input: 1}
        self.channels = {plain.input: plain.input_shape[1]}
        self.level = {plain.input: 0}
        self.scales = {0: 1}
        """Of the levels."""
        for step in plain.steps:
            self._place(step)

    def _place(self, step: Step) -> None:
        scale = max(self.scale[name] for name in step.inputs)
        level = max(self.level[name] for name in step.inputs)
        if is_spatial(step):
            level += 1
            while self.scales.setdefault(level, scale) != scale:
                level += 1
        self.scale[step.name] = scale * growth(step)
        self.channels[step.name] = step.shape[1]
        self.level[step.name] = level

    def needed(self, level: int, wanted: list[str]) -> tuple[list[Step], list[str]]:
        """The steps that a pass needs for its outputs, and the names of the values that it reads."""
        names, steps, reads = set(wanted), [], set()
        for step in reversed(self.plain.steps):
            if step.name not in names:
                continue
            if not self._here(step, level):
                reads.add(step.name)
                continue
            steps.append(step)
            (reads if is_spatial(step) else names).update(step.inputs)
        reads |= names & {self.plain.input}
        return steps[::-1], [name for name in self.level if name in reads]

    def _here(self, step: Step, level: int) -> bool:
        """Whether this level computes it. A value of single image pixels is cheaper to compute than to store."""
        return self.level[step.name] == level or (self.level[step.name] == 0 and self.scales[level] == 1)

    def stored(self, number: int, level: int, wanted: list[str]) -> dict[str, Stored]:
        """Where a pass stores its outputs."""
        first, kept = 0, {}
        for name in wanted:
            parts = self.scale[name] // self.scales[level]
            value = Stored(number, first, self.channels[name], self.scale[name], parts)
            kept[name], first = value, first + value.groups * value.parts**2
        return kept
