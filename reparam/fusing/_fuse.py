"""Fuse: replace blocks by plain convolutions, on request, in a copy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ..blocks._set_fold import set_fold
from ..branches import Branch
from ..errors import FuseError, check_model
from ..modules._hooks import copy_module, drop_shared_hooks
from ..modules._like import tensor_like
from ..modules._match import Match
from ..modules._shards import why_not_whole
from ..modules._sound import unsound_in
from ..numerics._running import of_dtype
from ._carry_out import fuse_in_place, fused_copy
from ._find import WhatIsFused, find_all, find_blocks
from ._foreign import Plan, Survey, add_foreign, add_neighbors, given
from ._inspect import problems_in
from ._prove import CannotRunError, Spans, check_rounded, prove

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP, DataParallel, torch.compile and AveragedModel, in any nesting.

    Raises:
        FuseError: for a sharded model, because this process does not have all parameters.
    """
    check_model(model)
    if why := why_not_whole(model):
        raise FuseError(why)
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel, AveragedModel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile's OptimizedModule, known without importing the compiler
            model = model._modules["_orig_mod"]  # type: ignore[assignment]  # not None
        else:
            return model


@overload
def fuse(
    model: Branch | DataParallel[Any] | DistributedDataParallel | AveragedModel,
    *,
    example: Any = None,
    inplace: bool = False,
    batch_norms: bool | None = None,
    foreign: bool | None = None,
    skip: Match | None = None,
    strict: bool = False,
) -> nn.Module: ...


@overload
def fuse(
    model: ModuleT,
    *,
    example: Any = None,
    inplace: bool = False,
    batch_norms: bool | None = None,
    foreign: bool | None = None,
    skip: Match | None = None,
    strict: bool = False,
) -> ModuleT: ...


def fuse(
    model: nn.Module,
    *,
    example: Any = None,
    inplace: bool = False,
    batch_norms: bool | None = None,
    foreign: bool | None = None,
    skip: Match | None = None,
    strict: bool = False,
) -> nn.Module:
    """Replace every block of a model by the convolution that it equals.

    Kernels are computed in float64 and rounded once. Each convolution keeps the dtype, device, memory format, mode,
    hooks and `requires_grad` of its block. A block used in several places becomes one convolution used in these places.
    Wrappers (DDP, DataParallel, `torch.compile`, `AveragedModel`) are removed. Fusing a fused model returns a copy.

    Blocks are those of this library, and also any part of other code that has several layers and is linear in one
    value, whatever its class and however it is written. Such a region becomes one convolution if that costs no more
    multiply-adds; otherwise its parts become convolutions where this pays. Where the convolution goes:

    - A class with its own inference form (timm's, RepVGG's, MobileOne's, DBB's) keeps its class and runs that form,
      with its keys.
    - A module that is linear as a whole, or of a type registered with `kernel_of`, becomes a convolution or a linear
      layer.
    - Of layers in a row, the first becomes the convolution.
    - In all other cases the forward of the smallest enclosing module is rewritten, and the convolution is named `conv`
      (`conv2`, ...).

    With an `example`, `fuse` proves the result before it returns it. It runs the model and the fused model in float64,
    before rounding, and they may differ by no more than 1e-9. Then it checks every value of the result against the
    float64 value that it must round. Both run on copies in eval mode, without hooks that are plain functions, because
    such hooks act on the user's own objects.

    Args:
        model: a model that holds blocks, or a block itself, in eval mode or with frozen batch norms.
        example: an input to prove the result on: a tensor, a tuple of positional arguments, or a dict of keyword
            arguments, on the device of the model and of any real dtype. None: no proof.
        inplace: whether to change `model` itself instead of a copy.
        batch_norms: whether batch norms outside blocks are merged into the convolution or linear layer before them (or
            after them, if that layer does not pad); this changes the keys of both. None: only if the model holds no
            block of this library. With such a block, other layers keep their keys, so the original model loads them.
        foreign: whether blocks of other code are fused. None: yes, unless `swap_convs` put blocks into the model; then
            the original model loads the result.
        skip: what stays unchanged, with everything inside it: a shell pattern of the dotted name, several of them, a
            type, or a function of name and module.
        strict: whether to refuse a model of which anything stays that `skip` does not name: the parts that `left` of
            `inspect_model(model)` lists.

    Returns:
        The fused copy, or `model` if `inplace`. It has the class of the model, except that a block becomes an `nn.Conv`
        and a wrapper is removed.

    Raises:
        FuseError: in these cases, and the model is then unchanged:

            - There is nothing to fuse, or `skip` matches nothing.
            - A batch norm to be merged uses batch statistics or never saw a batch, or a value is not finite; each is
              named.
            - The result is not the same function on `example`, or the model does not run on it.
            - Something stays although `strict`.
            - `inplace` is used with a wrapped model or with a block itself.

    Example:
        >>> import torch
        >>> from reparam import ECB
        >>> net = nn.Sequential(ECB(3, 8), nn.PReLU(8), ECB(8, 3)).eval()
        >>> x = torch.rand(1, 3, 16, 16)
        >>> torch.allclose(fuse(net, example=x)(x), net(x), atol=1e-5)
        True
    """
    inner = unwrap(model)
    if inplace and inner is not model:
        raise FuseError(
            f"cannot fuse a {type(model).__name__} in place, because the wrapper keeps references to the replaced "
            "modules; fuse the model inside it, or use inplace=False for a fused copy without the wrapper"
        )
    find = partial(find_all, batch_norms=batch_norms, foreign=foreign, skip=skip)
    plan = _plan(inner, *find(inner), strict)
    if inplace and example is None:
        return fuse_in_place(inner, plan)
    plain = fused_copy(inner, plan)
    if example is not None:
        _prove(inner, plain, example, find)
    return fuse_in_place(inner, plan) if inplace else plain  # in place, layers of the copy may be reused


