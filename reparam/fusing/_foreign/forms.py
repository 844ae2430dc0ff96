"""Where classes of other people's code keep the convolution that their branches become.

A class is recognized by the names of its attributes, not by its own name or file. So forks and copies are recognized
too, and nothing is imported. Only names are listed here; the kernels are read from the forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ...algebra._linear import LinearOp
from .equations import ECB_PARTS, ecb, is_seq_conv


@dataclass(frozen=True)
class InferenceForm:
    """How to give a class its inference form, which its forward runs if it finds the right attributes."""

    has: tuple[str, ...]
    """Attributes of the training form."""
    convs: tuple[str, ...]
    """Attributes that hold the convolutions in the inference form, in the order in which they run."""
    then: Mapping[str, str] = field(default_factory=dict)
    """Modules that follow a convolution under the same attribute, in a Sequential."""
    sets: Mapping[str, Any] = field(default_factory=dict)
    """Further attributes of the inference form; a callable computes the value."""

    def fits(self, module: nn.Module) -> bool:
        """Whether a module is of this class and still has its branches."""
        mentioned = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        knows = mentioned is not None and all(conv in mentioned.co_names for conv in self.convs)
        return knows and all(module._modules.get(name) is not None for name in self.has)


_GHOST = {"primary_conv": "primary_activation", "cheap_operation": "cheap_activation"}
FORMS = [
    # timm
    InferenceForm(("conv_kxk", "conv_1x1", "attn"), ("reparam_conv",)),
    InferenceForm(("conv_kxk", "attn", "act"), ("reparam_conv",)),
    InferenceForm(("conv_kxk", "se", "act"), ("reparam_conv",), sets={"inference_mode": True}),
    InferenceForm(("large_conv", "se", "act"), ("reparam_conv",)),
    InferenceForm(("norm", "mixer", "layer_scale"), ("reparam_conv",), sets={"inference_mode": True}),
    InferenceForm(("pos_enc",), ("reparam_conv",)),
    InferenceForm(("dw_conv_list", "dw_act"), ("dw_conv",), sets={"dw_conv_list": None}),
    InferenceForm(
        ("primary_conv", "fusion_conv", "fusion_bn", "relu"),
        ("cheap_operation",),
        sets={"fusion_conv": list, "fusion_bn": list},
    ),
    InferenceForm(("primary_rpr_conv", "cheap_rpr_conv"), tuple(_GHOST), _GHOST, {"infer_mode": True}),
    InferenceForm(("dw_rpr_conv", "ghost1", "se"), ("conv_dw",), sets={"bn_dw": nn.Identity, "infer_mode": True}),
    # RepVGG, RepVGGplus, and YOLO's RepConv
    InferenceForm(("rbr_dense", "rbr_1x1"), ("rbr_reparam",), sets={"deploy": True}),
    # MobileOne
    InferenceForm(("rbr_conv", "se", "activation"), ("reparam_conv",), sets={"inference_mode": True}),
    # DBB
    InferenceForm(("dbb_origin", "dbb_avg", "dbb_1x1_kxk"), ("dbb_reparam",), sets={"deploy": True}),
]
"""Classes that keep their forward, which runs the convolution instead of the branches if it exists."""


@dataclass(frozen=True)
class Row:
    """A class whose forward does not show what its branches do: a convolution by its equation, then an activation."""

    parts: Mapping[str, Callable[[nn.Module], bool]]
    conv: str
    then: str
    equation: Callable[[Any, Tensor], LinearOp]

    def fits(self, module: nn.Module) -> bool:
        """Whether a module is of this class."""
        held = module._modules
        return all((part := held.get(name)) is not None and kind(part) for name, kind in self.parts.items())


ROWS = [
    Row(
        {"conv3x3": lambda part: isinstance(part, nn.Conv2d), **dict.fromkeys(ECB_PARTS[1:], is_seq_conv)},
        "conv3x3",
        "act",
        ecb,
    )
]
CONV_NAMES = {"square_conv": "fused_conv"}
"""The authors' name for the convolution in a class without an inference form, by an attribute of the class (ACNet)."""


def form_of(module: nn.Module) -> InferenceForm | Row | None:
    """How to give a module of a known class its inference form; None for other classes."""
    known: list[InferenceForm | Row] = [*FORMS, *ROWS]
    return next((form for form in known if form.fits(module)), None)


def has_form(module: nn.Module) -> bool:
    """Whether a module is of a known class and still has its branches."""
    return form_of(module) is not None
