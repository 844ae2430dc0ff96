"""The form in which a network exports best: its skip is added before the shuffle, where images are small."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models._net import SRNet
from ..modules._hooks import that_matter

Repeat = Callable[[int, int], nn.Module]
"""Makes, from colors and n, a module that repeats each channel n times: (N, colors, H, W) to (N, colors * n, H, W)."""


class Gather(nn.Module):
    """Repeats channels by copying: a `Gather` in ONNX."""

    index: Tensor

    def __init__(self, colors: int, times: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.arange(colors).repeat_interleave(times))

    def forward(self, x: Tensor) -> Tensor:
        """Repeat the channels of x."""
        return x.index_select(1, self.index)


def one_by_one(colors: int, times: int) -> nn.Conv2d:
    """Repeat channels by a 1x1 convolution of zeros and ones. OpenVINO then adds inside the preceding convolution."""
    conv = nn.Conv2d(colors, colors * times, 1, bias=False).requires_grad_(False)
    conv.weight.copy_(torch.eye(colors).repeat_interleave(times, 0)[:, :, None, None])
    return conv


class _Lean(nn.Module):
    def __init__(self, net: SRNet, repeat: Repeat) -> None:
        super().__init__()
        self.body, self.scale = net.body, net.scale
        self.repeat = repeat(net.colors, net.scale**2)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.body(x) + self.repeat(x), self.scale)


def lean(net: nn.Module, repeat: Repeat) -> nn.Module:
    r"""The same function with fewer passes over the large image, if the network is an `SRNet`; else the network itself.

    $$\mathrm{shuffle}_s(z) + x^{\uparrow} = \mathrm{shuffle}_s(z + \mathrm{repeat}_{s^2}(x))$$

    if $x^{\uparrow}$ is x enlarged by nearest neighbor: the same values are added, in another place.

    Args:
        net: any network.
        repeat: makes the module that repeats the channels.

    Example:
        >>> from reparam.models import PlainSR
        >>> net, x = PlainSR(scale=3, num_blocks=1, channels=4), torch.rand(1, 3, 5, 7)
        >>> bool((lean(net, Gather)(x) == net(x)).all())
        True
    """
    if not isinstance(net, SRNet) or type(net).forward is not SRNet.forward or net.base != "nearest":
        return net
    hooked = that_matter(net._forward_hooks, net._forward_pre_hooks)  # hooks may change the input and output
    return net if hooked else _Lean(net, repeat)
