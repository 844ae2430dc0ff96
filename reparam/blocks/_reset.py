"""A fresh start for the blocks of a model."""

from __future__ import annotations

from torch import nn

from ..branches import Branch
from ..errors import ReparamError
from ..modules._start import fresh_start


def reset_parameters(model: nn.Module) -> list[str]:
    """Gives every block of a model a fresh start, as its constructor does, and leaves all other layers as they are.

    Code that walks over the modules of a network to initialise them reaches the convolutions and batch norms inside of
    the blocks too, and takes away the start that they train well from. This is the line after it.

    Args:
        model: any module.

    Returns:
        The dotted names of the blocks, and of branches that are used on their own.

    Raises:
        OptionError: if a block cannot be built anew, or was changed since it was built; it is named, and nothing is
            changed.
        StatisticsError: if a batch norm inside of a block was frozen; nothing is changed.

    Example:
        >>> from reparam import RepSRBlock
        >>> net = nn.Sequential(RepSRBlock(8), nn.PReLU(8))
        >>> for module in net.modules():
        ...     if isinstance(module, nn.BatchNorm2d):
        ...         _ = nn.init.ones_(module.weight)
        >>> reset_parameters(net)
        ['0']
        >>> round(net[0].branches[1].norm.weight.mean().item(), 3)
        0.1
    """
    blocks = _outermost(model)
    starts = []
    for name, block in blocks.items():
        try:
            has_own = type(block).reset_parameters is not Branch.reset_parameters
            starts.append(block.reset_parameters if has_own else fresh_start(block))
        except ReparamError as error:
            raise type(error)(f"block {name!r}: {error}") from None
    for start in starts:
        start()
    return list(blocks)


def _outermost(model: nn.Module) -> dict[str, Branch]:
    inside: set[nn.Module] = set()
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Branch) and module not in inside:
            found[name] = module
            inside.update(module.modules())
    return found
