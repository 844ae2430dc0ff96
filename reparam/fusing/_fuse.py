"""Fusing: plain convolutions in place of blocks, on request, in a copy."""

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
from ..errors import FuseError
from ..modules._hooks import copy_module, drop_shared_hooks
from ..modules._like import tensor_like
from ..modules._match import Match
from ..modules._shards import why_not_whole
from ..modules._sound import unsound_in
from ..numerics._running import of_dtype
from ._carry_out import fuse_in_place, fused_copy
from ._find import WhatIsFused, find_all, find_blocks
from ._foreign import Plan, Survey, add_foreign, add_neighbours, given
from ._inspect import problems_in
from ._prove import CannotRunError, Spans, check_rounded, prove

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside of DDP, DataParallel, torch.compile and AveragedModel, however nested.

    Raises:
        FuseError: for one that is sharded, whose numbers are not all here.
    """
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
    """Replaces every block of a model by the one convolution that it is equal to.

    Kernels are computed in float64 and rounded once. Each convolution keeps the dtype, device, memory format, mode,
    hooks and `requires_grad` of its block; a block used in several places becomes one convolution used in the same
    places. Wrappers (DDP, DataParallel, `torch.compile`, `AveragedModel`) are taken off. Fusing what is fused already
    gives a copy of it.

    Blocks are those of this library, and whatever of other codes is linear in one value and has several layers in it,
    in any class and spelling: such a region becomes one convolution if that costs no more multiply-adds than what it
    replaces, else its parts do. A class with an inference form of its own (timm's, RepVGG's, MobileOne's, DBB's)
    keeps its class and runs that form, with its keys; a module that is linear as a whole, or of a type registered
    with `kernel_of`, becomes a convolution or a linear layer; of layers in a row the first becomes it; else the
    forward of the smallest module around is rewritten, with the convolution under the name `conv` (`conv2`, ...).

    With an `example`, the result is proved before it is handed out: the model and what it is fused into run on it in
    float64, before anything is rounded, so that the two may differ by no more than 1e-9; then every number of the
    result is held next to the float64 one that it must round. Both run on copies in eval mode, without those hooks
    that are functions, which would tell the user's own data of it.

    Args:
        model: a model that holds blocks, or a block itself, in eval mode or with frozen batch norms.
        example: an input to prove the result on: a tensor, a tuple of positional arguments, or a dict of arguments by
            keyword, on the device of the model and of any real dtype. None: the result is not run.
        inplace: change `model` itself instead of a copy.
        batch_norms: whether batch norms outside of blocks go into the convolution or linear layer before them (or
            after them, where that pads nothing), which changes the keys of both. None: if the model holds no block of
            this library; next to one, other layers keep their keys, so that the model it was built from loads them.
        foreign: whether blocks of other codes are fused. None: unless `swap_convs` put blocks into the model, so that
            the model it was called on loads the result.
        skip: what stays as it is, with all that is in it: a shell pattern of the dotted name, several of them, a type,
            or a function of name and module.
        strict: whether to refuse a model of which anything stays without being asked to: what `left` of
            `inspect_model(model)` lists.

    Returns:
        The fused copy, or `model` if `inplace`: of the class of the model, but for a block, which becomes an `nn.Conv`,
        and for a wrapper.

    Raises:
        FuseError: if there is nothing to fuse; if a batch norm that would go uses batch statistics or never saw a
            batch, or a number is not finite, each named; if the result is not the same function on `example`, or the
            model does not run on it; if something stays though `strict`, or `skip` matches nothing; or if `inplace` is
            asked for a wrapped model or for a block itself. The model is unchanged then.

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
            f"cannot fuse a {type(model).__name__} in place, as the wrapper holds on to what would be replaced; fuse "
            "the model inside of it, or leave inplace=False for a fused copy without the wrapper"
        )
    find = partial(find_all, batch_norms=batch_norms, foreign=foreign, skip=skip)
    plan = _plan(inner, *find(inner), strict)
    if inplace and example is None:
        return fuse_in_place(inner, plan)
    plain = fused_copy(inner, plan)
    if example is not None:
        _prove(inner, plain, example, find)
    return fuse_in_place(inner, plan) if inplace else plain  # the copy is given up then, so that its layers may be used


