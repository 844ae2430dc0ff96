"""Replaces sums of large images by sums of small ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch

from .steps import Plain, Step
from .walk import needed


def with_small_sums(plain: Plain) -> Plain:
    r"""The same function, in which images that are enlarged only to be added are added before enlarging.

    $$\mathrm{shuffle}_s(z) + x^{\uparrow} = \mathrm{shuffle}_s(z + \mathrm{repeat}_{s^2}(x))$$

    if $x^{\uparrow}$ is x enlarged by nearest neighbor, or another pixel shuffle. The same values are added, with
    fewer passes over the large image.

    Args:
        plain: the result of `plain_steps`.
    """
    uses = Counter(name for step in plain.steps for name in step.inputs)
    known: dict[str, Step] = {}
    for step in plain.steps:
        both = [known[name] for name in step.inputs if name in known and step.kind == "add"]
        factors = [_factor(one, uses) for one in both]
        if len(both) == 2 and factors[0] == factors[1] > 1 and both[0].shape == both[1].shape:
            small = replace(_small(step, factors[0]), inputs=tuple(_before(known, one, factors[0]) for one in both))
            known[small.name] = small
            step = replace(step, kind="shuffle", inputs=(small.name,), settings={"factor": factors[0]})
        known[step.name] = step
    return replace(plain, steps=tuple(needed(list(known.values()), plain.output)))


def _factor(step: Step, uses: Counter[str]) -> int:
    """The factor by which a step enlarges its image pixel by pixel, if only the sum reads it; else 0."""
    if step.kind == "shuffle":
        return step.settings["factor"] if uses[step.name] == 1 else 0
    vertical, horizontal = step.settings["factor"] if step.kind == "resize" else (0.0, 0.0)
    nearest = vertical == horizontal and float(vertical).is_integer() and step.settings.get("mode") == "nearest"
    return int(vertical) if nearest else 0


def _before(known: dict[str, Step], step: Step, factor: int) -> str:
    """The name of the value that is shuffled into the result of a step."""
    if step.kind == "shuffle":
        return step.inputs[0]
    index = torch.arange(step.shape[1]).repeat_interleave(factor**2)
    repeated = replace(_small(step, factor), kind="gather", settings={"index": index})
    return known.setdefault(repeated.name, repeated).name


def _small(step: Step, factor: int) -> Step:
    """The same step before the shuffle."""
    batch, colors, height, width = step.shape
    shape = (batch, colors * factor**2, height // factor, width // factor)
    return replace(step, name=f"{step.name}_small", shape=shape)
