"""Replace convolutions of an existing model by blocks that compute the same function."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .._tables import table
from ..algebra._axes import CONV
from ..algebra._kernels import Kernel
from ..blocks._at_once import compute_at_once
from ..blocks._conv_block import ConvBlock
from ..bn._freeze import collect_bn_stats, refuse_few
from ..bn._frozen import freezes_as_saved
from ..bn._norm import move_statistics, norms
from ..branches import Branch
from ..errors import ReparamError, SpecError, check_model
from ..modules._guard import why_replaced
from ..modules._hooks import keep_hooks
from ..modules._match import Match, matcher
from ..modules._shards import why_not_whole
from ._absorb import absorb
from ._carry_out import exchange
from ._foreign import readers
from ._fuse import unwrap

_PLAIN = tuple(CONV.values())


@dataclass(frozen=True)
class SwapReport:
    """The result of `swap_convs`; prints as a table."""

    swapped: tuple[str, ...]
    """Dotted names of the new blocks; a block used in several places is listed once."""
    skipped: dict[str, str]
    """Dotted names of convolutions that matched but could not be swapped, each with the reason."""

    def __str__(self) -> str:
        rows = [*((name, "swapped") for name in self.swapped)]
        rows += [(name, f"skipped: {why}") for name, why in self.skipped.items()]
        title = f"{len(self.swapped)} convolutions swapped, {len(self.skipped)} skipped"
        return f"{title}\n{table({'convolution': '', '': ''}, rows)}"


def swap_convs(
    model: nn.Module,
    block: Callable[..., ConvBlock],
    *,
    match: Match | None = None,
    calibrate: Iterable[Any] | None = None,
) -> SwapReport:
    r"""Replace convolutions of a model by blocks, in place, without changing what it computes in eval mode.

    The branches of each block start as usual, except one. That one gets the kernel of the convolution minus the sum of
    the others: $K_{j} = K_{conv} - \sum_{i \ne j} K_i$. So all branches can be trained. Name, geometry, dtype, device,
    memory format, mode, `requires_grad` and hooks stay. A convolution used in several places becomes one block used in
    these places, and one without a bias becomes a block without a bias. After training, `fuse(model)` returns a model
    with the original classes and keys. Create the optimizer after swapping: the parameters are new.

    Batch norms of the blocks start with mean 0, variance 1 and a scale that keeps the function in eval mode. On batch
    statistics the model computes something else at first. With `calibrate`, the statistics are measured, and the model
    starts near the same function in train mode too.

    Args:
        model: any module; it is changed. Remove wrappers such as DDP first.
        block: a block class, or a `functools.partial` of one with options, that takes `nn.Conv2d`'s arguments.
        match: which modules to swap: a shell pattern of the dotted name, several of them, a type, or a function of
            name and module. None means every convolution with more than one tap.
        calibrate: inputs for the model, as for `recalibrate_bn_stats`; the model runs on them in eval mode.

    Returns:
        The names of the swapped convolutions, and of those that were not swapped, with the reasons.

    Raises:
        SpecError: if `block` cannot be called, if nothing matches, if nothing can be swapped, if a module that `match`
            names without a pattern cannot be swapped, or if the model is wrapped or is itself a convolution. Then
            nothing is changed.
        StatisticsError: if `calibrate` has no batch or does not reach a block. Then the blocks are in place, with the
            statistics that they have without `calibrate`.

    Example:
        >>> from reparam import RepSRBlock, fuse
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(8), nn.Conv2d(8, 3, 3, padding=1)).eval()
        >>> x = torch.rand(1, 3, 9, 9)
        >>> before, keys = net(x), list(net.state_dict())
        >>> swap_convs(net, RepSRBlock).swapped
        ('0', '2')
        >>> torch.allclose(net(x), before, atol=1e-5), list(fuse(net).state_dict()) == keys
        (True, True)
    """
    check_model(model)
    if not callable(block):
        raise SpecError(f"block must be a class such as RepSRBlock, or a partial of one, but got {block!r}")
    found, skipped = _find(model, match), {}
    blocks: dict[int, nn.Module] = {}
    tied = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    read_by = readers(model)
    for name, conv in found.items():
        why = _why_not(conv, tied) or _why_read(conv, read_by)
        try:
            if why is None:
                blocks[id(conv)] = _block_for(conv, block)
        except ReparamError as error:
            why = str(error)
        if why is not None:
            skipped[name] = why
    report = SwapReport(tuple(name for name, conv in found.items() if id(conv) in blocks), skipped)
    if not blocks:
        raise SpecError(f"cannot swap: {report}" if found else _nothing(model, match))
    if named := [f"{name!r}: {why}" for name, why in skipped.items() if name in _names(match)]:
        raise SpecError(f"cannot swap the modules that match={match!r} names: {'; '.join(named)}")
    for conv in found.values():
        if id(conv) in blocks:
            keep_hooks(conv, blocks[id(conv)], None)
    exchange(model, blocks)
    compute_at_once(model)
    freezes_as_saved(model)
    if calibrate is not None:
        _calibrate(model, list(blocks.values()), calibrate)
    return report


def _find(model: nn.Module, match: Match | None) -> dict[str, nn.Module]:
    """The modules that match, each once and by its first name."""
    if why_not_whole(model):
        raise SpecError(
            f"cannot swap inside of a {type(model).__name__} that is sharded over processes: swap first, then shard"
        )
    if unwrap(model) is not model:
        raise SpecError(f"cannot swap inside of a {type(model).__name__}; pass the model inside of it")
    wanted = _predicate(match)
    inside: set[int] = set()  # the convolutions inside blocks are not swapped
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Branch):
            inside.update(map(id, module.modules()))
        elif id(module) not in inside and wanted(name, module):
            if module is model:
                raise SpecError(
                    f"cannot swap the model itself, a {type(model).__name__}, in place; put it into an nn.Sequential"
                )
            found[name] = module
    return found


def _predicate(match: Match | None) -> Callable[[str, nn.Module], bool]:
    if match is None:
        return lambda name, module: isinstance(module, _ConvNd) and math.prod(module.kernel_size) > 1
    meant = matcher(match)
    if callable(match):
        return meant
    return lambda name, module: meant(name, module) and isinstance(module, _ConvNd)


def _names(match: Match | None) -> Sequence[str]:
    """The names in `match`, if it consists of names."""
    return [match] if isinstance(match, str) else match if isinstance(match, (list, tuple)) else []


def _nothing(model: nn.Module, match: Match | None) -> str:
    convs = [name for name, module in model.named_modules() if isinstance(module, _ConvNd)]
    return (
        f"no convolution of {type(model).__name__} matches {match!r}; it has {len(convs)}: {', '.join(convs[:8])}"
        + (", ..." if len(convs) > 8 else "")
    )


def _why_not(conv: nn.Module, tied: Counter[int]) -> str | None:
    """Why this module cannot become a block, whatever the block."""
    kind = type(conv).__name__
    if hasattr(conv, "parametrizations"):
        return f"the weight of this {kind} is computed (parametrizations); call remove_parametrizations on it"
    if type(conv) not in _PLAIN:
        return f"{kind} is not one of {', '.join(c.__name__ for c in _PLAIN)}, and may compute something else"
    if why := why_replaced(conv):
        return why
    if "weight" not in conv._parameters or conv.weight is None:
        return f"the weight of this {kind} is not its own parameter (weight norm, pruning); remove that first"
    if conv._forward_pre_hooks:
        return f"this {kind} has forward pre-hooks, which may compute its weight; remove them first"
    if any(tied[id(p)] > 1 for p in conv._parameters.values() if p is not None):
        return f"a parameter of this {kind} belongs to another module too, which would no longer share it"
    if conv.weight.is_meta:
        return f"the weight of this {kind} is on the meta device and has no values"
    return None


def _why_read(conv: nn.Module, read_by: Mapping[int, str]) -> str | None:
    """Why a convolution must stay because other code reads its weight, or None if it is only called."""
    if id(conv) not in read_by:
        return None
    return f"the code of {read_by[id(conv)]} reads the weight of this {type(conv).__name__}, and a block has none"


def _block_for(conv: Any, make: Callable[..., ConvBlock]) -> ConvBlock:
    """Build a block that computes what `conv` does."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    geometry = {name: getattr(conv, name) for name in names}
    with torch.device("cpu"):
        block = make(**geometry, bias=conv.bias is not None, ndim=conv.weight.dim() - 2)
    weight = conv.weight.detach().cpu().double()
    bias = weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().cpu().double()
    absorb(block.double().eval(), Kernel(weight, bias))
    block.to(dtype=conv.weight.dtype).to(device=conv.weight.device).train(conv.training)
    for parameter in block.parameters():
        parameter.requires_grad_(parameter.requires_grad and conv.weight.requires_grad)
    if conv.weight.dim() == 4 and not conv.weight.is_contiguous():
        block.to(memory_format=torch.channels_last)
    block.swapped_from = type(conv).__name__  # tells `fuse` to leave blocks of other code
    return block


def _calibrate(model: nn.Module, blocks: Sequence[nn.Module], batches: Iterable[Any]) -> None:
    """Give the batch norms of the blocks the statistics of `batches`, and keep their scale and shift."""
    names = {bn: name for name, bn in norms(model)}
    found = [(names[bn], bn) for block in blocks for _, bn in norms(block) if bn.weight is not None]
    used, populations = collect_bn_stats(model, found, batches, passive=True)
    refuse_few(found, populations, used, "calibrate")
    for (_, bn), population in zip(found, populations):
        move_statistics(bn, *population.mean_var(), batches=used)
