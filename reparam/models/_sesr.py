"""SESR: 5x5 convolutions at both ends, 3x3 convolutions between them, and two long skip connections."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import CollapsibleLinearBlock
from ..blocks._at_once import compute_at_once
from ..modules._start import reset_layers
from ._sizes import check_sizes


class SESR(nn.Module):
    r"""The network of SESR: `CollapsibleLinearBlock` in place of every convolution. Luma only.

    $$z_0 = B_{5\times5}(x - \tfrac12), \quad z_i = \mathrm{PReLU}(B^{(i)}_{3\times3}(z_{i-1}) + z_{i-1}), \quad
      y = \mathrm{d2s}\big(B'_{5\times5}(z_m + z_0) + x\big)$$

    x is added to each of the s² channels. d2s (depth to space) turns four channels into 2x2 pixels, once at scale 2 and
    twice at scale 4. Fusing turns every B into a plain convolution that includes its short residual $+\,z_{i-1}$; the
    two long skips stay.

    Source: K. Bhardwaj et al., "Collapsible Linear Blocks for Super-Efficient Super Resolution", MLSys 2022, arXiv
    2103.09404. The graph is the authors' expanded one, used in training. We differ from their code in three points:

    - The biases are those of the expanded blocks (see `CollapsibleLinearBlock`).
    - The last block never has a short residual. Their collapsed form adds one where channels = scale², and then
      computes another function than their expanded form.
    - The output is not clipped to 0 to 1, so pixels out of range have a gradient.

    Args:
        scale: the factor by which height and width grow, 2 or 4.
        num_blocks: m, the number of 3x3 blocks (3, 5, 7 and 11 in the paper).
        channels: f, width of the body (16; 32 in SESR-XL).
        hidden_channels: p, width inside the blocks (256; 64 in SESR-M11 and SESR-XL).

    Shape:
        (N, 1, H, W) to (N, 1, scale * H, scale * W), luma of range 0 to 1. The network subtracts ½ itself.

    Raises:
        SpecError: if an argument is out of range.

    Example:
        >>> import torch
        >>> SESR(scale=4, num_blocks=1, channels=8, hidden_channels=16)(torch.rand(2, 1, 5, 7)).shape == (2, 1, 20, 28)
        True
    """

    def __init__(self, *, scale: int = 2, num_blocks: int = 5, channels: int = 16, hidden_channels: int = 256) -> None:
        super().__init__()
        check_sizes(
            scale=scale, scales=(2, 4), num_blocks=num_blocks, channels=channels, hidden_channels=hidden_channels
        )
        self.scale, self.num_blocks, self.channels, self.colors = scale, num_blocks, channels, 1
        self.options: dict[str, Any] = {"scale": scale, "num_blocks": num_blocks, "channels": channels}
        self.options["hidden_channels"] = hidden_channels
        block = partial(CollapsibleLinearBlock, hidden_channels=hidden_channels)
        self.conv_first = block(1, channels, 5, identity=False)
        layers = [layer for _ in range(num_blocks) for layer in (block(channels), nn.PReLU(channels))]
        self.body = nn.Sequential(*layers)
        self.conv_last = block(channels, scale**2, 5, identity=False)
        compute_at_once(self)

    def reset_parameters(self) -> None:
        """Initialize every layer again, as the constructor does: the same seed yields the same values."""
        reset_layers(self)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge x of shape (N, 1, H, W)."""
        first = self.conv_first(x - 0.5)
        y = self.conv_last(self.body(first) + first) + x
        for _ in range(self.scale // 2):
            y = _depth_to_space(y)
        return y


def _depth_to_space(y: Tensor) -> Tensor:
    """Map (N, 4C, H, W) to (N, C, 2H, 2W). TensorFlow counts positions before channels, a pixel shuffle after them."""
    return F.pixel_shuffle(y.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), 2)
