"""Where the classes of other people's codes keep the convolution that their branches become.

A class is known by what it holds, names and types, not by its own name or file: forks and copies are known as well, and
nothing is imported. What its convolution is, is not written here: it is read off its forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .affine import Affine
from .equations import ECB_PARTS, ecb, is_seq_conv
from .trace import is_any_norm

Kind = Callable[[nn.Module], bool]


@dataclass(frozen=True)
class Slot:
    """A convolution of a class's inference form."""

    conv: str
    """Name of the attribute that it becomes."""
    parts: tuple[str, ...]
    """Names of what it replaces."""
    into: tuple[str, ...] = ()
    """What its output goes into: the first of these that there is; without any, it is what is returned."""
    source: str | None = None
    """What gives it its input; None: it takes the input of the whole."""
    then: str | None = None
    """What stands behind it in a row, under the same attribute."""

    def goes_into(self, module: nn.Module) -> str | None:
        """Which of `into` a module has."""
        return next((name for name in self.into if module._modules.get(name) is not None), None)


@dataclass(frozen=True)
class InferenceForm:
    """How a class is brought into its inference form."""

    holds: Mapping[str, Kind]
    """Modules that it has while it trains, and what they must be."""
    slots: tuple[Slot, ...]
    sets: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the inference form; a callable makes its value."""

    def fits(self, module: nn.Module) -> bool:
        """Whether a module is of this class and still holds its branches."""
        mentioned = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        knows = mentioned is not None and all(slot.conv in mentioned.co_names for slot in self.slots)
        return knows and _holds(module, self.holds)


def _holds(module: nn.Module, parts: Mapping[str, Kind]) -> bool:
    held = module._modules
    return all((part := held.get(name)) is not None and kind(part) for name, kind in parts.items())


def a(*kinds: type) -> Kind:
    """An instance of one of these."""
    return lambda module: isinstance(module, kinds)


def anything(module: nn.Module) -> bool:
    """Whatever it is."""
    return True


def conv_and_norm(module: nn.Module) -> bool:
    """A convolution and then a norm, whatever they are called: in `nn.Sequential`, in timm's ConvNormAct, ..."""
    parts = [part for part in module.children() if not isinstance(part, nn.Identity)]
    return len(parts) == 2 and isinstance(parts[0], _ConvNd) and is_any_norm(parts[1])


def many(kind: Kind) -> Kind:
    """A list, empty perhaps, of nothing else."""
    return lambda module: isinstance(module, (nn.ModuleList, nn.Sequential)) and all(map(kind, module))


def _at_least_one(kind: Kind) -> Kind:
    return lambda module: many(kind)(module) and any(True for _ in module.children())


