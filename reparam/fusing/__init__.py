"""From blocks to convolutions and back, for this library's blocks and for other people's."""

from ._absorb import absorb
from ._foreign import kernel_of
from ._fuse import fuse, fused
from ._inspect import BlockReport, ModelReport, inspect_model
from ._macs import macs
from ._swap import SwapReport, swap_convs
from ._verify import Difference, VerifyReport, verify

__all__ = [
    "BlockReport",
    "Difference",
    "ModelReport",
    "SwapReport",
    "VerifyReport",
    "absorb",
    "fuse",
    "fused",
    "inspect_model",
    "kernel_of",
    "macs",
    "swap_convs",
    "verify",
]
