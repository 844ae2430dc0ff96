"""Reset the parameters of the blocks of a model."""

from __future__ import annotations

from torch import nn

from ..branches import Branch
from ..errors import ReparamError, check_model
from ..modules._start import fresh_start


def reset_parameters(model: nn.Module) -> list[str]:
    """Initialize every block of a model again as its constructor does; other layers are not changed.

    Call it after code that initializes all modules of a network. Such code also reaches the convolutions and batch
    norms inside blocks, and overwrites the initialization with which blocks train well.

    Args:
        model: any module.

    Returns:
        The dotted names of the blocks, and of branches that are used on their own.

    Raises:
        OptionError: if a block cannot be built again, or was changed after it was built; it is named. Then nothing is
            changed.
        StatisticsError: if a batch norm inside a block is frozen. Then nothing is changed.

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
    check_model(model)
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
    for module in model.modules():
        if scale_start := getattr(module, "_scale_start", None):  # a network with a start of its own
            scale_start(blocks.values())
    return list(blocks)


def _outermost(model: nn.Module) -> dict[str, Branch]:
    inside: set[nn.Module] = set()
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Branch) and module not in inside:
            found[name] = module
            inside.update(module.modules())
    return found
