"""The identity as a branch."""

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
    """Whether this geometry has an identity: equal channels, stride 1, and a tap at the output's own position."""
    taps_meet = all(k % 2 or d % 2 for k, d in zip(spec.kernel_size, spec.dilation))
    return spec.in_channels == spec.out_channels and all(s == 1 for s in spec.stride) and taps_meet


def identities(
    spec: ConvSpec, wanted: bool | None = None, *, bn: NormChoice = False
) -> list[Callable[[ConvSpec], IdentityBranch]]:
    """A list of one identity or none, as callables that take the spec; None means one if the geometry has it."""
    there = has_identity(spec) if wanted is None else wanted
    return [partial(IdentityBranch, bn=bn)] * there


class IdentityBranch(ChainBranch):
    r"""The identity, y = x, or y = BN(x) with `bn`.

    The kernel is 1 at the center tap, from every channel to itself. If the spec does not keep the size of its input, y
    is x cropped or padded around the center.

    Source: without BN, the clean path of RepSR (arXiv 2205.05671); with BN, RepVGG (X. Ding et al., "RepVGG: Making
    VGG-style ConvNets Great Again", CVPR 2021, arXiv 2101.03697).

    Args:
        spec: the geometry; it needs in_channels = out_channels, stride 1, and an odd dilation if the kernel size is
            even.
        bn: whether a batch norm follows, or a callable that makes one from the channel count.

    Shape:
        (N, C, *size) to the same, for a spec that keeps the size.

    Raises:
        SpecError: for a spec that has no identity.

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
    """Whether a branch is exactly y = x."""
    return type(branch) is IdentityBranch and branch.norm is None


def with_identities(kernel: Kernel, count: int, spec: ConvSpec) -> Kernel:
    """A kernel (..., out, in / groups, *size), of as many taps as the spec or fewer, plus `count` identities."""
    if not count:
        return kernel
    weight, bias = kernel
    # Tensors from tracing, by a compiler or a mode, must not be cached.
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
