"""Any linear stack of torch modules as a branch."""

from __future__ import annotations

from torch import nn

from ..algebra._spec import ConvSpec
from ._chain import ChainBranch


class SequentialBranch(ChainBranch):
    r"""Linear torch modules that run one after the other. The spec pads the input once; the modules do not pad.

    Args:
        spec: the geometry of the whole.
        *modules: convolutions and average pools without padding, and batch norms, in any order.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        NotLinearError: for a module that is not linear, that pads, or that has hooks which change it.
        SpecError: if channels do not match, or the whole is not a convolution of this spec.

    Example:
        >>> import torch
        >>> stack = nn.Conv2d(16, 64, 1), nn.BatchNorm2d(64), nn.Conv2d(64, 16, 3)
        >>> branch = SequentialBranch(ConvSpec(16), *stack)
        >>> branch(torch.rand(2, 16, 7, 9)).shape == (2, 16, 7, 9)
        True
    """

    def __init__(self, spec: ConvSpec, *modules: nn.Module) -> None:
        super().__init__(spec)
        self.layers = nn.ModuleList(modules)
        self.check()

    def stages(self) -> list[nn.Module]:
        return list(self.layers)
