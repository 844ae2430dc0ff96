r"""Batch norm as a scale and a shift per channel, which follow from a mean and a variance.

$$\mathrm{BN}(z) = \gamma \frac{z - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta = s z + t,\qquad
  s = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}},\quad t = \beta - s \mu$$
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeGuard

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from ..algebra._axes import NORM
from ..errors import SpecError, StatisticsError, check_model
from ..numerics._precision import in_float64
from ._frozen import FrozenStatsBN
from ._known_norm import why_unknown
from ._population import Population
from ._running import move_running_stats

BatchNorm = _NormBase
"""The argument of the functions here: any torch `_BatchNorm` (1d, 2d, 3d, Sync, timm's with activation), or frozen."""

TORCH_NORMS = tuple(NORM.values())

Norms = Sequence[BatchNorm]
"""Batch norms of the same type and eps, whose channels are concatenated ("side by side")."""

NormChoice = bool | Callable[[int], nn.Module]
"""False: none. True: torch's BatchNorm. A callable: takes the channel count and returns a BatchNorm."""


class PopulationBN(_NormBase):
    """The class of every batch norm while it is recalibrated: it uses batch statistics and collects them."""

    population: Population
    passive: bool
    """Whether it still normalizes with its stored statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x of shape (N, C, *) with the statistics of x, or, if passive, with the stored ones."""
        self.population.add(*batch_moments(x))
        mean, var = (self.running_mean, self.running_var) if self.passive else (None, None)
        x = F.batch_norm(x, mean, var, self.weight, self.bias, not self.passive, 0.0, self.eps)
        for following in self.children():
            x = following(x)
        return x


def make_norm(choice: NormChoice, channels: int, ndim: int) -> BatchNorm | None:
    """Build the norm that an argument `bn` means, or return None."""
    if choice is False:
        return None
    if choice is not True and not callable(choice):
        raise SpecError(f"bn must be True, False or a callable that makes a batch norm, but got bn={choice!r}")
    norm = NORM[ndim](channels) if choice is True else choice(channels)
    if not is_norm(norm):
        raise SpecError(f"bn must make a batch norm, but {choice!r} made a {type(norm).__name__}")
    if why := why_unknown(norm):
        raise SpecError(f"bn must make a known type of batch norm, but {choice!r} made one that is not: {why}")
    return norm


def is_norm(module: nn.Module) -> TypeGuard[BatchNorm]:
    """Whether `module` is a batch norm, frozen or not."""
    return isinstance(module, (_BatchNorm, FrozenStatsBN, PopulationBN))


def norms(model: nn.Module) -> Iterator[tuple[str, BatchNorm]]:
    """Iterate over the batch norms of a model with their dotted names, each once."""
    check_model(model)
    for name, module in model.named_modules():
        if is_norm(module):
            yield name, module


def uses_batch_stats(bn: BatchNorm) -> bool:
    """Whether the next forward normalizes with the statistics of its batch."""
    if isinstance(bn, (FrozenStatsBN, PopulationBN)):
        return isinstance(bn, PopulationBN)
    return bn.training or bn.running_mean is None


def why_not_ready(bn: BatchNorm) -> str | None:
    """Why `bn` cannot be fused with its stored statistics now, or None if it can."""
    if bn.running_mean is None:
        return "it keeps no running statistics (track_running_stats=False), so it has no kernel"
    if isinstance(bn, FrozenStatsBN):
        return None
    if bn.training:
        return "it uses batch statistics (train mode): call model.eval() or freeze_bn_stats(model) first"
    return why_unseen(bn)


def why_unseen(bn: BatchNorm) -> str | None:
    """Why the stored statistics of `bn` count as the initial ones, or None if they do not."""
    seen = bn.num_batches_tracked
    if seen is None or seen.is_meta or int(seen) > 0:
        return None
    mean, var = bn.running_mean, bn.running_var
    if mean is not None and var is not None and bool(mean.any() | (var != 1).any()):
        return None  # from a file without a count of batches, such as weights converted from another framework
    return (
        "it never saw a batch (num_batches_tracked=0): train it, call recalibrate_bn_stats(model, batches), or, if "
        "this is an EMA copy, copy the buffers as well as the parameters"
    )


def scale_shift(bns: Norms, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Scale s and shift t, both (C,), of batch norms side by side, from these statistics."""
    scale = torch.rsqrt(var + bns[0].eps)
    if bns[0].weight is not None:
        scale = scale * side_by_side([bn.weight for bn in bns])
    if bns[0].bias is None:
        return scale, -mean * scale
    return scale, torch.addcmul(side_by_side([bn.bias for bn in bns]), mean, scale, value=-1)


def side_by_side(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Concatenate tensors; a single one is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def stored_scale_shift(bns: Norms, *_: object) -> tuple[Tensor, Tensor]:
    """Scale and shift of batch norms side by side, from their stored statistics.

    Raises:
        StatisticsError: if one uses batch statistics and so has no fixed scale and shift.
    """
    if any(map(uses_batch_stats, bns)):
        raise StatisticsError(
            "there is no kernel, because a batch norm uses batch statistics; it is a fixed scale and shift only in "
            "eval mode or with frozen statistics: call .eval() or freeze_bn_stats(model)"
        )
    mean, var = (side_by_side([getattr(bn, name) for bn in bns]) for name in ("running_mean", "running_var"))
    return scale_shift(bns, mean, var)


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance per channel of x (N, C, *), and the number of values per channel."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    if not x.shape[0]:  # an empty batch has no mean; 0 and 1, with zero gradient, are harmless
        nothing = x.sum(axes)
        return nothing, nothing + 1, 0
    var, mean = torch.var_mean(x, dim=axes, correction=0)
    return mean, var, x.numel() // x.shape[1]


def batch_scale_shift(bns: Norms, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Scale and shift of batch norms side by side, for a batch with this mean and biased variance.

    Updates their running statistics.
    """
    values: int | Tensor = count
    if isinstance(bns[0], nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized():
        mean, var, values = _over_processes(mean, var, count, bns[0].process_group)
    if isinstance(bns[0], PopulationBN):
        widths = [bn.num_features for bn in bns]
        for bn, its_mean, its_var in zip(bns, mean.split(widths), var.split(widths)):
            assert isinstance(bn, PopulationBN)  # norms side by side have the same type
            bn.population.add(its_mean, its_var, count)
        if bns[0].passive:
            mean, var = (side_by_side([getattr(bn, name) for bn in bns]) for name in ("running_mean", "running_var"))
    else:
        move_running_stats(bns, mean, var, values)
    return scale_shift(bns, mean, var)


def fused_batch_norm(bns: Norms, x: Tensor) -> Tensor:
    """Apply batch norms side by side with the statistics of x (N, C, *), in a single call of torch's batch norm."""
    own = next((tensor for tensor in (bns[0].running_mean, bns[0].weight) if tensor is not None), x)
    mean, var = own.new_zeros(x.shape[1]), own.new_ones(x.shape[1])  # float32 under autocast, like its weight
    weight, bias = (
        None if getattr(bns[0], name) is None else side_by_side([getattr(bn, name) for bn in bns])
        for name in ("weight", "bias")
    )
    y = F.batch_norm(x, mean, var, weight, bias, True, 1.0, bns[0].eps)  # leaves this batch's statistics in mean, var
    move_running_stats(bns, mean, var, x.numel() // x.shape[1], biased=False)
    return y


def _over_processes(
    mean: Tensor, var: Tensor, count: int, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Mean and variance over the batches of all processes, differentiable, and the count of values.

    One all-reduce carries everything, and no process waits for its device to report the count.
    """
    from torch.distributed.nn.functional import all_reduce  # not in every build of torch

    group = dist.group.WORLD if group is None else group
    processes = dist.get_world_size(group)
    if processes == 1:
        return mean, var, count
    of_all = mean.new_zeros(processes, 2 * len(mean) + 1)  # one row per process, zeros in those of the others
    of_all[dist.get_rank(group)] = torch.cat([mean, var, mean.new_full((1,), count)])
    means, variances, counts = all_reduce(of_all, group=group).split([len(mean), len(var), 1], 1)
    total = counts.detach().sum()
    shares = counts.detach() / total.clamp(min=1)
    mean = (means * shares).sum(0)
    return mean, ((variances + (means - mean).square()) * shares).sum(0), total  # free of cancellation


@torch.no_grad()
def move_statistics(bn: BatchNorm, mean: Tensor, var: Tensor, batches: int) -> None:
    """Replace the stored statistics of `bn`, and adapt its affine so that it scales and shifts as before."""
    assert bn.running_mean is not None and bn.running_var is not None and bn.weight is not None
    scale = in_float64(bn.weight) / (in_float64(bn.running_var) + bn.eps).sqrt()
    bn.weight.copy_(scale * (var + bn.eps).sqrt())
    if bn.bias is not None:
        bn.bias.copy_(in_float64(bn.bias) + scale * (mean - in_float64(bn.running_mean)))
    bn.running_mean.copy_(mean)
    bn.running_var.copy_(var)
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(batches)
