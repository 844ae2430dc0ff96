"""Estimate the cost of a training step, to choose between running the branches and one folded convolution.

A step is forward and backward. It launches operations, works on parameters (whatever the image size), and works on
every output pixel. The unit of work is one multiply-add of a dense convolution. A pass over memory counts as the
multiply-adds that take as long on a CPU, as measured; a launch counts as the multiply-adds that its device does in that
time. `tests/calibrate.py` sets the constants below: it measures every block both ways, prints the estimates next to the
times, and counts launches.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch

from ..algebra._spec import ConvSpec

BATCH_NORM = 150.0
ADDITION = 30.0
"""Cost of a batch norm and of an addition, per value of an image."""
LEAST_INPUTS = 10
"""A convolution with fewer inputs per group takes as long as one with this many."""
LAUNCHES = {"cpu": 2.5e5}
"""Multiply-adds that take as long as a launch, by device type."""
OF_ACCELERATORS = 1e8
"""The same for every other device type: 5 microseconds at 20 * 10^12 multiply-adds a second."""
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
"""Launches of each operation, forward and backward, as counted by `python tests/calibrate.py --launches`."""
WEIGHT = 25.0
"""Cost of an operation on a kernel (padding, scaling, adding), per value of the kernel."""
POINT_FIRST = 9.0
"""Cost of a multiply-add in composing a 1x1 with a k x k convolution, which runs many small matrix products."""
COVARIANCE = 3000.0
"""Cost of computing the covariance of patches, forward and backward, per entry."""
VARIANCE = 1.5
"""Cost of a multiply-add with the covariance, which is in float64."""


class Work(NamedTuple):
    """The work of a training step, by kind."""

    launches: float = 0.0
    """Operations launched on the device."""
    once: float = 0.0
    """Multiply-adds on parameters."""
    each: float = 0.0
    """Multiply-adds per output pixel."""
    shared: float = 0.0
    """Those of the launches that identical blocks make together."""

    def and_then(self, *others: Work) -> Work:
        """The sum of this and other work."""
        return Work(*map(sum, zip(self, *others)))

    def step(self, pixels: int, device: str, blocks: int = 1) -> float:
        """Estimate the duration of a step, in multiply-adds.

        Args:
            pixels: output pixels of the block, of all images.
            device: type of the device, such as "cpu".
            blocks: number of identical blocks, which share the launches in `shared`.
        """
        launches = self.launches - self.shared * (1 - 1 / blocks)
        return launches * LAUNCHES.get(device, OF_ACCELERATORS) + self.once + self.each * pixels


def convolution(outputs: int, inputs_per_group: int, taps: int) -> float:
    """Multiply-adds of a convolution per output pixel, forward and backward."""
    return 3.0 * outputs * max(inputs_per_group, LEAST_INPUTS) * taps


def plain(spec: ConvSpec) -> Work:
    """The work of one convolution."""
    each = convolution(spec.out_channels, spec.in_channels // spec.groups, prod(spec.kernel_size))
    return running()._replace(each=each)


def running(layers: int = 1) -> Work:
    """The work of running layers, without their work per pixel."""
    return Work(COUNTED["a layer that runs"] * layers)


def shape_of(spec: ConvSpec) -> tuple[int, ...]:
    """The shape of the convolution's weight."""
    return (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel_size)


def moments(spec: ConvSpec, channels: int, norms: int) -> Work:
    """The work of computing the patch moments of an input and using them in batch norms.

    Args:
        spec: the geometry of the block.
        channels: channels of all batch norms together.
        norms: number of batch norms.
    """
    distances = prod([2 * k - 1 for k in spec.kernel_size])
    correlation = (distances + 1) / 2 * spec.in_channels**2  # over half the distances, forward
    of_correlation = distances * spec.in_channels**2  # over all of them, backward
    entries = ((spec.in_channels + 1) * prod(spec.kernel_size)) ** 2
    once = COVARIANCE * entries + 3 * VARIANCE * channels * entries
    launches = COUNTED["patch moments"] + COUNTED["a scale and shift of moments"] * norms
    return Work(launches, once, correlation + of_correlation)


def on_kernel(what: str, weight: torch.Size | tuple[int, ...], times: int = 1) -> Work:
    """The work of an elementwise operation on a kernel.

    Args:
        what: a key of `COUNTED`.
        weight: shape of the kernel's weight.
        times: how often it runs.
    """
    return Work(COUNTED[what] * times, WEIGHT * times * prod(weight))


def composition(first: tuple[int, ...], second: tuple[int, ...], groups: int, shifts: bool) -> Work:
    """The work of composing two convolutions.

    Args:
        first: shape of the first weight.
        second: shape of the second weight.
        groups: groups of the second convolution.
        shifts: whether the first has a bias, or a batch norm after it.
    """
    launches = COUNTED["a composition"] + shifts * COUNTED["a bias that is composed"]
    if groups == second[0] == first[0]:  # depthwise: an elementwise product
        return Work(launches, WEIGHT * prod((*first, *second[2:])))
    multiply_adds = 3.0 * second[0] * second[1] * prod(first[1:]) * prod(second[2:])
    return Work(launches, multiply_adds * (1.0 if prod(second[2:]) == 1 else POINT_FIRST))
