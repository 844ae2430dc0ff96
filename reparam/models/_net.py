"""The network shape of real-time super-resolution: convolutions and PReLUs at low resolution, then a pixel shuffle."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import ECB, CollapsibleLinearBlock, QARepVGGBlock, RepSRBlock, RepVGGBlock
from ..blocks._at_once import compute_at_once
from ..blocks._conv_block import ConvBlock
from ..blocks._set_fold import set_fold
from ..errors import OptionError, SpecError
from ..modules._start import reset_layers
from ._sizes import check_sizes
from ._start import scale_start

ConvFactory = Callable[[int, int], nn.Module]

conv3x3: ConvFactory = partial(nn.Conv2d, kernel_size=3, padding=1)

_ACTS: dict[str, Callable[[int], nn.Module]] = {
    "prelu": nn.PReLU,
    "relu": lambda channels: nn.ReLU(),
    "leakyrelu": lambda channels: nn.LeakyReLU(0.1),
    "softplus": lambda channels: nn.Softplus(),
    "linear": lambda channels: nn.Identity(),
}
_BASES = ("nearest", "bilinear")


class SRNet(nn.Module):
    r"""A VGG-style super-resolution network. Subclasses choose the block that replaces its 3x3 convolutions.

    $$y = \mathrm{shuffle}_s\big(\mathrm{conv}(f_M(\dots f_0(x)))\big) + x^{\uparrow}, \qquad
      f_i(z) = \mathrm{act}(\mathrm{conv}_i(z))$$

    $x^{\uparrow}$ is x enlarged by nearest neighbor or bilinearly.
    Training starts near $x^{\uparrow}$: biases start at zero, layers without batch norm and identity at such a
    scale that a fifth of the signal reaches the last one at any depth, and what that adds is multiplied by 0.01.

    After fusing, the state dict has the keys `body.0.weight`, `body.0.bias`, `body.1.weight`, ... of SRVGGNetCompact,
    Real-ESRGAN's compact network. It loads in every program that loads SRVGGNetCompact.

    Args:
        scale: the factor by which height and width grow, 1 to 4.
        num_blocks: M, the number of convolutions between the first and the last one.
        channels: C, width of the body.
        colors: channels of the image: 3 (RGB) or 1 (luma).
        act: the activation after every convolution but the last: "prelu" (one slope per channel), "relu", "leakyrelu"
            (slope 0.1), "softplus", or "linear" for none.
        base: how x is enlarged before it is added, "nearest" or "bilinear" (with `align_corners=False`, as in JL-DY's
            code).
        block: called as `block(in_channels, out_channels)` for each layer, which must keep the spatial size.
        ends: the same for the first and the last layer; None means `block`.

    Shape:
        (N, colors, H, W) to (N, colors, scale * H, scale * W), values of any range (usually 0 to 1), RGB order.

    Raises:
        SpecError: if an argument is out of range, or the activation or base is unknown.

    Example:
        >>> import torch
        >>> from reparam import ACBlock
        >>> net = SRNet(scale=2, num_blocks=1, channels=8, colors=3, act="relu", block=ACBlock)
        >>> net(torch.rand(1, 3, 5, 7)).shape == (1, 3, 10, 14)
        True
    """

    options: dict[str, Any]
    """The arguments that the network was built with. `save_checkpoint` stores them together with its class."""

    def __init__(
        self,
        *,
        scale: int,
        num_blocks: int,
        channels: int,
        colors: int,
        act: str = "prelu",
        base: str = "nearest",
        block: ConvFactory,
        ends: ConvFactory | None = None,
    ) -> None:
        super().__init__()
        check_sizes(scale=scale, num_blocks=num_blocks, channels=channels, colors=colors)
        for name, value, known in (("act", act, tuple(_ACTS)), ("base", base, _BASES)):
            if value not in known:
                raise SpecError(f"{name} must be one of {', '.join(map(repr, known))}, but got {name}={value!r}")
        self.scale, self.num_blocks, self.channels, self.colors = scale, num_blocks, channels, colors
        self.base = base
        ends = block if ends is None else ends
        layers: list[nn.Module] = [ends(colors, channels), _ACTS[act](channels)]
        for _ in range(num_blocks):
            layers += [block(channels, channels), _ACTS[act](channels)]
        self.body = nn.Sequential(*layers, ends(channels, colors * scale**2))
        self._scale_start()
        compute_at_once(self)

    def reset_parameters(self) -> None:
        """Initialize every layer again, as the constructor does: the same seed yields the same values."""
        reset_layers(self)
        self._scale_start()

    def _scale_start(self, chosen: Container[nn.Module] | None = None) -> None:
        """Scale freshly initialized layers of the body as the constructor does: all, or the chosen ones."""
        scale_start(self.body, chosen)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge x of shape (N, colors, H, W)."""
        return F.pixel_shuffle(self.body(x), self.scale) + F.interpolate(x, scale_factor=self.scale, mode=self.base)


