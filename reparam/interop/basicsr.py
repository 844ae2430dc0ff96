"""For BasicSR, neosr, traiNNer-redux and KAIR: networks by name, the freeze schedule, an EMA that includes buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from ..bn._freeze import freeze_bn_stats
from ..errors import SpecError
from ..fusing._fuse import unwrap
from ._networks import networks
from ._schedule import first_frozen_step, optimizer_step


class Registry(Protocol):
    """A registry, as in BasicSR and the codebases derived from it."""

    def register(self, obj: Any) -> Any:
        """Register `obj` under its `__name__`."""

    def get(self, name: str) -> Any:
        """Return what is registered under a name, or raise a KeyError."""


def register_archs(registry: Registry, *others: Registry) -> list[str]:
    """Register this library's networks in a training codebase, and its own networks with blocks swapped in.

    An option file can then use `type: reparam_repsr` (and the other classes), with the arguments of the class, or
    `type: reparam_model` with a `name` for `create_model`:

        network_g:
          type: reparam_model
          name: repsr_m4c16_x2

    `type: reparam_swapped` builds a network of the codebase itself, with blocks in place of its convolutions:

        network_g:
          type: reparam_swapped
          net: {type: EDSR, num_in_ch: 3, num_out_ch: 3, upscale: 2}   # as the codebase builds it
          weights: edsr_x2.pth       # of the network without blocks; optional
          block: RepSRBlock          # or {type: ECB, expansion: 2.0}
          match: "body.*"            # as for swap_convs; optional
          calibrate: datasets/lr     # images for the statistics of the blocks' batch norms; optional

    The optimizer, the EMA and a resumed run then all see the network with its blocks. The names have a prefix because
    BasicSR has its own ECBSR and EDSR. If the codebase adds a `scale` to every network, it must agree with the name.

    Args:
        registry: `basicsr.utils.registry.ARCH_REGISTRY`, or that of another codebase.
        *others: more registries in which to find networks for `reparam_swapped`, such as the `SPANDREL_REGISTRY` of
            traiNNer-redux.

    Returns:
        The registered names.

    Raises:
        SpecError: when a network is built, if one of its options is wrong; the message names it.
    """
    makers = networks(_builder((registry, *others)))
    for make in makers.values():
        registry.register(make)
    return list(makers)


def _builder(registries: tuple[Registry, ...]) -> Callable[[Mapping[str, Any]], nn.Module]:
    def build(options: Mapping[str, Any]) -> nn.Module:
        name = options.get("type")
        for registry in registries:
            with suppress(KeyError):
                make = registry.get(name)  # type: ignore[arg-type]  # nothing is registered as None
                break
        else:
            raise SpecError(f"reparam_swapped: net needs the type of a network of this codebase, but got type={name!r}")
        return make(**{key: value for key, value in options.items() if key != "type"})

    return build


Model = TypeVar("Model", bound=type)
_NETS = {"net_g": "net_g_ema", "netG": "netE"}
"""The attributes in which training codebases have the network, and its EMA."""
_AVERAGING = ("model_ema", "update_E")
"""The methods of BasicSR and KAIR that average parameters but not buffers."""


def reparam_model(model: Model) -> Model:
    """Adapt a model class of BasicSR (`SRModel` or a subclass), neosr, traiNNer-redux or KAIR to networks with blocks.

    It adds two things:

    - **A freeze schedule.** `train: freeze_bn_at: 0.9` in the option file freezes the batch norm statistics of the
      network and of its EMA from that share of the optimizer steps (`total_iter`) on. A value above 1 is the number of
      the step. It also works in a run that is resumed later. Weight and bias of the batch norms keep learning, in the
      same optimizer. If the codebase refuses unknown options, as traiNNer-redux does under `train`, put it under
      `network_g`.
    - **An EMA with buffers.** It averages buffers as well as parameters. The EMAs of BasicSR and KAIR average only
      parameters, so the batch norms of the average keep their initial statistics, and its outputs are wrong. The EMA of
      traiNNer-redux leaves out the counters.

    Source of the schedule: X. Wang, C. Dong, Y. Shan, "RepSR", ACM MM 2022, arXiv 2205.05671.

    Args:
        model: the class. Use this function as a decorator next to `@MODEL_REGISTRY.register()`, or call it with an
            existing class.

    Returns:
        A subclass of the same name.

    Raises:
        SpecError: when training starts, if `freeze_bn_at` is not a positive number, or is a share of a total that the
            options do not have, or if gradients are accumulated in a way that is not known here.

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

    class Reparam(model):  # type: ignore[misc, valid-type]  # the base class is a value
        def optimize_parameters(self, iteration: int, *rest: Any) -> None:
            first = first_frozen_step(self)
            if first < float("inf") and optimizer_step(self, iteration, rest) >= first:
                for _, net in _nets(self):
                    freeze_bn_stats(net)  # does nothing the second time
            super().optimize_parameters(iteration, *rest)
            _copy_counters(self)

    for name in _AVERAGING:
        if hasattr(model, name):
            setattr(Reparam, name, _with_buffers(getattr(model, name)))
    Reparam.__name__, Reparam.__qualname__, Reparam.__module__ = model.__name__, model.__qualname__, model.__module__
    Reparam.__doc__ = model.__doc__
    return Reparam  # type: ignore[return-value]  # a subclass of `model`


def _nets(model: Any) -> list[tuple[str, nn.Module]]:
    """The network and its EMA without their wrappers, as far as they exist."""
    names = [name for pair in _NETS.items() for name in pair]
    return [(name, _bare(net)) for name in names if isinstance(net := getattr(model, name, None), nn.Module)]


def _bare(net: nn.Module) -> nn.Module:
    """A network without wrappers. ema_pytorch's EMA, which traiNNer-redux uses, holds both networks."""
    net = unwrap(net)
    return unwrap(getattr(net, "ema_model", net))


def _with_buffers(average: Callable[..., None]) -> Callable[..., None]:
    """A method that averages parameters and then buffers."""

    @torch.no_grad()
    def averaged(self: Any, decay: float = 0.999) -> None:
        average(self, decay)
        nets = dict(_nets(self))
        for online, ema in _NETS.items():
            if ema in nets:
                ours = dict(nets[online].named_buffers())
                for name, buffer in nets[ema].named_buffers():
                    if buffer.is_floating_point():
                        buffer.lerp_(ours[name].to(buffer), 1 - decay)
                    else:
                        buffer.copy_(ours[name])

    return averaged


@torch.no_grad()
def _copy_counters(model: Any) -> None:
    """Copy integer buffers into ema_pytorch's EMA, which averages only buffers of floats."""
    if not hasattr(getattr(model, "net_g_ema", None), "ema_model"):
        return
    nets = dict(_nets(model))
    ours = dict(nets["net_g"].named_buffers())
    for name, buffer in nets["net_g_ema"].named_buffers():
        if not buffer.is_floating_point():
            buffer.copy_(ours[name])
