"""The branch that passes its input on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from ..algebra._spec import ConvSpec
from ..bn._norm import NormChoice, make_norm
from ..errors import SpecError
from ._chain import ChainBranch


def has_identity(spec: ConvSpec) -> bool:
    """Whether y = x makes sense in this geometry: equal channels, stride 1, and a tap that reads the own position."""
    taps_meet = all(k % 2 or d % 2 for k, d in zip(spec.kernel_size, spec.dilation))
    return spec.in_channels == spec.out_channels and all(s == 1 for s in spec.stride) and taps_meet


def identities(
    spec: ConvSpec, wanted: bool | None = None, *, bn: NormChoice = False
) -> list[Callable[[ConvSpec], IdentityBranch]]:
    """One identity or none, as callables that take the spec: as is wanted, or, for None, where the geometry has one."""
    there = has_identity(spec) if wanted is None else wanted
    return [partial(IdentityBranch, bn=bn)] * there


class IdentityBranch(ChainBranch):
    r"""y = x, or y = BN(x) with `bn`.

    The kernel is one at the centre tap, from every channel to itself. Where the spec does not keep the size of its
    input, y is x cropped or padded about the centre tap.

    Source: without BN, the clean path of RepSR (arXiv 2205.05671); with BN, RepVGG (X. Ding et al., "RepVGG: Making
    VGG-style ConvNets Great Again", CVPR 2021, arXiv 2101.03697).

    Args:
        spec: in_channels = out_channels and stride 1; a dilation must be odd where the kernel size is even.
        bn: whether a batch norm follows, or a callable that makes one from the channel count.

    Shape:
        (N, C, *size) to the same, for a spec that keeps the size.

    Raises:
        SpecError: for a spec without a place for an identity.

    Example:
        >>> import torch
        >>> branch = IdentityBranch(ConvSpec(8))
        >>> x = torch.rand(1, 8, 5, 5)
        >>> torch.equal(branch(x), x)
        True
    """

    def __init__(self, spec: ConvSpec, *, bn: NormChoice = False) -> None:
        super().__init__(spec)
        if not has_identity(spec):
            raise SpecError(
                f"an identity needs in_channels = out_channels, stride 1 and an odd kernel size or dilation, but got "
                f"in_channels={spec.in_channels}, out_channels={spec.out_channels}, stride={spec.stride}, "
                f"kernel_size={spec.kernel_size}, dilation={spec.dilation}"
            )
        self.norm = make_norm(bn, spec.in_channels, spec.ndim)
        self.check()

    def stages(self) -> list[nn.Module]:
        return [] if self.norm is None else [self.norm]
