"""Reset a module to a fresh initialization, as if it were newly built.

The call that built the module runs again, and the values of the new module are copied into the tensors of the old one,
so optimizers and others keep their references. This repeats everything that a constructor does, in its order, and no
class needs its own code for it.
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

_REMEDY = "give it a reset_parameters of its own, or build it again"


class Recipe:
    """The call that built a module. Copies of the module share it; pickling keeps it if it can be pickled."""

    def __init__(self, make: Callable[[], nn.Module] | None) -> None:
        self.make = make

    def __deepcopy__(self, memo: dict[int, Any]) -> Recipe:
        return self

    def __reduce__(self) -> tuple[type[Recipe], tuple[Callable[[], nn.Module] | None]]:
        try:
            pickle.dumps(self.make)
        except Exception:  # an argument, such as a lambda, may raise anything; pickle the rest
            return Recipe, (None,)
        return Recipe, (self.make,)


def remembering(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap an `__init__` so that a module of exactly this class remembers the call that built it."""

    @wraps(init)
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        args = tuple(list(value) if isinstance(value, Iterator) else value for value in args)  # they are read twice
        given = (*args, *kwargs.values())
        if type(self).__init__ is wrapped and not any(isinstance(value, nn.Module) for value in given):
            vars(self)["_recipe"] = Recipe(partial(type(self), *args, **kwargs))
        init(self, *args, **kwargs)

    return wrapped


@torch.no_grad()
def fresh_start(module: nn.Module) -> Callable[[], None]:
    """Draw a fresh initialization for a module, and return the function that copies it into the module.

    Raises:
        OptionError: if the module cannot be built again, or was changed after it was built.
        StatisticsError: if a batch norm inside is frozen, since its statistics could not adapt to the new weights.
    """
    kind = type(module).__name__
    if frozen := [name for name, bn in norms(module) if kind_before(bn) is not type(bn)]:
        raise StatisticsError(
            f"cannot reset {kind}: the statistics of its batch norm {frozen[0]!r} are frozen and would not fit the new "
            "weights; call unfreeze_bn_stats(model) first"
        )
    fresh = _built_anew(module) if "_recipe" in vars(module) else _with_fresh_layers(module)
    ours, theirs = _tensors(module), _tensors(fresh)
    shapes, wanted = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (ours, theirs))
    if odd := sorted(dict(shapes.items() ^ wanted.items())):
        raise OptionError(
            f"cannot reset {kind}: it was changed after it was built, at {', '.join(map(repr, odd))}; undo that "
            f"(prune.remove, remove_parametrizations, ...), {_REMEDY}"
        )
    return partial(_take, ours, theirs)


def reset_layers(module: nn.Module) -> None:
    """Reset the layers inside a module that has no tensors itself, each by its `reset_parameters`, in order.

    Raises:
        OptionError: if a layer with parameters has no such method, or computes its parameters; then nothing is reset.
    """
    for layer in list(_layers(module)):
        layer.reset_parameters()
    renew(module)


def _layers(module: nn.Module) -> Iterator[Any]:
    """The outermost modules inside that have a `reset_parameters`."""
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
    """Repeat the call that built a module, on the CPU and with the CPU's random generator."""
    kind, make = type(module).__name__, vars(module)["_recipe"].make
    if make is None:
        raise OptionError(
            f"cannot reset {kind}: it came out of a pickle, which lost its arguments, because one is a lambda or a "
            "local function; use a function of a Python module instead, or build it again"
        )
    make = _on_default_device(make)
    with torch.device("cpu"):
        fresh = make()
        with torch.random.fork_rng(devices=[]):
            again = make()
    if handed_in := {type(inner).__name__ for inner in {*fresh.modules()} & {*again.modules()}}:
        raise OptionError(
            f"cannot reset {kind}: a callable that makes its branches uses an existing module "
            f"({', '.join(sorted(handed_in))}), whose start is unknown; build that module inside the callable, or "
            "build the block again"
        )
    return fresh


def _on_default_device(make: Any) -> Callable[[], nn.Module]:
    """The same call without its argument `device`, which may be meta."""
    call = signature(make.func).bind(*make.args, **make.keywords)
    call.arguments.pop("device", None)
    return partial(make.func, *call.args, **call.kwargs)


def _with_fresh_layers(module: nn.Module) -> nn.Module:
    """A copy of a module that was built from existing layers, each of them reset by its own method."""
    for name, own in _tensors(module).items():
        if "." not in name and own.numel():
            raise OptionError(f"cannot reset {type(module).__name__}: the start of {name!r} is unknown; {_REMEDY}")
    list(_layers(module))  # raises if a layer cannot be reset; copying it might fail
    copied = copy_module(module)
    reset_layers(copied)
    return copied


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)))


@torch.no_grad()
def _take(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, tensor in ours.items():
        tensor.copy_(theirs[name])
