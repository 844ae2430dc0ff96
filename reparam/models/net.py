"""The one network of real-time super-resolution: convolutions and PReLUs at low resolution, then a pixel shuffle."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import RepSRBlock
from ..errors import SpecError

ConvFactory = Callable[[int, int], nn.Module]


class SRNet(nn.Module):
    r"""A VGG-style super-resolution network; subclasses choose the block in place of its 3x3 convolutions.

    $$y = \mathrm{shuffle}_s\big(\mathrm{conv}(f_M(\dots f_0(x))) + x^{\uparrow}\big), \qquad
      f_i(z) = \mathrm{PReLU}(\mathrm{conv}_i(z))$$

    $x^{\uparrow}$ repeats every colour s² times, so that after the shuffle it is x enlarged by nearest neighbour.
    Fused, the state dict has the keys `body.0.weight`, `body.0.bias`, `body.1.weight`, ... of SRVGGNetCompact,
    Real-ESRGAN's compact network, and loads wherever that does.

    Args:
        scale: the factor by which height and width grow, 1 to 4.
        num_blocks: M, convolutions between the first and the last one.
        channels: C, width of the body.
        colors: channels of the image: 3 (RGB) or 1 (luma).
        block: makes the layer from its numbers of input and output channels; it must keep the spatial size.

    Shape:
        (N, colors, H, W) to (N, colors, scale * H, scale * W), values of any range (usually 0 to 1), RGB order.

    Raises:
        SpecError: for an argument out of range.
    """

    def __init__(self, *, scale: int, num_blocks: int, channels: int, colors: int, block: ConvFactory) -> None:
        super().__init__()
        limits = {"scale": (1, 4), "num_blocks": (0, 1000), "channels": (1, 100000), "colors": (1, 4)}
        for name, value in (("scale", scale), ("num_blocks", num_blocks), ("channels", channels), ("colors", colors)):
            low, high = limits[name]
            if not isinstance(value, int) or not low <= value <= high:
                raise SpecError(f"{name} must be an integer from {low} to {high}, but got {name}={value!r}")
        self.scale, self.num_blocks, self.channels, self.colors = scale, num_blocks, channels, colors
        widths = [colors] + [channels] * (num_blocks + 1)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [block(narrow, wide), nn.PReLU(wide)]
        self.body = nn.Sequential(*layers, block(channels, colors * scale**2))

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges x of shape (N, colors, H, W)."""
        y = self.body(x).unflatten(1, (self.colors, -1))  # (N, colors, scale², H, W)
        return F.pixel_shuffle((y + x.unsqueeze(2)).flatten(1, 2), self.scale)


class PlainSR(SRNet):
    """The plain network: what every other one becomes when it is fused.

    Source of the layout: X. Wang et al., "Real-ESRGAN", ICCVW 2021, arXiv 2107.10833 (SRVGGNetCompact).

    Args:
        scale, num_blocks, channels, colors: as in `SRNet`.

    Example:
        >>> import torch
        >>> PlainSR(scale=3, num_blocks=1, channels=8)(torch.rand(1, 3, 5, 7)).shape == (1, 3, 15, 21)
        True
    """

    def __init__(self, *, scale: int = 2, num_blocks: int = 4, channels: int = 16, colors: int = 3) -> None:
        super().__init__(scale=scale, num_blocks=num_blocks, channels=channels, colors=colors, block=_conv3x3)


class RepSR(SRNet):
    """The network of RepSR: `RepSRBlock` in place of every convolution.

    Source: X. Wang, C. Dong, Y. Shan, "RepSR", ACM MM 2022, arXiv 2205.05671. The first and the last layer are blocks
    too (without identity, as their channels differ), which trains better than plain ends.

    Args:
        scale, num_blocks, channels, colors: as in `SRNet`.
        **block_options: options of `RepSRBlock`.

    Example:
        >>> import torch
        >>> RepSR(scale=2, num_blocks=1, channels=8, colors=1)(torch.rand(2, 1, 5, 7)).shape == (2, 1, 10, 14)
        True
    """

    def __init__(
        self, *, scale: int = 2, num_blocks: int = 4, channels: int = 16, colors: int = 3, **block_options
    ) -> None:
        def block(narrow: int, wide: int) -> RepSRBlock:
            return RepSRBlock(narrow, wide, **block_options)

        super().__init__(scale=scale, num_blocks=num_blocks, channels=channels, colors=colors, block=block)


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)