def _prove(model: nn.Module, plain: nn.Module, example: Any, find: Callable[[nn.Module], WhatIsFused]) -> None:
    """Raise a FuseError unless `plain` equals `model` on an example; see `fuse`."""
    exact = of_dtype(torch.float64, copy_module(model)).eval()
    blocks, found = find(exact)
    plan = _plan(exact, blocks, found)
    fused = fused_copy(exact, plan)
    for side in (exact, fused):
        drop_shared_hooks(side, model)
    set_fold(exact, False)  # run the branches: a folded block would be compared with itself
    check_rounded(plain, fused)  # before they run, which may change their buffers
    prove(exact, fused, example, _spans(found))


def _spans(found: Survey) -> Spans:
    """The spans in which values differ from the model's, because layers take over norms after or before them."""
    last = {id(pair.layers[0]): pair.norm for pair in found.neighbors if not pair.before}
    spans = {layer: {norm} for layer, norm in last.items()}
    for pair in found.neighbors:
        if pair.before:
            spans[id(pair.norm)] = {last.get(id(layer), layer) for layer in pair.layers}
    named = {found.names[start]: {found.names[id(end)] for end in ends} for start, ends in spans.items()}
    for name, block in found.blocks.items():
        for row in block.swallows.values() if block.is_in_place else ():
            start, end = (f"{name}.{part}".strip(".") for part in (row[0], row[-1]))
            named[start] = named.get(start, set()) | {end}
    return named


def _plan(model: nn.Module, blocks: Mapping[str, Branch], found: Survey, strict: bool = False) -> Plan:
    """Plan what becomes of the modules of a model, given what was found in it.

    Raises:
        FuseError: if there is nothing to fuse, or something cannot be fused now.
    """
    nothing = not (blocks or found.blocks or found.neighbors or found.refused)
    nothing = nothing and not any("fused_from" in vars(module) for module in model.modules())
    left = found.left if nothing or strict else {}
    stays = "".join(f"\n  {name or 'the model itself'}: {why}" for name, why in left.items())
    if nothing:
        raise FuseError(
            f"found no block to fuse in {type(model).__name__}; blocks are modules such as RepSRBlock, subclasses of "
            "reparam.Branch, types registered with kernel_of, and known modules of timm and others. "
            f"inspect_model(model) lists what it finds{stays and f'. What stays, and why:{stays}'}"
        )
    if strict and stays:
        raise FuseError(f"cannot fuse all of the model (strict=True); name what may stay in skip=:{stays}")
    if problems := [f"{name}: {why}" for name, why in problems_in(blocks, found).items()]:
        raise FuseError("cannot fuse the model:\n  " + "\n  ".join(problems))
    plan = Plan()
    add_foreign(plan, found.blocks.values())
    add_neighbors(plan, found.neighbors)
    for block in blocks.values():
        if id(block) not in plan.makes():
            plan.instead[id(block)] = partial(given, block.to_conv())
    _check_finite(plan, found)
    return plan


def _check_finite(plan: Plan, found: Survey) -> None:
    """Refuse kernels that are not finite although their parameters are: float16 ends at 65504."""
    made = {found.names[key]: make for key, make in plan.makes().items()}
    for edit in plan.edits:
        made |= {f"{found.names[id(edit.block.module)]}.{name}": make for name, make in edit.sets.items()}
    for name, make in made.items():
        layer = make(copy_module)
        if isinstance(layer, nn.Module) and (problems := unsound_in(layer, name)):
            key, why = next(iter(problems.items()))
            raise FuseError(
                f"cannot fuse the model: of {key!r}, once fused, {why.partition(';')[0]}, although its "
                "parameters are finite; the kernel is too large for the dtype, or a batch norm divides by zero"
            )


@contextmanager
def fused(model: nn.Module, **options: Any) -> Iterator[nn.Module]:
    """Deprecated: use `fuse(model.eval())`, which makes a copy too, and `model.train()` to continue training.

    Yields a fused copy in eval mode, of a model in any mode.
    """
    warnings.warn("fused(model) is deprecated: use fuse(model.eval())", DeprecationWarning, stacklevel=3)
    yield fuse(copy_module(unwrap(model)).eval(), **options)


def plain_copy(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """Copy a model in eval mode, fuse the copy if there is anything to fuse, and prove it if the example runs.

    Raises:
        FuseError: if a batch norm of a block uses batch statistics or never saw a batch, or the proof fails.
    """
    inner = unwrap(model)
    blocks, found = find_all(inner)
    if not (blocks or found.blocks or found.neighbors):
        return copy_module(inner).eval()
    plain = fused_copy(inner, _plan(inner, blocks, found))
    if example is not None:
        with suppress(CannotRunError):  # not every network runs in float64, or on a made-up input
            _prove(inner, plain, example.to(tensor_like(inner).device), find_all)
    return plain.eval()


def made_up_image(net: nn.Module) -> Tensor | None:
    """An input to prove a network of images on, (1, colors, 32, 32); None for a network without `colors`."""
    colors: Any = getattr(net, "colors", None)
    if not isinstance(colors, int):
        return None
    return torch.rand(1, colors, 32, 32, generator=torch.Generator().manual_seed(0))


def skeleton(model: nn.Module) -> nn.Module:
    """Give a model the structure of `fuse(model)` in place, with fresh weights, to load fused weights into it."""
    plan = Plan()
    for block in find_blocks(model).values():
        conv: nn.Module = block.spec.new_conv()
        conv.fused_from = type(block).__name__  # type: ignore[assignment]  # not declared by torch's class
        plan.instead[id(block)] = partial(given, conv)
    return fuse_in_place(model, plan)
