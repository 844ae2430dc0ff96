"""Check that a module runs what its weights say: the forward of a known class, on its own weights, without hooks.

The algebra never runs a layer; it reads its weights. They determine what runs only if nobody has added another forward,
a hook or a class, as pruning, quantization and adapters do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..algebra._linear import linear_op
from ..bn._known_norm import runs_a_known_forward
from ..bn._norm import BatchNorm
from ._hooks import that_matter

_FIRST = "fuse first and quantize or adapt the fused network, or put the plain layer back"
_UNREGISTERED = linear_op.dispatch(object)
_REMEDIES = {  # by the Python module of the hook's class
    "torch.nn.utils.prune": "torch.nn.utils.prune.remove(layer, {name!r})",
    "torch.nn.utils.weight_norm": "torch.nn.utils.remove_weight_norm(layer, {name!r})",
    "torch.nn.utils.spectral_norm": "torch.nn.utils.remove_spectral_norm(layer, {name!r})",
}


_of_a_class = (
    torch.compiler.assume_constant_result  # if it took a module, the graph would depend on that module
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
    else torch.compiler.disable  # in older versions the graph breaks here
)


def is_read(module: nn.Module) -> bool:
    """Whether a folded step does everything that running this module does; modules inside it are not checked."""
    state = module.__dict__
    hooked = state["_forward_pre_hooks"] or state["_forward_hooks"]
    hooked = hooked and that_matter(state["_forward_pre_hooks"], state["_forward_hooks"])
    hooked = hooked or state["_backward_pre_hooks"] or state["_backward_hooks"]
    return not hooked and "forward" not in state and _known(type(module))


def all_read(module: nn.Module) -> bool:
    """Whether `is_read` holds for all modules inside, and all stages of chains have a kernel. Runs in every step."""
    is_chain = hasattr(type(module), "stages")
    for inner in module._modules.values():
        if inner is None:
            continue
        if not is_read(inner) or (inner._modules and not all_read(inner)):
            return False
        if is_chain and not is_stage(type(inner)):
            is_chain = False
            if not all(map(is_stage, map(type, module.stages()))):  # type: ignore[operator]  # a method, as chains have
                return False
    return True


def is_read_stage(stage: nn.Module) -> bool:
    """Whether a stage of a chain can run as the convolution that its weights describe."""
    return is_stage(type(stage)) and is_read(stage) and all_read(stage)


def is_unaltered(module: nn.Module) -> bool:
    """Whether `altered` would find nothing; faster."""
    return all_read(module) and why_not_read(module) is None


def altered(module: nn.Module) -> dict[str, str]:
    """Why the kernel of a module may differ from what runs, by the name of the module inside that is to blame.

    Hooks of the module itself do not count: the convolution that replaces it takes them over.
    """
    chains = [inner for inner in module.modules() if hasattr(type(inner), "stages")]
    stages = {id(stage) for chain in chains for stage in chain.stages()}  # type: ignore[operator]  # likewise
    found = {}
    for name, inner in module.named_modules():
        why = (why_hooked(inner) if name else None) or why_not_read(inner)
        if why is None and id(inner) in stages and not is_stage(type(inner)):
            why = f"{type(inner).__name__} is not known to be linear; {_FIRST}"
        if why:
            found[name] = why
    return found


def why_hooked(module: nn.Module) -> str | None:
    """Why hooks may change what this module computes, or None if they do not."""
    kind = type(module).__name__
    for hook in module._forward_pre_hooks.values():
        if remedy := _REMEDIES.get(type(hook).__module__):
            name = getattr(hook, "_tensor_name", None) or getattr(hook, "name", "weight")
            return (
                f"a hook of this {kind} computes its {name} in every forward; make it plain by "
                f"{remedy.format(name=name)}"
            )
    if hooks := that_matter(module._forward_pre_hooks, module._forward_hooks):
        if any(getattr(hook, "__module__", "").startswith("torch.distributed") for hook in hooks):
            return f"this {kind} is sharded by itself; shard the whole block, or a module around the block"
        names = ", ".join(getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks)
        return f"{kind} has forward hooks ({names}), which may change what it computes; remove them first"
    return None


def why_not_read(module: nn.Module) -> str | None:
    """Why the forward of a module may not be the one that its kernel was written for, or None if it is."""
    if why := why_replaced(module):
        return why
    name = type(module).__name__
    if _known(type(module)):
        return None
    if hasattr(module, "kernel_with"):
        return f"{name} has forward, kernel and kernel_with from different classes; define all three in one"
    return f"{name} has a forward of its own, which its kernel does not describe; {_FIRST}"


def why_replaced(module: nn.Module) -> str | None:
    """Why a module does not run the forward of its class, or None if it does."""
    name = type(module).__name__
    replaced = f"the forward of this {name} was replaced on the object; `del layer.forward` restores that of its class"
    return replaced if "forward" in vars(module) else None


def _is_stage(kind: Any) -> bool:
    """Whether modules of this class have a kernel, or are batch norms."""
    return issubclass(kind, BatchNorm) or hasattr(kind, "kernel_with") or linear_op.dispatch(kind) is not _UNREGISTERED


def _is_known(kind: Any) -> bool:
    """Whether a class runs the forward that its kernel was written for; True for a class without a kernel."""
    if hasattr(kind, "kernel_with"):
        return _is_consistent(kind)
    if issubclass(kind, BatchNorm):
        return runs_a_known_forward(kind)
    if issubclass(kind, _ConvNd):
        return all(getattr(kind, name).__module__ == _ConvNd.__module__ for name in ("forward", "_conv_forward"))
    known: Any = next((base for base in kind.__mro__ if base in linear_op.registry), object)
    return known is object or kind.forward is known.forward


def _is_consistent(kind: type) -> bool:
    """Whether the forward of a class of branches fits its kernels.

    It does if all come from the same class, or if only `kernel` was redefined and `forward` uses it. A subclass that
    redefines only `forward`, for example to add an activation, does not fit.
    """
    forward, kernel, kernel_with = (
        next(base for base in kind.__mro__ if name in vars(base)) for name in ("forward", "kernel", "kernel_with")
    )
    first = [base for base in kind.__mro__ if hasattr(base, "kernel_with")][-1]
    return issubclass(kernel, forward) if kernel_with is first else forward is kernel is kernel_with


_stages: Callable[[Any], bool] = cache(_is_stage)
_knowns: Callable[[Any], bool] = cache(_is_known)


@_of_a_class
def is_stage(kind: Any) -> bool:
    """See `_is_stage`."""
    return _stages(kind)


@_of_a_class
def _known(kind: Any) -> bool:
    """See `_is_known`."""
    return _knowns(kind)
