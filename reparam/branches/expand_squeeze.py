"""Two convolutions, one of them 1x1, through a wider or narrower middle."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from ..errors import SpecError
from ..norm import NormChoice, make_norm
from ..spec import ConvSpec
from .base import ChainBranch


class ExpandSqueezeBranch(ChainBranch):
    r"""y = W_2 * N(W_1 * x + b_1) + b_2: a k x k and a 1x1 convolution in either order, N a batch norm or nothing.

    With order "kxk-1x1" (RepSR, SESR) W_1 has the taps of the spec and W_2 has one; with "1x1-kxk" (ECBSR, DBB) it is
    the other way round. The middle has `expansion * out_channels` channels.

    Source: kxk-1x1: Wang, Dong, Shan, "RepSR", ACM MM 2022, arXiv 2205.05671 (with BN), and K. Bhardwaj et al.,
    "Collapsible Linear Blocks for Super-Efficient Super Resolution", MLSys 2022, arXiv 2103.09404 (without).
    1x1-kxk: X. Zhang, H. Zeng, L. Zhang, "Edge-oriented Convolution Block for Real-time Super Resolution on Mobile
    Devices", ACM MM 2021. They fill the ring around the 1x1's output with its bias; padding the input first, as here,
    is the same function.

    Args:
        spec: the geometry; with groups, both convolutions are grouped.
        expansion: channels of the middle per output channel, a positive number.
        hidden_channels: channels of the middle, in place of `expansion`.
        order: "kxk-1x1" or "1x1-kxk".
        bn: whether a batch norm lies between, or a callable that makes one from the channel count.
        bias: whether the two convolutions have biases.
        gain: factor on the initial weights of the second convolution and of the batch norm. Below 1 the branch starts
            small, so that a block with an identity starts near the identity.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for an unknown `order`, or a middle that is empty or not divisible by the groups.

    Example:
        >>> branch = ExpandSqueezeBranch(ConvSpec(16), bn=True)
        >>> branch.expand.weight.shape == (32, 16, 3, 3) and branch.squeeze.weight.shape == (16, 32, 1, 1)
        True
    """

    def __init__(
        self,
        spec: ConvSpec,
        *,
        expansion: float = 2.0,
        hidden_channels: int | None = None,
        order: Literal["kxk-1x1", "1x1-kxk"] = "kxk-1x1",
        bn: NormChoice = False,
        bias: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__(spec)
        if order not in ("kxk-1x1", "1x1-kxk"):
            raise SpecError(f"order must be 'kxk-1x1' or '1x1-kxk', but got order={order!r}")
        hidden = int(expansion * spec.out_channels) if hidden_channels is None else hidden_channels
        if hidden < 1:
            raise SpecError(
                f"the middle of an expand-squeeze branch needs at least one channel, but got expansion={expansion}, "
                f"hidden_channels={hidden_channels} for out_channels={spec.out_channels}"
            )
        plain = spec.replace(padding=0, padding_mode="zeros", bias=bias)
        wide = plain.replace(out_channels=hidden), plain.replace(in_channels=hidden)
        point = {"kernel_size": 1, "stride": 1, "dilation": 1}
        first, second = (
            (wide[0], wide[1].replace(**point)) if order == "kxk-1x1" else (wide[0].replace(**point), wide[1])
        )
        self.expand = first.new_conv()
        self.norm = make_norm(bn, hidden, spec.ndim)
        self.squeeze = second.new_conv()
        with torch.no_grad():
            self.squeeze.weight.mul_(gain)
            if self.norm is not None and self.norm.affine:
                self.norm.weight.mul_(gain)
        self.check()

    def stages(self) -> list[nn.Module]:
        return [self.expand, self.squeeze] if self.norm is None else [self.expand, self.norm, self.squeeze]
