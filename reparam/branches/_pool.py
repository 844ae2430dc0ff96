"""The branch of an average pool."""

from __future__ import annotations

from torch import nn

from ..algebra._axes import POOL
from ..algebra._spec import ConvSpec
from ..bn._norm import NormChoice, make_norm
from ._chain import ChainBranch


class AvgPoolBranch(ChainBranch):
    r"""y = BN(pool(BN(W x))): a 1x1 convolution and the mean over the window of the spec, padding included.

    Without `conv` and `bn` it is the bare average pool; padded pixels count, so that every output is the sum of its
    window over the number of taps.

    Source: X. Ding et al., "Diverse Branch Block: Building a Convolution as an Inception-like Unit", CVPR 2021, arXiv
    2103.13425, section 3.3 (transforms V and VI). Their batch statistics do not see the ring around the 1x1's
    output, and neither do ours.

    Args:
        spec: the geometry; a pool has no dilation.
        conv: whether a 1x1 convolution comes first; it is needed unless in_channels = out_channels.
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
