"""The start of a module: the numbers that its constructor drew, drawn anew.

A module is built a second time, by the call that built it, and its tensors take over the values; they stay the objects
that optimizers and others hold. So all that a constructor does is done, in its order, and no class repeats it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from functools import partial, wraps
from inspect import signature
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..bn._frozen import kind_before
from ..bn._norm import norms
from ..errors import OptionError, StatisticsError
from ._constants import renew
from ._hooks import copy_module, that_matter

_REMEDY = "give it a reset_parameters of its own, or build it anew"


class Recipe:
    """The call that built a module: the same one in every copy, and pickled if that is possible."""

    def __init__(self, make: Callable[[], nn.Module] | None) -> None:
        self.make = make

    def __deepcopy__(self, memo: dict[int, Any]) -> Recipe:
        return self

    def __reduce__(self) -> tuple[type[Recipe], tuple[Callable[[], nn.Module] | None]]:
        try:
            pickle.dumps(self.make)
        except Exception:  # whatever an argument raises, as a lambda does; without it the module can be pickled
            return Recipe, (None,)
        return Recipe, (self.make,)


def remembering(init: Callable[..., None]) -> Callable[..., None]:
    """An `__init__` that keeps the call by which a module of its class was built, not one of a derived class's."""

    @wraps(init)
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        args = tuple(list(value) if isinstance(value, Iterator) else value for value in args)  # to be read twice
        given = (*args, *kwargs.values())
        if type(self).__init__ is wrapped and not any(isinstance(value, nn.Module) for value in given):
            vars(self)["_recipe"] = Recipe(partial(type(self), *args, **kwargs))
        init(self, *args, **kwargs)

    return wrapped


@torch.no_grad()
def fresh_start(module: nn.Module) -> Callable[[], None]:
    """Draws a start for a module, and returns the function that gives it to the module.

    Raises:
        OptionError: if the module cannot be built anew, or was changed since it was built.
        StatisticsError: if a batch norm inside was frozen, so that its statistics would never fit again.
    """
    kind = type(module).__name__
    if frozen := [name for name, bn in norms(module) if kind_before(bn) is not type(bn)]:
        raise StatisticsError(
            f"cannot reset {kind}: the statistics of its batch norm {frozen[0]!r} are frozen, and a fresh start has "
            "none yet; call unfreeze_bn_stats(model) first"
        )
    fresh = _built_anew(module) if "_recipe" in vars(module) else _with_fresh_layers(module)
    ours, theirs = _tensors(module), _tensors(fresh)
    shapes, wanted = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (ours, theirs))
    if odd := sorted(dict(shapes.items() ^ wanted.items())):
        raise OptionError(
            f"cannot reset {kind}: it was changed since it was built, at {', '.join(map(repr, odd))}; make it plain "
            f"again (prune.remove, remove_parametrizations, ...), {_REMEDY}"
        )
    return partial(_take, ours, theirs)


def reset_layers(module: nn.Module) -> None:
    """Resets all that a module without tensors of its own holds, each layer by its own `reset_parameters`, in order.

    Raises:
        OptionError: if a layer with parameters has none, or they are computed; nothing is reset then.
    """
    for layer in list(_layers(module)):
        layer.reset_parameters()
    renew(module)


def _layers(module: nn.Module) -> Iterator[Any]:
    """What can be reset, the outermost modules that can."""
    for name, layer in module.named_children():
        computed = "parametrizations" in layer._modules or bool(that_matter(layer._forward_pre_hooks))
        if hasattr(layer, "reset_parameters") and not computed:
            yield layer
        elif layer._parameters or computed:
            why = "computes its parameters" if computed else "has parameters and no reset_parameters"
            raise OptionError(
                f"cannot reset {type(module).__name__}: {name!r}, a {type(layer).__name__}, {why}; {_REMEDY}"
            )
        else:
            yield from _layers(layer)


def _built_anew(module: nn.Module) -> nn.Module:
    """What the call that built a module builds now, on the CPU, whose generator it draws from."""
    kind, make = type(module).__name__, vars(module)["_recipe"].make
    if make is None:
        raise OptionError(
            f"cannot reset {kind}: it came out of a pickle, which does not take along what it was built from, as there "
            "is a lambda or a local function among its arguments; use one of a module's, or build it anew"
        )
    make = _on_default_device(make)
    with torch.device("cpu"):
        fresh = make()
        with torch.random.fork_rng(devices=[]):
            again = make()
    if handed_in := {type(inner).__name__ for inner in {*fresh.modules()} & {*again.modules()}}:
        raise OptionError(
            f"cannot reset {kind}: what makes its branches hands in a module that exists already "
            f"({', '.join(sorted(handed_in))}), of which the start is not known; make it in there, or build it anew"
        )
    return fresh


def _on_default_device(make: Any) -> Callable[[], nn.Module]:
    """The same call without `device`, which may have been meta."""
    call = signature(make.func).bind(*make.args, **make.keywords)
    call.arguments.pop("device", None)
    return partial(make.func, *call.args, **call.kwargs)


def _with_fresh_layers(module: nn.Module) -> nn.Module:
    """A copy of a module that was given its layers, each of which had a fresh start of its own."""
    for name, own in _tensors(module).items():
        if "." not in name and own.numel():
            raise OptionError(f"cannot reset {type(module).__name__}: of {name!r} the start is not known; {_REMEDY}")
    list(_layers(module))  # a layer that cannot be reset may be one that cannot be copied
    copied = copy_module(module)
    reset_layers(copied)
    return copied


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)))


@torch.no_grad()
def _take(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, tensor in ours.items():
        tensor.copy_(theirs[name])
