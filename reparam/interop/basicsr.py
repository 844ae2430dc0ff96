"""BasicSR, neosr, traiNNer-redux, KAIR: networks by name, the freeze schedule, an EMA that does not forget buffers."""

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
    """What BasicSR and its relatives call a registry."""

    def register(self, obj: Any) -> Any:
        """Makes `obj` known under its `__name__`."""

    def get(self, name: str) -> Any:
        """What is known under a name; a KeyError if nothing is."""


def register_archs(registry: Registry, *others: Registry) -> list[str]:
    """Makes our networks, and those of a training code with blocks swapped in, known to the code by name.

    In an option file they are then `type: reparam_repsr` and so on, with the arguments of the class, or
    `type: reparam_model` with a `name` for `create_model`:

        network_g:
          type: reparam_model
          name: repsr_m4c16_x2

    A network of the code itself, with its weights, and with blocks in place of its convolutions, is

        network_g:
          type: reparam_swapped
          net: {type: EDSR, num_in_ch: 3, num_out_ch: 3, upscale: 2}   # as the code builds it
          weights: edsr_x2.pth       # of the network without blocks; may be left out
          block: RepSRBlock          # or {type: ECB, expansion: 2.0}
          match: "body.*"            # as of swap_convs; may be left out
          calibrate: datasets/lr     # images for the statistics of the blocks' batch norms; may be left out

    so that optimizer, EMA and a run that is resumed all see the network with its blocks. The prefix is there because
    BasicSR has an ECBSR and an EDSR of its own. A `scale` that the code adds to every network may agree with the name.

    Args:
        registry: `basicsr.utils.registry.ARCH_REGISTRY`, or that of another code.
        *others: more registries, in which networks for `reparam_swapped` are looked for, as the `SPANDREL_REGISTRY` of
            traiNNer-redux.

    Returns:
        The names.

    Raises:
        SpecError: when a network is built, for an option of it that is wrong, which is named.
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
                make = registry.get(name)  # type: ignore[arg-type]  # None is a name that nothing has
                break
        else:
            raise SpecError(f"reparam_swapped: net must have the type of a network of this code, but got type={name!r}")
        return make(**{key: value for key, value in options.items() if key != "type"})

    return build


Model = TypeVar("Model", bound=type)
_NETS = {"net_g": "net_g_ema", "netG": "netE"}
"""Under which names training codes have the network, and its EMA."""
_AVERAGING = ("model_ema", "update_E")
"""Their methods that average parameters and no buffers, BasicSR's and KAIR's."""


def reparam_model(model: Model) -> Model:
    """Makes a model class of BasicSR (`SRModel`, or what derives from it), neosr, traiNNer-redux or KAIR train
    re-parameterizable networks well.

    - `train: freeze_bn_at: 0.9` in the option file freezes the batch norm statistics of the network and of its EMA
      from that share of the optimizer steps (`total_iter`) on, or from that step, if it is larger than 1, also in a
      run that is resumed later. The affine goes on learning, in the optimizer that is there. Where the code refuses
      options that it does not know, as traiNNer-redux does under `train`, it stands under `network_g`.
    - The EMA averages buffers as it does parameters. Those of BasicSR and KAIR know parameters only, so that the batch
      norms of the average keep the statistics of a fresh network, and what it computes is garbage; that of
      traiNNer-redux leaves out the counters.

    Source of the schedule: X. Wang, C. Dong, Y. Shan, "RepSR", ACM MM 2022, arXiv 2205.05671.

    Args:
        model: the class. Use it as a decorator next to `@MODEL_REGISTRY.register()`, or on an existing class.

    Returns:
        A subclass of the same name.

    Raises:
        SpecError: when training starts, for a `freeze_bn_at` that is no positive number, or a share of a total that the
            options do not tell, or if gradients are accumulated in a way that is not known.

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
        def optimize_parameters(self, iteration: int, *rest: Any) -> None:
            first = first_frozen_step(self)
            if first < float("inf") and optimizer_step(self, iteration, rest) >= first:
                for _, net in _nets(self):
                    freeze_bn_stats(net)  # nothing happens the second time
            super().optimize_parameters(iteration, *rest)
            _copy_counters(self)

    for name in _AVERAGING:
        if hasattr(model, name):
            setattr(Reparam, name, _with_buffers(getattr(model, name)))
    Reparam.__name__, Reparam.__qualname__, Reparam.__module__ = model.__name__, model.__qualname__, model.__module__
    Reparam.__doc__ = model.__doc__
    return Reparam  # type: ignore[return-value]  # a subclass of `model`


def _nets(model: Any) -> list[tuple[str, nn.Module]]:
    """The network and its EMA, out of their wrappers, those that there are."""
    names = [name for pair in _NETS.items() for name in pair]
    return [(name, _bare(net)) for name in names if isinstance(net := getattr(model, name, None), nn.Module)]


def _bare(net: nn.Module) -> nn.Module:
    """Out of all wrappers; the EMA of ema_pytorch, which traiNNer-redux uses, holds both networks."""
    net = unwrap(net)
    return unwrap(getattr(net, "ema_model", net))


def _with_buffers(average: Callable[..., None]) -> Callable[..., None]:
    """A method that averages parameters, and then buffers."""

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
    """Gives the EMA of ema_pytorch, which averages buffers of floats, the others as they are."""
    if not hasattr(getattr(model, "net_g_ema", None), "ema_model"):
        return
    nets = dict(_nets(model))
    ours = dict(nets["net_g"].named_buffers())
    for name, buffer in nets["net_g_ema"].named_buffers():
        if not buffer.is_floating_point():
            buffer.copy_(ours[name])
