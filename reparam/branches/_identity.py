"""The branch that passes its input on."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from ..algebra import _kernels as kernels
from ..algebra._kernels import Kernel
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


def is_plain(branch: object) -> bool:
    """Whether a branch is y = x itself."""
    return type(branch) is IdentityBranch and branch.norm is None


def with_identities(kernel: Kernel, count: int, spec: ConvSpec) -> Kernel:
    """A kernel (..., out, in / groups, *size), of as many taps as the spec or fewer, with so many identities added."""
    if not count:
        return kernel
    weight, bias = kernel
    # What a compiler or a mode traces with must not be remembered.
    make = _unit if torch.compiler.is_compiling() or type(weight) not in (Tensor, nn.Parameter) else _remembered_unit
    unit = make(spec.in_channels, spec.groups, tuple(weight.shape[-spec.ndim :]), weight.dtype, weight.device)
    return Kernel(torch.add(weight, unit, alpha=count), bias)


def _unit(channels: int, groups: int, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    one = kernels.identity(channels, groups, len(size), torch.empty(0, dtype=dtype, device=device))
    return kernels.embed(one, size).weight


@lru_cache(maxsize=16)  # the few shapes of a network; the largest, of 512 channels, is 9 MB
def _remembered_unit(
    channels: int, groups: int, size: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return _unit(channels, groups, size, dtype, device)