class PlainSR(SRNet):
    """The plain network: what every other `SRNet` becomes when it is fused.

    Source of the layout: X. Wang et al., "Real-ESRGAN", ICCVW 2021, arXiv 2107.10833 (SRVGGNetCompact).

    Args:
        scale, num_blocks, channels, colors, act, base: as in `SRNet`.

    Example:
        >>> import torch
        >>> PlainSR(scale=3, num_blocks=1, channels=8)(torch.rand(1, 3, 5, 7)).shape == (1, 3, 15, 21)
        True
    """

    def __init__(
        self,
        *,
        scale: int = 2,
        num_blocks: int = 4,
        channels: int = 16,
        colors: int = 3,
        act: str = "prelu",
        base: str = "nearest",
    ) -> None:
        sizes: Any = {"scale": scale, "num_blocks": num_blocks, "channels": channels, "colors": colors}
        super().__init__(**sizes, act=act, base=base, block=conv3x3)
        self.options = {**sizes, "act": act, "base": base}


class _BlockSR(SRNet):
    """A network whose convolutions are all blocks. Each class below chooses one block."""

    Block: ClassVar[type[ConvBlock]]

    def __init__(
        self,
        *,
        scale: int = 2,
        num_blocks: int = 4,
        channels: int = 16,
        colors: int = 3,
        act: str = "prelu",
        base: str = "nearest",
        plain_ends: bool = False,
        **block_options: Any,
    ) -> None:
        if unknown := [name for name in block_options if name not in _block_options(self.Block)]:
            raise OptionError(
                f"{type(self).__name__} has no option {', '.join(map(repr, unknown))}; besides scale, num_blocks, "
                f"channels, colors, act, base and plain_ends it takes the options of {self.Block.__name__}: "
                + ", ".join(_block_options(self.Block))
            )
        sizes: Any = {"scale": scale, "num_blocks": num_blocks, "channels": channels, "colors": colors}
        chosen = isinstance(block_options.get("fold"), Mapping)  # block by block, as `tune_fold` does
        block = partial(self.Block, **{**block_options, "fold": "auto"} if chosen else block_options)
        super().__init__(**sizes, act=act, base=base, block=block, ends=conv3x3 if plain_ends else None)
        if chosen:
            set_fold(self, block_options["fold"])
        self.options = {**sizes, "act": act, "base": base, "plain_ends": plain_ends, **block_options}


def _block_options(block: type[ConvBlock]) -> list[str]:
    """The names of a block's arguments, its channels left out."""
    return list(dict.fromkeys([*block.options(), *list(block.arguments())[2:]]))


