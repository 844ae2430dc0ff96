"""A linear map of patches, and what can be done to it."""

from ._kernels import Kernel, add, affine, affine_before, compose, compose_depthwise, dilate, embed, identity, regroup
from ._linear import LinearOp, linear_op
from ._spec import ConvSpec

__all__ = [
    "ConvSpec",
    "Kernel",
    "LinearOp",
    "add",
    "affine",
    "affine_before",
    "compose",
    "compose_depthwise",
    "dilate",
    "embed",
    "identity",
    "linear_op",
    "regroup",
]
