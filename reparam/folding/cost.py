"""What a training step costs, estimated: enough to choose between branches and one folded convolution.

The unit is a multiply-add of a convolution per output pixel. A convolution costs its multiply-adds three times
(forward, and backward to the input and to the weight). Passes over memory count as what they were measured to take on a
CPU: a batch norm as much as 150 multiply-adds per value, an addition as much as 30, and the many small operations of
patch moments, whatever the size of the image, as much as 10^8 together.
"""

from __future__ import annotations

from math import prod

from ..algebra._spec import ConvSpec

BATCH_NORM = 150.0
ADDITION = 30.0
MOMENTS = 1e8


def convolution(outputs: int, inputs_per_group: int, taps: int) -> float:
    """Forward and backward of a convolution, per output pixel."""
    return 3.0 * outputs * inputs_per_group * taps


def folded(spec: ConvSpec, pixels: int) -> float:
    """One convolution and the patch moments of its input, per output pixel of `pixels` in the batch."""
    inputs, taps = spec.in_channels // spec.groups, prod(spec.kernel_size)
    distances = prod([2 * k - 1 for k in spec.kernel_size])  # a list: torch.compile cannot trace a generator here
    correlation = (distances + 1) / 2 * inputs**2  # over half of the distances, forward
    of_correlation = distances * inputs**2  # over all of them, backward
    return convolution(spec.out_channels, inputs, taps) + correlation + of_correlation + MOMENTS / max(pixels, 1)