class RepSR(_BlockSR):
    """The network of RepSR: `RepSRBlock` in place of every convolution.

    Source: X. Wang, C. Dong, Y. Shan, "RepSR", ACM MM 2022, arXiv 2205.05671. The first and the last layer are blocks
    too, which trains better than plain ends. They have no identity, because their channels differ.

    Args:
        scale, num_blocks, channels, colors, act, base: as in `SRNet`.
        plain_ends: whether the first and the last layer are plain convolutions.
        **block_options: options of `RepSRBlock`.

    Example:
        >>> import torch
        >>> RepSR(scale=2, num_blocks=1, channels=8, colors=1)(torch.rand(2, 1, 5, 7)).shape == (2, 1, 10, 14)
        True
    """

    Block = RepSRBlock


class ECBSR(_BlockSR):
    """The network of ECBSR: `ECB` in place of every convolution.

    Source: X. Zhang, H. Zeng, L. Zhang, "Edge-oriented Convolution Block for Real-time Super Resolution on Mobile
    Devices", ACM MM 2021. The authors train it on luma (the Y channel) of range 0 to 255; BasicSR also has it for RGB.

    Args:
        scale, num_blocks, channels, colors, act, base: as in `SRNet`.
        plain_ends: whether the first and the last layer are plain convolutions.
        **block_options: options of `ECB`, such as `expansion=2.0`. `identity=False` is the default, as in the authors'
            configurations; their `with_idt` is `identity=None`, an identity where the channels match.

    Example:
        >>> import torch
        >>> net = ECBSR(scale=2, num_blocks=1, channels=8, colors=1, identity=None)
        >>> net(torch.rand(2, 1, 5, 7)).shape == (2, 1, 10, 14)
        True
    """

    Block = ECB


class RepVGGSR(_BlockSR):
    """`SRNet` with `RepVGGBlock` in place of every convolution.

    Source of the block: X. Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, arXiv 2101.03697.
    The paper builds a classifier from it; this network is ours.

    Args:
        scale, num_blocks, channels, colors, act, base: as in `SRNet`.
        plain_ends: whether the first and the last layer are plain convolutions.
        **block_options: options of `RepVGGBlock`.

    Example:
        >>> import torch
        >>> RepVGGSR(scale=4, num_blocks=1, channels=8)(torch.rand(2, 3, 5, 7)).shape == (2, 3, 20, 28)
        True
    """

    Block = RepVGGBlock


class QARepVGGSR(_BlockSR):
    """`SRNet` with `QARepVGGBlock`, a block designed for INT8, in place of every convolution.

    Source of the block: X. Chu, L. Li, B. Zhang, "Make RepVGG Greater Again: A Quantization-aware Approach", AAAI 2024,
    arXiv 2212.01593. The paper builds a classifier from it; this network is ours.

    Args:
        scale, num_blocks, channels, colors, act, base: as in `SRNet`.
        plain_ends: whether the first and the last layer are plain convolutions.
        **block_options: options of `QARepVGGBlock`.

    Example:
        >>> import torch
        >>> QARepVGGSR(scale=2, num_blocks=1, channels=8)(torch.rand(2, 3, 5, 7)).shape == (2, 3, 10, 14)
        True
    """

    Block = QARepVGGBlock


class CollapsibleSR(_BlockSR):
    """`SRNet` with SESR's `CollapsibleLinearBlock` in place of every convolution.

    Source of the block: K. Bhardwaj et al., "Collapsible Linear Blocks for Super-Efficient Super Resolution", MLSys
    2022, arXiv 2103.09404. The paper's own network is `SESR`; this one differs from `RepSR` and `RepVGGSR` only in its
    block.

    Args:
        scale, num_blocks, channels, colors, act, base: as in `SRNet`.
        plain_ends: whether the first and the last layer are plain convolutions.
        **block_options: options of `CollapsibleLinearBlock`.

    Example:
        >>> import torch
        >>> CollapsibleSR(scale=2, num_blocks=1, channels=8)(torch.rand(2, 3, 5, 7)).shape == (2, 3, 10, 14)
        True
    """

    Block = CollapsibleLinearBlock
