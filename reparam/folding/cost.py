"""What a training step costs, estimated: enough to choose between branches and one folded convolution.

A step is forward and backward. It launches operations, works on parameters, whatever the size of the image, and works
on every output pixel. The unit of work is a multiply-add of a dense convolution. Passes over memory count as what they
were measured to take on a CPU, and a launch as the multiply-adds that its device does meanwhile. By the tables of
`tests/calibrate.py` the constants below are set: it measures every block both ways, beside the estimate, and counts
the launches.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch

from ..algebra._spec import ConvSpec

BATCH_NORM = 150.0
ADDITION = 30.0
"""Per value of an image."""
LEAST_INPUTS = 10
"""Inputs per group that a convolution of fewer takes as long as."""
LAUNCHES = {"cpu": 2.5e5}
"""Multiply-adds for which a launch lasts, by the type of the device."""
OF_ACCELERATORS = 1e8
"""The same on every other type: 5 microseconds at 20 * 10^12 multiply-adds a second."""
COUNTED = {
    "a layer that runs": 3,
    "a kernel that is added": 2,
    "an identity that is added": 1,
    "a kernel among zeros": 2,
    "a kernel that is made": 5,
    "a composition": 5,
    "a bias that is composed": 5,
    "a scale": 8,
    "a scale and shift": 13,
    "kernels side by side": 4,
    "patch moments": 83,
    "a scale and shift of moments": 36,
}
"""Launches of each, forward and backward, as `python tests/calibrate.py --launches` counts them."""
WEIGHT = 25.0
"""Per value of a kernel and operation on it: padding, scaling, adding."""
POINT_FIRST = 9.0
"""What a multiply-add of composing a 1x1 with a k x k costs, in which many small products of matrices run."""
COVARIANCE = 3000.0
"""Per entry of the covariance of patches: to make it, and of its backward pass."""
VARIANCE = 1.5
"""What a multiply-add with the covariance costs, which is in float64."""


class Work(NamedTuple):
    """What a step does."""

    launches: float = 0.0
    """Operations that the device is told of."""
    once: float = 0.0
    """Multiply-adds on parameters."""
    each: float = 0.0
    """Multiply-adds per output pixel."""
    shared: float = 0.0
    """Of the launches, those that blocks which are alike make together."""

    def and_then(self, *others: Work) -> Work:
        """All of it together."""
        return Work(*map(sum, zip(self, *others)))

    def step(self, pixels: int, device: str, blocks: int = 1) -> float:
        """Multiply-adds that a step of one of so many blocks lasts for, on its output pixels and a type of device."""
        launches = self.launches - self.shared * (1 - 1 / blocks)
        return launches * LAUNCHES.get(device, OF_ACCELERATORS) + self.once + self.each * pixels


def convolution(outputs: int, inputs_per_group: int, taps: int) -> float:
    """Forward and backward of a convolution, per output pixel."""
    return 3.0 * outputs * max(inputs_per_group, LEAST_INPUTS) * taps


def plain(spec: ConvSpec) -> Work:
    """One convolution."""
    each = convolution(spec.out_channels, spec.in_channels // spec.groups, prod(spec.kernel_size))
    return running()._replace(each=each)


def running(layers: int = 1) -> Work:
    """Layers that run, but for what they do on every pixel."""
    return Work(COUNTED["a layer that runs"] * layers)


def shape_of(spec: ConvSpec) -> tuple[int, ...]:
    """Of the weight of the convolution."""
    return (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel_size)


def moments(spec: ConvSpec, channels: int, norms: int) -> Work:
    """The patch moments of an input, and what so many batch norms of so many channels in all take of them."""
    distances = prod([2 * k - 1 for k in spec.kernel_size])
    correlation = (distances + 1) / 2 * spec.in_channels**2  # over half of the distances, forward
    of_correlation = distances * spec.in_channels**2  # over all of them, backward
    entries = ((spec.in_channels + 1) * prod(spec.kernel_size)) ** 2
    once = COVARIANCE * entries + 3 * VARIANCE * channels * entries
    launches = COUNTED["patch moments"] + COUNTED["a scale and shift of moments"] * norms
    return Work(launches, once, correlation + of_correlation)


def on_kernel(what: str, weight: torch.Size | tuple[int, ...], times: int = 1) -> Work:
    """What is counted, on a kernel whose weight is of this shape, value by value."""
    return Work(COUNTED[what] * times, WEIGHT * times * prod(weight))


def composition(first: tuple[int, ...], second: tuple[int, ...], groups: int, shifts: bool) -> Work:
    """Composing convolutions with weights of these shapes, the second of so many groups; whether the first shifts."""
    launches = COUNTED["a composition"] + shifts * COUNTED["a bias that is composed"]
    if groups == second[0] == first[0]:  # a filter per channel, value by value
        return Work(launches, WEIGHT * prod((*first, *second[2:])))
    multiply_adds = 3.0 * second[0] * second[1] * prod(first[1:]) * prod(second[2:])
    return Work(launches, multiply_adds * (1.0 if prod(second[2:]) == 1 else POINT_FIRST))
