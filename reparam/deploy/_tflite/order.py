"""Puts channels into the order in which TFLite shuffles them, inside the neighboring convolutions if possible."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .._plain import Plain, Step

_BY_CHANNEL = ("prelu", "clamp", "function", "affine", "power", "pad", "crop", "resize", "average", "largest", "mean")
"""Steps that treat all channels equally, or have constants per channel."""
_OF_TWO = ("add", "multiply", "divide", "maximum", "minimum")


def in_order(plain: Plain) -> Plain:
    r"""The same function, with shuffles whose channels have the order (row, column, c) instead of torch's.

    torch's order is (c, row, column). A gather reorders the channels before a shuffle, and after an unshuffle. It moves
    through sums and activations into the weights of a neighboring convolution, if there is one.

    Args:
        plain: the network.

    Returns:
        The network, whose steps include `depth_to_space` and `space_to_depth`.
    """
    net = replace(plain, steps=tuple(one for step in plain.steps for one in _reordered(step)))
    while (changed := _changed(net)) is not None:
        net = changed
    return net


def order_of(channels: int, factor: int) -> Tensor:
    """The channel in torch's order of each channel in the order (row, column, c)."""
    return torch.arange(channels).reshape(-1, factor**2).t().flatten()


def _reordered(step: Step) -> list[Step]:
    if step.kind not in ("shuffle", "unshuffle"):
        return [step]
    factor = step.settings["factor"]
    batch, channels, height, width = step.shape
    between = f"{step.name}_order"
    if step.kind == "unshuffle":
        index = order_of(channels, factor).argsort()
        first = replace(step, kind="space_to_depth", name=between)
        return [first, replace(step, kind="gather", inputs=(between,), settings={"index": index})]
    index = order_of(channels * factor**2, factor)
    shape = (batch, channels * factor**2, height // factor, width // factor)
    first = replace(step, kind="gather", name=between, settings={"index": index}, shape=shape)
    return [first, replace(step, kind="depth_to_space", inputs=(between,))]


def _changed(net: Plain) -> Plain | None:
    """The network after one gather has moved; None if all stay where they are."""
    for gather in reversed([step for step in net.steps if step.kind == "gather"]):
        if _is_idle(net, gather):
            return _without(net, gather)
        if _takes_order(net, gather.inputs[0]):
            source = next(step for step in net.steps if step.name == gather.inputs[0])
            return _with(net, {source.name: [], gather.name: _before(net, source, gather)})
        users = [step for step in net.steps if gather.name in step.inputs]
        if gather.name != net.output and _all_of_it(net, gather) and all(map(_is_dense, users)):
            return _with(net, {gather.name: [], **{step.name: [_taking(net, step, gather)] for step in users}})
    return None


def _with(net: Plain, by: dict[str, list[Step]]) -> Plain:
    return replace(net, steps=tuple(one for step in net.steps for one in by.get(step.name, [step])))


def _without(net: Plain, gather: Step) -> Plain:
    names = {gather.name: gather.inputs[0]}
    steps = [replace(one, inputs=tuple(names.get(name, name) for name in one.inputs)) for one in net.steps]
    steps = [one for one in steps if one.name != gather.name]
    return replace(net, steps=tuple(steps), output=names.get(net.output, net.output))


def _shape(net: Plain, name: str) -> tuple[int, ...]:
    return next((step.shape for step in net.steps if step.name == name), net.input_shape)


def _is_idle(net: Plain, gather: Step) -> bool:
    return torch.equal(gather.settings["index"], torch.arange(_shape(net, gather.inputs[0])[1]))


def _is_dense(step: Step) -> bool:
    return step.kind == "conv" and step.settings["groups"] == 1


def _all_of_it(net: Plain, gather: Step) -> bool:
    """Whether the gather drops no channel; a convolution would compute a dropped one for nothing."""
    return len(gather.settings["index"].unique()) == _shape(net, gather.inputs[0])[1]


def _takes_order(net: Plain, name: str) -> bool:
    """Whether the channels of a value can be reordered at no cost."""
    step = next((step for step in net.steps if step.name == name), None)
    if step is None or name == net.output or sum(one.inputs.count(name) for one in net.steps) != 1:
        return False
    if step.kind in (*_BY_CHANNEL, *_OF_TWO):
        return any(_takes_order(net, one) for one in step.inputs)
    return step.kind == "gather" or _is_dense(step)


def _before(net: Plain, step: Step, gather: Step) -> list[Step]:
    """A step whose output has the order that the gather after it would make, under the gather's name."""
    index = gather.settings["index"]
    step = replace(step, name=gather.name, shape=gather.shape)
    if step.kind == "gather":
        return [replace(step, settings={"index": step.settings["index"][index]})]
    ordered = {key: value[index] for key, value in step.settings.items() if isinstance(value, Tensor)}
    step = replace(step, settings={**step.settings, **ordered})
    if step.kind == "conv":
        return [step]
    gathers = {}
    for place, one in enumerate(step.inputs):
        batch, channels, *pixels = _shape(net, one)
        if channels > 1 or place == 0:  # else it is one for all
            shape = (batch, len(index), *pixels)
            gathers[one] = replace(gather, name=f"{gather.name}_{place}", inputs=(one,), shape=shape)
    names = tuple(gathers[one].name if one in gathers else one for one in step.inputs)
    return [*gathers.values(), replace(step, inputs=names)]


def _taking(net: Plain, conv: Step, gather: Step) -> Step:
    """A convolution of a gathered value, rewritten to read the value before the gather."""
    weight, index = conv.settings["weight"], gather.settings["index"]
    whole = weight.new_zeros(weight.shape[0], _shape(net, gather.inputs[0])[1], *weight.shape[2:])
    whole = whole.index_add(1, index, weight)
    return replace(conv, inputs=gather.inputs, settings={**conv.settings, "weight": whole})
