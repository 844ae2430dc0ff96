"""EDSR: residual blocks of two convolutions, then upsampling and a last convolution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks._at_once import compute_at_once
from ..errors import SpecError
from ..modules._constants import constant
from ..modules._start import reset_layers
from ._net import ConvFactory, conv3x3
from ._sizes import check_sizes

_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


class EDSR(nn.Module):
    r"""EDSR with plain convolutions, or with `block` inside its residual blocks. The defaults are the EDSR baseline.

    $$y = \mathrm{conv}(\mathrm{up}_s(\mathrm{conv}(z_B) + z_0)) / R + \mu, \qquad z_0 = \mathrm{conv}((x - \mu) R),
      \qquad z_i = z_{i-1} + r\,\mathrm{conv}(\mathrm{ReLU}(\mathrm{conv}(z_{i-1})))$$

    $\mathrm{up}_s$ is a convolution and a pixel shuffle. Scale 4 applies the pair of scale 2 twice.

    Source: B. Lim, S. Son, H. Kim, S. Nah, K. M. Lee, "Enhanced Deep Residual Networks for Single Image
    Super-Resolution", CVPRW 2017, arXiv 1707.02921. The state dict (of the fused network, if it has blocks) has the
    keys of BasicSR's EDSR (`conv_first.weight`, `body.0.conv1.weight`, ..., `upsample.0.weight`, `conv_last.weight`),
    so BasicSR's files load unchanged. The authors' own files use other keys. They work on images of range 0 to 255 and
    store the mean in two convolutions, `sub_mean` and `add_mean`; with `img_range=255` the other weights are the same.

    Args:
        scale: the factor by which height and width grow, 2, 3 or 4.
        num_blocks: B, the number of residual blocks (16; 32 in the large network).
        channels: width of the body (64; 256 in the large network).
        colors: channels of the image: 3 (RGB) or 1 (luma).
        res_scale: r, the factor applied to the residual branch before it is added (0.1 in the large network).
        img_range: R, the factor that scales images of range 0 to 1 to the range used inside the network.
        mean: µ, one value per color, in the range of the input. None means the mean of DIV2K for three colors, else 0.
        block: called as `block(in_channels, out_channels)` for the two layers of each residual block, for example
            `RepSRBlock`. The default is a plain 3x3 convolution.

    Shape:
        (N, colors, H, W) to (N, colors, scale * H, scale * W), values of range 0 to 1, RGB order.

    Raises:
        SpecError: if an argument is out of range, or `mean` does not have one value per color.

    Example:
        >>> from reparam import RepSRBlock, fuse
        >>> net = EDSR(scale=2, num_blocks=1, channels=8, block=RepSRBlock)
        >>> _ = net(torch.rand(1, 3, 9, 9))  # the batch norms see a batch
        >>> fuse(net.eval()).state_dict().keys() == EDSR(scale=2, num_blocks=1, channels=8).state_dict().keys()
        True
    """

    mean: Tensor

    def __init__(
        self,
        *,
        scale: int = 2,
        num_blocks: int = 16,
        channels: int = 64,
        colors: int = 3,
        res_scale: float = 1.0,
        img_range: float = 255.0,
        mean: Sequence[float] | None = None,
        block: ConvFactory = conv3x3,
    ) -> None:
        super().__init__()
        check_sizes(scale=scale, scales=(2, 3, 4), num_blocks=num_blocks, channels=channels, colors=colors)
        self.scale, self.num_blocks, self.channels, self.colors = scale, num_blocks, channels, colors
        self.options: dict[str, Any] = {
            "scale": scale,
            "num_blocks": num_blocks,
            "channels": channels,
            "colors": colors,
        }
        self.options |= {"res_scale": res_scale, "img_range": img_range, "mean": mean, "block": block}
        self.img_range = img_range
        constant(self, "mean", partial(_mean, mean, colors))
        self.conv_first = conv3x3(colors, channels)
        self.body = nn.Sequential(*(ResidualBlock(channels, res_scale, block) for _ in range(num_blocks)))
        self.conv_after_body = conv3x3(channels, channels)
        self.upsample = _upsample(scale, channels)
        self.conv_last = conv3x3(channels, colors)
        compute_at_once(self)

    def reset_parameters(self) -> None:
        """Initialize every layer again, as the constructor does: the same seed yields the same values."""
        reset_layers(self)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge x of shape (N, colors, H, W)."""
        first = self.conv_first((x - self.mean) * self.img_range)
        y = self.conv_after_body(self.body(first)) + first
        return self.conv_last(self.upsample(y)) / self.img_range + self.mean


class ResidualBlock(nn.Module):
    """The input plus `res_scale` times two convolutions of it, with a ReLU between them."""

    def __init__(self, channels: int, res_scale: float, block: ConvFactory) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1, self.conv2 = block(channels, channels), block(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape (N, channels, H, W) to the same shape."""
        return x + self.conv2(F.relu(self.conv1(x))) * self.res_scale


def _mean(mean: Sequence[float] | None, colors: int) -> Tensor:
    if mean is None:
        mean = _DIV2K_MEAN if colors == 3 else (0.0,) * colors
    if len(mean) != colors:
        raise SpecError(f"mean needs one value for each of the {colors} colors, but got mean={tuple(mean)}")
    return torch.tensor(mean).view(1, colors, 1, 1)


def _upsample(scale: int, channels: int) -> nn.Sequential:
    factors = (2, 2) if scale == 4 else (scale,)
    layers = [(conv3x3(channels, channels * factor**2), nn.PixelShuffle(factor)) for factor in factors]
    return nn.Sequential(*(layer for pair in layers for layer in pair))