_BRANCHES = ("identity", "conv_kxk", "conv_1x1", "conv_scale", "drop_path")
_TIMM = [
    InferenceForm(
        {"conv_kxk": conv_and_norm, "conv_1x1": conv_and_norm, "attn": anything},
        (Slot("reparam_conv", _BRANCHES, ("attn",)),),
    ),
    InferenceForm(
        {"conv_kxk": many(conv_and_norm), "attn": anything, "act": anything},
        (Slot("reparam_conv", _BRANCHES, ("attn",)),),
    ),
    InferenceForm(
        {"se": anything, "act": anything, "conv_kxk": many(conv_and_norm)},
        (Slot("reparam_conv", _BRANCHES, ("se",)),),
        {"inference_mode": True},
    ),
    InferenceForm(
        {"large_conv": conv_and_norm, "se": anything, "act": anything},
        (Slot("reparam_conv", ("large_conv", "small_conv"), ("se",)),),
    ),
    InferenceForm(
        {"norm": anything, "mixer": anything, "layer_scale": anything},
        (Slot("reparam_conv", ("mixer", "norm", "layer_scale")),),
        {"inference_mode": True},
    ),
    InferenceForm({"pos_enc": a(nn.Conv2d)}, (Slot("reparam_conv", ("pos_enc",)),)),
    InferenceForm(
        {"dw_conv_list": _at_least_one(conv_and_norm), "dw_act": anything},
        (Slot("dw_conv", ("dw_conv_list",), ("dw_act",)),),
        {"dw_conv_list": None},
    ),
    InferenceForm(
        {
            "primary_conv": anything,
            "fusion_conv": _at_least_one(anything),
            "fusion_bn": many(is_any_norm),
            "relu": anything,
        },
        (Slot("cheap_operation", ("cheap_operation", "fusion_conv", "fusion_bn"), ("relu",), "primary_conv"),),
        {"fusion_conv": list, "fusion_bn": list},
    ),
    InferenceForm(
        {"primary_rpr_conv": _at_least_one(conv_and_norm), "cheap_rpr_conv": _at_least_one(conv_and_norm)},
        tuple(
            Slot(
                conv,
                (f"{kind}_rpr_conv", f"{kind}_rpr_scale", f"{kind}_rpr_skip"),
                (f"{kind}_activation",),
                source,
                f"{kind}_activation",
            )
            for conv, kind, source in (
                ("primary_conv", "primary", None),
                ("cheap_operation", "cheap", "primary_activation"),
            )
        ),
        {"infer_mode": True},
    ),
    InferenceForm(
        {"dw_rpr_conv": _at_least_one(conv_and_norm), "ghost1": anything, "se": anything},
        (Slot("conv_dw", ("dw_rpr_conv", "dw_rpr_scale", "dw_rpr_skip"), ("se",), "ghost1"),),
        {"bn_dw": nn.Identity, "infer_mode": True},
    ),
]
_RBR = ("rbr_dense", "rbr_1x1", "rbr_identity")
_OFFICIAL = [
    InferenceForm(  # RepVGG, RepVGGplus, and YOLO's RepConv
        {"rbr_dense": conv_and_norm, "rbr_1x1": conv_and_norm},
        (Slot("rbr_reparam", _RBR, ("se", "nonlinearity", "act")),),
        {"deploy": True},
    ),
    InferenceForm(  # MobileOne
        {"rbr_conv": many(conv_and_norm), "se": anything, "activation": anything},
        (Slot("reparam_conv", ("rbr_conv", "rbr_scale", "rbr_skip"), ("se",)),),
        {"inference_mode": True},
    ),
    InferenceForm(  # DBB
        {"dbb_origin": conv_and_norm, "dbb_avg": a(nn.Sequential), "dbb_1x1_kxk": a(nn.Sequential)},
        (Slot("dbb_reparam", ("dbb_origin", "dbb_1x1", "dbb_avg", "dbb_1x1_kxk"), ("nonlinear",)),),
        {"deploy": True},
    ),
]
FORMS = [*_TIMM, *_OFFICIAL]
"""Classes that keep their forward, which runs the convolution instead of the branches where it finds it."""


@dataclass(frozen=True)
class Row:
    """A class without an inference form, or with one that leaves its activation out: it becomes a row of modules.

    Their names are those that the authors' inference network gives them.
    """

    holds: Mapping[str, Kind]
    conv: str
    then: str
    """The activation, which may be missing."""
    equation: Callable[[Any, Tensor], Affine] | None = None
    """What comes before the activation, where the forward does not tell."""

    def fits(self, module: nn.Module) -> bool:
        """Whether a module is of this class."""
        return _holds(module, self.holds)


ROWS = [
    Row({"conv3x3": a(nn.Conv2d), **dict.fromkeys(ECB_PARTS[1:], is_seq_conv)}, "conv3x3", "act", ecb),
    Row(  # ACNet
        {
            **dict.fromkeys(("square_conv", "ver_conv", "hor_conv"), a(nn.Conv2d)),
            **dict.fromkeys(("square_bn", "ver_bn", "hor_bn"), is_any_norm),
        },
        "fused_conv",
        "nonlinear",
    ),
]


def form_of(module: nn.Module) -> InferenceForm | Row | None:
    """How a module of a known class is brought into its inference form; None for others."""
    known: list[InferenceForm | Row] = [*FORMS, *ROWS]
    return next((form for form in known if form.fits(module)), None)
