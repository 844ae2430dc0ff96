"""The networks that training codebases build by name, from an option file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ..errors import SpecError
from ..models import ECBSR, EDSR, SESR, CollapsibleSR, PlainSR, QARepVGGSR, RepSR, RepVGGSR, create_model
from ._swapped import Build, swapped

_NETWORKS = (PlainSR, RepSR, ECBSR, RepVGGSR, QARepVGGSR, CollapsibleSR, SESR, EDSR)


def networks(build: Build) -> dict[str, Callable[..., nn.Module]]:
    """Functions that make a network from options, by name.

    Args:
        build: builds a network of the training codebase, for `reparam_swapped`.
    """
    makers: dict[str, Callable[..., nn.Module]] = {"reparam_model": _model}
    makers |= {f"reparam_{network.__name__.lower()}": network for network in _NETWORKS}
    makers["reparam_swapped"] = partial(swapped, build)
    return {name: _named(name, make) for name, make in makers.items()}


def _model(*, name: str, scale: int | None = None, **options: Any) -> nn.Module:
    """A network by its name. The training codebase may repeat its scale."""
    net = create_model(name, **options)
    if scale not in (None, net.scale):
        raise SpecError(
            f"reparam_model: the name {name!r} means scale {net.scale}, but the option file has scale={scale}; "
            "change one of them"
        )
    return net


def _named(name: str, make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def build(freeze_bn_at: float | None = None, **options: Any) -> nn.Module:
        return make(**options)  # freeze_bn_at is read by the model class, from the option file

    build.__name__ = build.__qualname__ = name
    return build