def _prove(model: nn.Module, plain: nn.Module, example: Any, find: Callable[[nn.Module], WhatIsFused]) -> None:
    """Raises a FuseError unless `plain` is `model` on an example; see `fuse`."""
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
    """From the layers that take norms in, and norms before layers, to where the values are those of the model again."""
    last = {id(pair.layers[0]): pair.norm for pair in found.neighbours if not pair.before}
    spans = {layer: {norm} for layer, norm in last.items()}
    for pair in found.neighbours:
        if pair.before:
            spans[id(pair.norm)] = {last.get(id(layer), layer) for layer in pair.layers}
    named = {found.names[start]: {found.names[id(end)] for end in ends} for start, ends in spans.items()}
    for name, block in found.blocks.items():
        for row in block.swallows.values() if block.is_in_place else ():
            start, end = (f"{name}.{part}".strip(".") for part in (row[0], row[-1]))
            named[start] = named.get(start, set()) | {end}
    return named


def _plan(model: nn.Module, blocks: Mapping[str, Branch], found: Survey, strict: bool = False) -> Plan:
    """What becomes of the modules of a model in which these were found.

    Raises:
        FuseError: if nothing does, or something cannot now.
    """
    nothing = not (blocks or found.blocks or found.neighbours or found.refused)
    nothing = nothing and not any("fused_from" in vars(module) for module in model.modules())
    left = found.left if nothing or strict else {}
    stays = "".join(f"\n  {name or 'the model itself'}: {why}" for name, why in left.items())
    if nothing:
        raise FuseError(
            f"found no block to fuse in {type(model).__name__}; blocks are modules such as RepSRBlock, subclasses of "
            "reparam.Branch, types registered with kernel_of, and known modules of timm and others. "
            f"inspect_model(model) lists what is found{stays and f'. What stays, and why:{stays}'}"
        )
    if strict and stays:
        raise FuseError(f"cannot fuse all of the model; skip= names what may stay:{stays}")
    if problems := [f"{name}: {why}" for name, why in problems_in(blocks, found).items()]:
        raise FuseError("cannot fuse the model:\n  " + "\n  ".join(problems))
    plan = Plan()
    add_foreign(plan, found.blocks.values())
    add_neighbours(plan, found.neighbours)
    for block in blocks.values():
        if id(block) not in plan.makes():
            plan.instead[id(block)] = partial(given, block.to_conv())
    _check_finite(plan, found)
    return plan


def _check_finite(plan: Plan, found: Survey) -> None:
    """Finite numbers may make a kernel that is not, as float16 ends at 65504."""
    made = {found.names[key]: make for key, make in plan.makes().items()}
    for edit in plan.edits:
        made |= {f"{found.names[id(edit.block.module)]}.{name}": make for name, make in edit.sets.items()}
    for name, make in made.items():
        layer = make(copy_module)
        if isinstance(layer, nn.Module) and (problems := unsound_in(layer, name)):
            key, why = next(iter(problems.items()))
            raise FuseError(
                f"cannot fuse the model: of {key!r}, once fused, {why.partition(';')[0]}, in a kernel "
                "made of finite numbers; they are too large for the dtype, or a batch norm divides by zero"
            )


@contextmanager
def fused(model: nn.Module, **options: Any) -> Iterator[nn.Module]:
    """Deprecated: `fuse(model.eval())`, which does not change the blocks either; a training goes on by `model.train()`.

    A fused copy in eval mode, of a model in any mode.
    """
    warnings.warn("fused(model) is deprecated: take fuse(model.eval())", DeprecationWarning, stacklevel=3)
    yield fuse(copy_module(unwrap(model)).eval(), **options)


def plain_copy(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """A copy in eval mode, fused if there is anything to fuse, and proved on an example if the model runs on it.

    Raises:
        FuseError: if a batch norm of a block uses batch statistics or never saw a batch, or the proof fails.
    """
    inner = unwrap(model)
    blocks, found = find_all(inner)
    if not (blocks or found.blocks or found.neighbours):
        return copy_module(inner).eval()
    plain = fused_copy(inner, _plan(inner, blocks, found))
    if example is not None:
        with suppress(CannotRunError):  # not every network runs in float64, or on whatever was made up for it
            _prove(inner, plain, example.to(tensor_like(inner).device), find_all)
    return plain.eval()


def made_up_image(net: nn.Module) -> Tensor | None:
    """An input for a network of images to be proved on, (1, colors, 32, 32); None for one that says no `colors`."""
    colors: Any = getattr(net, "colors", None)
    if not isinstance(colors, int):
        return None
    return torch.rand(1, colors, 32, 32, generator=torch.Generator().manual_seed(0))


def skeleton(model: nn.Module) -> nn.Module:
    """The structure that `fuse(model)` has, with fresh weights, in place: a model into which fused weights load."""
    plan = Plan()
    for block in find_blocks(model).values():
        conv: nn.Module = block.spec.new_conv()
        conv.fused_from = type(block).__name__  # type: ignore[assignment]  # torch's class declares no such attribute
        plan.instead[id(block)] = partial(given, conv)
    return fuse_in_place(model, plan)
