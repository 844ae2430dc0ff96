"""BasicSR, traiNNer-redux, neosr: our networks by name, the freeze schedule, an EMA that does not forget buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from ..bn._freeze import freeze_bn_stats
from ..errors import SpecError
from ..fusing._fuse import unwrap
from ..models import ECBSR, EDSR, SESR, CollapsibleSR, PlainSR, QARepVGGSR, RepSR, RepVGGSR, create_model


class Registry(Protocol):
    """What BasicSR and its relatives call a registry."""

    def register(self, obj: Any) -> Any:
        """Makes `obj` known under its `__name__`."""


def register_archs(registry: Registry) -> list[str]:
    """Makes our networks known to a training code by name.

    In an option file they are then `type: reparam_repsr` and so on, with the arguments of the class, or
    `type: reparam_model` with a `name` for `create_model`:

        network_g:
          type: reparam_model
          name: repsr_m4c16_x2

    The prefix is there because BasicSR has an ECBSR and an EDSR of its own.

    Args:
        registry: `basicsr.utils.registry.ARCH_REGISTRY`, or that of another code.

    Returns:
        The names.
    """
    factories: dict[str, Callable[..., nn.Module]] = {"reparam_model": create_model}
    networks = (PlainSR, RepSR, ECBSR, RepVGGSR, QARepVGGSR, CollapsibleSR, SESR, EDSR)
    factories |= {f"reparam_{net.__name__.lower()}": net for net in networks}
    for name, make in factories.items():
        registry.register(_named(name, make))
    return list(factories)


def _named(name: str, make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def build(**options: Any) -> nn.Module:
        return make(**options)

    build.__name__ = build.__qualname__ = name
    return build


Model = TypeVar("Model", bound=type)


def reparam_model(model: Model) -> Model:
    """Makes a BasicSR model class (`SRModel`, or what derives from it) train re-parameterizable networks well.

    - `train: freeze_bn_at: 0.9` in the option file freezes the batch norm statistics of `net_g` and of its EMA from
      that share of `total_iter` on (or from that iteration, if it is larger than 1), also in a run that is resumed
      later. The affine goes on learning, in the optimizer that is there.
    - The EMA averages buffers as it does parameters. BasicSR's copies parameters only, so that the batch norms of
      `net_g_ema` keep the statistics of a fresh network, and what it computes is garbage.

    Source of the schedule: X. Wang, C. Dong, Y. Shan, "RepSR", ACM MM 2022, arXiv 2205.05671.

    Args:
        model: the class. Use it as a decorator next to `@MODEL_REGISTRY.register()`, or on an existing class.

    Returns:
        A subclass of the same name.

    Raises:
        SpecError: when training starts, for a `freeze_bn_at` that is no positive number.

    Example:
        In a file that the training script imports:

            from basicsr.models.sr_model import SRModel
            from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY
            from reparam.interop.basicsr import register_archs, reparam_model

            register_archs(ARCH_REGISTRY)

            @MODEL_REGISTRY.register()
            @reparam_model
            class ReparamSRModel(SRModel):
                pass
    """

    class Reparam(model):  # type: ignore[misc, valid-type]  # a class that comes as a value
        def optimize_parameters(self, current_iter: int) -> None:
            if current_iter >= _freeze_iteration(self.opt["train"]):
                for name in ("net_g", "net_g_ema"):
                    if hasattr(self, name):
                        freeze_bn_stats(getattr(self, name))  # nothing happens the second time
            super().optimize_parameters(current_iter)

        @torch.no_grad()
        def model_ema(self, decay: float = 0.999) -> None:
            super().model_ema(decay)
            ours = dict(unwrap(self.net_g).named_buffers())
            for name, buffer in unwrap(self.net_g_ema).named_buffers():
                if buffer.is_floating_point():
                    buffer.lerp_(ours[name].to(buffer), 1 - decay)
                else:
                    buffer.copy_(ours[name])

    Reparam.__name__, Reparam.__qualname__, Reparam.__module__ = model.__name__, model.__qualname__, model.__module__
    Reparam.__doc__ = model.__doc__
    return Reparam  # type: ignore[return-value]  # a subclass of `model`


def _freeze_iteration(options: dict[str, Any]) -> float:
    """The first iteration with frozen statistics; infinity without `freeze_bn_at`."""
    at = options.get("freeze_bn_at")
    if at is None:
        return float("inf")
    if isinstance(at, bool) or not isinstance(at, (int, float)) or at <= 0:
        raise SpecError(f"freeze_bn_at must be a share of total_iter or an iteration, but got {at!r}")
    return at * options["total_iter"] if at <= 1 else at
