"""The base class of blocks: a sum of branches with the same spec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, reduce
from itertools import chain
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..algebra import _kernels as kernels
from ..algebra._composition import place
from ..algebra._kernels import Kernel
from ..algebra._linear import LinearOp
from ..algebra._spec import ConvSpec, Pads
from ..bn._norm import (
    BatchNorm,
    NormChoice,
    Norms,
    batch_scale_shift,
    is_norm,
    make_norm,
    stored_scale_shift,
    uses_batch_stats,
)
from ..branches import Branch
from ..branches._base import ScaleShift
from ..branches._chain import normalize
from ..branches._expand_squeeze import ExpandSqueezeStack, stacked
from ..branches._identity import is_plain, with_identities
from ..branches._weight import refuse_to_set
from ..errors import SpecError
from ..folding import cost
from ..folding._convolution import convolve
from ..folding.moments import PatchMoments, patch_moments, reaches_across, why_no_moments
from ..modules._guard import all_read, altered
from ..modules._inside import Remembered
from ..modules._start import Recipe
from ..numerics._autocast import as_conv_input, no_autocast
from ._kept import KeptKernel, may_be_kept
from ._share import Share

BranchFactory = Callable[[ConvSpec], Branch]
Fold = Literal["auto", True, False]
PHASES = ("batch statistics", "no batch statistics")
"""The phases of a block: a norm in its branches uses batch statistics, or none does."""


class ReparamBlock(Branch):
    r"""A sum of branches with the same spec, optionally with a batch norm after the sum. It equals one convolution.

    $$y = N\Big(\sum_j B_j(x)\Big) = \mathrm{conv}(x, W, b)$$

    A block is linear; the activation stays outside. A block is itself a branch, so blocks may be nested.

    Args:
        spec: the geometry of every branch and of the whole.
        branches: callables that take the spec and return a branch: branch classes, or a `functools.partial` of them.
        bn: whether a batch norm follows the sum, or a callable that makes one from the channel count.
        fold: whether training runs one convolution instead of the branches. Its kernel is computed inside the graph, so
            the function and all gradients are the same. On batch statistics this needs the patch moments of the input.
            "auto" folds if the estimate of `reparam.folding.cost` says that it is faster, or if `tune_fold` measured
            that.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: without any branch, for a branch of another spec, for `bn` with a spec without bias, or for
            `fold=True` with a geometry that has no patch moments.

    Example:
        >>> from functools import partial
        >>> from reparam import ConvBNBranch, IdentityBranch
        >>> block = ReparamBlock(ConvSpec(8), [ConvBNBranch, partial(ConvBNBranch, kernel_size=1), IdentityBranch])
        >>> x = torch.rand(2, 8, 9, 7)
        >>> _ = block(x)  # the batch norms see a batch
        >>> block = block.eval()
        >>> torch.allclose(block.to_conv()(x), block(x), atol=1e-6)
        True
    """

    def __init__(
        self, spec: ConvSpec, branches: Iterable[BranchFactory], *, bn: NormChoice = False, fold: Fold = "auto"
    ) -> None:
        super().__init__(spec)
        factories = list(branches)  # a reset needs them again
        vars(self).setdefault("_recipe", Recipe(partial(ReparamBlock, spec, factories, bn=bn)))
        self.branches = nn.ModuleList(factory(spec) for factory in factories)
        if not self.branches:
            raise SpecError("a block needs at least one branch, but got branches=[]")
        for index, branch in enumerate(self.branches):
            if not isinstance(branch, Branch) or branch.spec != spec:
                came = branch.spec if isinstance(branch, Branch) else type(branch).__name__
                raise SpecError(f"branch {index} must be a Branch of the block's spec ({spec}), but got {came}")
        if bn and not spec.bias:
            raise SpecError("a batch norm after the sum adds a bias, so bn needs a spec with bias=True")
        self.norm = make_norm(bn, spec.out_channels, spec.ndim)
        parts: list[float] = [branch.cost for branch in self.branches]  # type: ignore[misc]  # all are branches
        self.cost = sum(parts) + cost.ADDITION * spec.out_channels * (len(parts) - 1)
        self.cost += cost.BATCH_NORM * spec.out_channels * (self.norm is not None)
        self._of_run, self._of_kernel, self._folded = self._estimates()
        self._no_moments = why_no_moments(spec) or self._closed_branch()
        self.fold = fold
        self._inside, self._kept, self._share = Remembered(), KeptKernel(), Share()

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_to_set(self, name, value)
        super().__setattr__(name, value)

    def kernel(self) -> Kernel:
        """Compute the kernel of the whole block; see `Branch.kernel`."""
        self.check_read()
        return self.kernel_with(stored_scale_shift)

    def kernel_with(self, scale_shift_of: ScaleShift) -> Kernel:
        """Compute the kernel of the whole block; see `Branch.kernel_with`."""
        total = self._sum_of_kernels(scale_shift_of)
        if self.norm is None:
            return total
        whole = LinearOp(total, self.spec.stride, self.spec.dilation, self.spec.groups)
        return kernels.affine(total, *scale_shift_of([self.norm], whole, ((0, 0),) * self.spec.ndim))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the sum of the branches on x (N, in_channels, *size), one by one or folded into one convolution."""
        if self.training or torch.is_grad_enabled():
            self._kept.drop()
        x, read, live = as_conv_input(x), self._is_read(), self._norms_on_batch()
        folds = read and self._folds(x, live)
        if not live:
            self._share.wanted = folds and not torch.compiler.is_compiling()
        if folds:
            moments: list[PatchMoments] = []
            with no_autocast(x.device.type):
                weight, bias = self._kernel_on(x, live, moments)
                if not self.spec.bias:  # gives the branches' biases gradients of zero, which DDP requires
                    weight = weight + 0.0 * bias.sum()
            if moments:
                return convolve(x, weight, bias if self.spec.bias else None)
            return self.spec.convolve(x, weight, bias)
        total = self._sum(x, live) if read else reduce(torch.add, (branch(x) for branch in self.branches))
        return total if self.norm is None else normalize(self.norm, total)

    def _kernel_on(self, x: Tensor, live: Norms, moments: list[PatchMoments]) -> Kernel:
        """The kernel for x; patch moments, if needed, are appended to the list."""
        plain = type(self).kernel_with is ReparamBlock.kernel_with
        if plain and not (live or self.training) and may_be_kept(x):
            return self._kept.of(self, self._inside.of(self), partial(self.kernel_with, stored_scale_shift))
        return self.kernel_with(self._scale_shift_for(x, moments) if live else stored_scale_shift)

    @property
    def fold(self) -> Fold:
        """Whether the block runs as one convolution: always (True), never (False), or if it is faster ("auto")."""
        return self._fold

    @fold.setter
    def fold(self, fold: Fold) -> None:
        if why := self.why_not_fold(fold):
            raise SpecError(why)
        self._fold = fold
        self._chosen: Mapping[str, bool] = {}
        """Decisions for "auto" by phase, which replace the estimate."""

    def why_not_fold(self, fold: Fold) -> str | None:
        """Why this block cannot take this value of `fold`, or None if it can."""
        if fold not in ("auto", True, False):
            return f"fold must be 'auto', True or False, but got fold={fold!r}"
        if fold is True and self._no_moments and any(is_norm(module) for module in self.branches.modules()):
            return (
                f"fold=True is not possible on batch statistics for {self._no_moments}; use fold='auto', which runs "
                "the branches until their batch norms are frozen or in eval mode, and one convolution from then on"
            )
        return None

    def _is_read(self) -> bool:
        """Whether the branches run what their weights say; otherwise the branches themselves must run."""
        read = all_read(self)
        if not read and self.fold is True:
            name, why = next(iter(altered(self).items()), ("a backward hook", "it would not run"))
            raise SpecError(f"fold=True is not possible for {name!r}: {why}; or use fold='auto' to run the branches")
        return read

    def _folds(self, x: Tensor, live: Norms) -> bool:
        """Whether this forward runs one convolution, given the norms on batch statistics."""
        if self.fold is False or not live:
            kept = not (live or self.training) and may_be_kept(x)  # computed once
            return self.fold is True or (self.fold == "auto" and (kept or self._pays(x, live)))
        if live[0] is self.norm:  # only the norm after the sum, which computes its own from the sum
            return False
        if not x.shape[0]:  # an empty batch has no moments
            return False
        across = self._no_moments is None and reaches_across(self.spec, tuple(x.shape[2:]))
        if self.fold is True:
            if across:
                raise SpecError(
                    f"fold=True needs images of at least half the kernel, but got {tuple(x.shape[2:])} with "
                    f"kernel_size={self.spec.kernel_size}; use fold='auto'"
                )
            return True
        if self._no_moments or across:
            return False
        return self._pays(x, live)

    def _pays(self, x: Tensor, live: Norms) -> bool:
        """Whether one convolution is faster than the branches, by the tuned choice or the estimate."""
        on_batch, after = bool(live) and live[0] is not self.norm, bool(live) and live[-1] is self.norm
        if (chosen := self._chosen.get(PHASES[not on_batch])) is not None:
            return chosen
        after_sum = cost.BATCH_NORM * self.spec.out_channels * after
        pixels = x.numel() // x.shape[1] // prod(list(self.spec.stride))
        device = x.device.type
        run = self._of_run.step(pixels, device) + self.cost * pixels
        together = self._share.among if torch.is_grad_enabled() and not on_batch else 1
        return self._folded[on_batch].step(pixels, device, together) + after_sum * pixels < run

    def _estimates(self) -> tuple[cost.Work, cost.Work, tuple[cost.Work, cost.Work]]:
        """The work of running the branches, of computing the kernel, and of running it without or with batch stats."""
        parts, shape = self._parts(), cost.shape_of(self.spec)
        run = cost.Work(len(parts) - 1).and_then(*(part._of_run for part in parts))
        of_kernels = [part for part in parts if not is_plain(part)] or parts
        kernel = cost.on_kernel("a kernel that is added", shape, len(of_kernels) - 1)
        kernel = kernel.and_then(*(part._of_kernel for part in of_kernels))
        if len(of_kernels) < len(parts):
            kernel = kernel.and_then(cost.on_kernel("an identity that is added", shape))
        kernel = kernel._replace(shared=kernel.launches)
        if self.norm is not None:
            run = run.and_then(cost.running())
            kernel = kernel.and_then(cost.on_kernel("a scale and shift", shape))
        firsts = [part.branches[0] if isinstance(part, ExpandSqueezeStack) else part for part in parts]
        asked = sum(map(is_norm, chain.from_iterable(branch.modules() for branch in firsts)))
        channels = sum(module.num_features for module in self.branches.modules() if is_norm(module))
        folded = kernel.and_then(cost.plain(self.spec))
        return run, kernel, (folded, folded.and_then(cost.moments(self.spec, channels, asked)))

    def _norms_on_batch(self) -> Norms:
        """The batch norms inside that use batch statistics, the one after the sum last. Runs in every step."""
        compiling = torch.compiler.is_compiling()  # a compiler guards only what it sees in the trace
        norms = list(_norms(self)) if compiling else self._inside.of(self).norms
        return [bn for bn in norms if uses_batch_stats(bn)]

    def _sum(self, x: Tensor, live: Norms) -> Tensor:
        """The sum of the branches on x, one by one, or as one convolution if no branch uses batch statistics."""
        on_batch = live and live[0] is not self.norm
        if self.fold is False or on_batch or (self.fold == "auto" and not self._pays(x, live)):
            return reduce(torch.add, (part(x) for part in self._parts()))
        with no_autocast(x.device.type):
            kernel = self._sum_of_kernels(stored_scale_shift)
        return self.spec.convolve(x, *kernel)

    def _sum_of_kernels(self, scale_shift_of: ScaleShift) -> Kernel:
        if scale_shift_of is stored_scale_shift and (shared := self._share.take()):
            return shared
        parts = [part for part in self._parts() if not is_plain(part)]
        if not parts:
            return kernels.add(*(branch.kernel_with(scale_shift_of) for branch in self._parts()))
        total = kernels.add(*(part.kernel_with(scale_shift_of) for part in parts))
        return with_identities(total, sum(map(is_plain, self.branches)), self.spec)

    def _scale_shift_for(self, x: Tensor, moments: list[PatchMoments]) -> ScaleShift:
        """Scale and shift of each batch norm on this input; patch moments, if needed, are appended to the list."""

        def scale_shift_of(bns: Norms, op: LinearOp, ring: Pads) -> tuple[Tensor, Tensor]:
            if not uses_batch_stats(bns[0]):
                return stored_scale_shift(bns)
            if not moments:
                moments.append(patch_moments(x, self.spec.kernel_size))  # type: ignore[arg-type]  # two axes, as `_folds` made sure
            mean, var = moments[0].of(place(op, ring, self.spec))
            return batch_scale_shift(bns, mean, var, moments[0].count)

        return scale_shift_of

    def _closed_branch(self) -> str | None:
        """Name a branch with batch norms but without `kernel_with`, which cannot get scale and shift from outside."""
        for name, branch in self.branches.named_modules():  # also inside other branches
            opaque = isinstance(branch, Branch) and type(branch).kernel_with is Branch.kernel_with
            if opaque and any(is_norm(module) for module in branch.modules()):
                return f"branch {name}, a {type(branch).__name__} with batch norms and no kernel_with"
        return None

    def _parts(self) -> list[Branch | ExpandSqueezeStack]:
        return stacked(self.branches)  # type: ignore[arg-type]  # a ModuleList of branches only


def _norms(module: nn.Module) -> Iterator[BatchNorm]:
    """The batch norms inside, found in a way that compilers can trace."""
    for inner in module._modules.values():
        if inner is not None:
            if is_norm(inner):
                yield inner
            yield from _norms(inner)
