"""Stack the parameters of many blocks and unstack their kernels, with the same gradients as for each block alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor


class Reached:
    """The blocks that the backward pass reached. Parameters of other blocks get None as gradient, not zeros."""

    def __init__(self) -> None:
        self.come_from([])

    def come_from(self, blocks: list[bool]) -> None:
        """Record the blocks at the start of a backward pass."""
        self.blocks, self._handed = blocks, set[int]()

    def own(self, gradient: Tensor) -> Tensor:
        """A gradient in its own memory; a sum passes the same tensor to all its terms.

        Torch checks who else holds a gradient before it assigns it to a parameter, but it cannot check for views.
        """
        try:
            address = gradient.untyped_storage().data_ptr()
        except NotImplementedError:  # for a batch of gradients
            return gradient.clone()
        if address in self._handed or not gradient.is_contiguous():
            return gradient.clone(memory_format=torch.contiguous_format)
        self._handed.add(address)
        return gradient


class Stack(torch.autograd.Function):
    """Stack the tensors at each place over all branches, all places in one launch."""

    @staticmethod
    def forward(ctx: Any, reached: Reached, each: int, branches: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.reached, ctx.each, ctx.branches = reached, each, branches
        places = [tensors[first : first + branches] for first in range(0, len(tensors), branches)]
        stacks = _stacks(places)
        ctx.mark_non_differentiable(*(t for t, its in zip(stacks, places) if not any(i.requires_grad for i in its)))
        return stacks

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        reached = [ctx.reached.blocks[index // ctx.each] for index in range(ctx.branches)]
        nothing = (None,) * ctx.branches
        parts = (nothing if gradient is None else ctx.reached.own(gradient).unbind() for gradient in gradients)
        return None, None, None, *(part if there else None for of_all in parts for part, there in zip(of_all, reached))


def _stacks(places: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    tensors = [tensor for its in places for tensor in its]
    if len({(tensor.dtype, tensor.device) for tensor in tensors}) > 1:
        return tuple(torch.stack(list(its)) for its in places)
    shapes = [(len(its), *its[0].shape) for its in places]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    return tuple(part.view(shape) for part, shape in zip(flat.split([*map(prod, shapes)]), shapes))


class Lone(torch.autograd.Function):
    """A part of the kernel of a branch that has no identical one."""

    @staticmethod
    def forward(ctx: Any, reached: Reached, tensor: Tensor) -> Tensor:
        ctx.reached = reached
        return tensor.unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, ctx.reached.own(gradient).squeeze(0)


class Unbind(torch.autograd.Function):
    """Unstack the kernels block by block: first all weights, then all biases."""

    @staticmethod
    def forward(ctx: Any, reached: Reached, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.reached, ctx.like = reached, [tensor.new_empty(()).expand(tensor.shape[1:]) for tensor in (weight, bias)]
        return *weight.unbind(), *bias.unbind()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, Tensor | None, Tensor | None]:
        blocks = len(gradients) // 2
        both = gradients[:blocks], gradients[blocks:]
        ctx.reached.come_from([any(gradient is not None for gradient in pair) for pair in zip(*both)])
        weight, bias = map(_stacked, both, ctx.like)
        return None, weight, bias


def _stacked(gradients: Sequence[Tensor | None], like: Tensor) -> Tensor | None:
    if all(gradient is None for gradient in gradients):
        return None
    return torch.stack([torch.zeros_like(like) if gradient is None else gradient for gradient in gradients])
