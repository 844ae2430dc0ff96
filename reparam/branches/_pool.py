"""The average pool as a branch."""

from __future__ import annotations

from torch import nn

from ..algebra._axes import POOL
from ..algebra._spec import ConvSpec
from ..bn._norm import NormChoice, make_norm
from ._chain import ChainBranch


class AvgPoolBranch(ChainBranch):
    r"""A 1x1 convolution and an average pool over the window of the spec: y = BN(pool(BN(W x))).

    Without `conv` and `bn` it is the bare average pool. Padded pixels count: every output is the sum over its window
    divided by the number of taps.

    Source: X. Ding et al., "Diverse Branch Block: Building a Convolution as an Inception-like Unit", CVPR 2021, arXiv
    2103.13425, section 3.3 (transforms V and VI). As in theirs, batch statistics leave out the ring around the output
    of the 1x1.

    Args:
        spec: the geometry, without dilation.
        conv: whether a 1x1 convolution comes first; needed unless in_channels = out_channels.
        bn: whether batch norms follow the convolution and the pool, or a callable that makes one.

    Raises:
        SpecError: if the channels differ without `conv`, or for a dilation.

    Example:
        >>> import torch
        >>> pool = AvgPoolBranch(ConvSpec(4), conv=False)
        >>> x = torch.rand(1, 4, 6, 6)
        >>> torch.allclose(pool(x), nn.functional.avg_pool2d(x, 3, 1, 1))
        True
    """

    def __init__(self, spec: ConvSpec, *, conv: bool = True, bn: NormChoice = False) -> None:
        super().__init__(spec)
        self.conv = spec.pointwise(bias=False).new_conv() if conv else None
        self.conv_norm = make_norm(bn, spec.out_channels, spec.ndim) if conv else None
        self.pool = POOL[spec.ndim](spec.kernel_size, spec.stride)
        self.norm = make_norm(bn, spec.out_channels, spec.ndim)
        self.check()

    def stages(self) -> list[nn.Module]:
        return [stage for stage in (self.conv, self.conv_norm, self.pool, self.norm) if stage is not None]
