"""Multiply-adds of a network as it is used: with every block as the one convolution that it is equal to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ..bn._norm import norms, why_unseen
from ..errors import SpecError
from ..modules._hooks import copy_module, drop_shared_hooks
from ..modules._like import tensor_like
from ._fuse import plain_copy, unwrap
from ._prove import inputs_of


@torch.no_grad()
def macs(net: nn.Module, example: Any) -> int:
    r"""Counts the multiply-adds of what `fuse(net)` runs, for any mode of `net`, trained or not.

    A convolution from $C_{in}$ to $C_{out}$ channels in $g$ groups takes
    $N \cdot H' W' \cdot C_{out} \cdot (C_{in} / g) \cdot k_H k_W$. Counted are convolutions, linear layers, and other
    products of matrices; activations, norms that stay and additions are not. Counters that put a hook on each layer
    (thop, torchinfo, ptflops), and torch's `FlopCounterMode` on the train graph, count what happens to run in a block:
    its branches, nothing at all, or the sums that batch statistics are made of.

    Args:
        net: any network; it is not changed.
        example: an input, of which only the shape counts: a tensor, a tuple of positional arguments, or a dict of
            arguments by keyword; or the shape of a tensor, batch included.

    Returns:
        The multiply-adds for the whole example; torch counts two operations for each.

    Raises:
        SpecError: for a shape that is not one.
        FuseError: if the network cannot be fused for another reason than its mode or untrained statistics.

    Example:
        >>> from reparam import RepSRBlock
        >>> net = nn.Sequential(RepSRBlock(3, 8), nn.PReLU(8), RepSRBlock(8, 3))
        >>> macs(net, (1, 3, 10, 20)) == 10 * 20 * (3 * 8 * 9 + 8 * 3 * 9)
        True
    """
    model = copy_module(unwrap(net)).eval()
    drop_shared_hooks(model, net)
    for _, bn in norms(model):
        if bn.running_mean is not None and bn.num_batches_tracked is not None and why_unseen(bn):
            bn.num_batches_tracked.fill_(1)  # whatever the numbers are, as many are multiplied
    return multiply_adds(plain_copy(model), _input_for(model, example))


def multiply_adds(net: nn.Module, example: Any) -> int:
    """Of what a network runs as it is, which is done without numbers where it can be."""
    args, kwargs = inputs_of(example)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, FlopCounterMode(display=False) as counter:
            args_of_shape, kwargs_of_shape = tree_map_only(Tensor, fake.from_tensor, (args, kwargs))
            net(*args_of_shape, **kwargs_of_shape)
    except Exception:  # a forward that looks at its numbers
        with FlopCounterMode(display=False) as counter:
            net(*args, **kwargs)
    return int(counter.get_total_flops()) // 2


def _input_for(net: nn.Module, example: Any) -> Any:
    if not isinstance(example, Sequence) or not any(isinstance(size, int) for size in example):
        return example
    if not all(isinstance(size, int) and size > 0 for size in example):
        raise SpecError(f"the shape of an input is a row of whole numbers above 0, but got {tuple(example)}")
    return tensor_like(net).new_empty(tuple(example))
