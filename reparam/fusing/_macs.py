"""Count the multiply-adds of a network in use, with every block as the convolution that it equals."""

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
    r"""Count the multiply-adds of `fuse(net)`, for a network in any mode, trained or not.

    A convolution from $C_{in}$ to $C_{out}$ channels in $g$ groups takes
    $N \cdot H' W' \cdot C_{out} \cdot (C_{in} / g) \cdot k_H k_W$. The count includes convolutions, linear layers and
    other matrix products. It leaves out activations, additions and norms that stay.

    Other counters give other numbers on an unfused network. Those that put a hook on each layer (thop, torchinfo,
    ptflops), and torch's `FlopCounterMode` on the train graph, count what runs inside a block: its branches, nothing at
    all, or the sums for batch statistics.

    Args:
        net: any network; it is not changed.
        example: an input, of which only the shape matters: a tensor, a tuple of positional arguments, or a dict of
            keyword arguments; or the shape of a tensor, batch included.

    Returns:
        The multiply-adds for the whole example; torch counts each as two operations.

    Raises:
        SpecError: for an invalid shape.
        FuseError: if the network cannot be fused for a reason other than its mode or untrained statistics.

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
            bn.num_batches_tracked.fill_(1)  # the count does not depend on the values
    return multiply_adds(plain_copy(model), _input_for(model, example))


def multiply_adds(net: nn.Module, example: Any) -> int:
    """Count the multiply-adds of a network as it is, on the meta device if possible."""
    args, kwargs = inputs_of(example)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, FlopCounterMode(display=False) as counter:
            args_of_shape, kwargs_of_shape = tree_map_only(Tensor, fake.from_tensor, (args, kwargs))
            net(*args_of_shape, **kwargs_of_shape)
    except Exception:  # a forward that looks at values
        with FlopCounterMode(display=False) as counter:
            net(*args, **kwargs)
    return int(counter.get_total_flops()) // 2


def _input_for(net: nn.Module, example: Any) -> Any:
    if not isinstance(example, Sequence) or not any(isinstance(size, int) for size in example):
        return example
    if not all(isinstance(size, int) and size > 0 for size in example):
        raise SpecError(f"the shape of an input must consist of integers above 0, but got {tuple(example)}")
    return tensor_like(net).new_empty(tuple(example))
