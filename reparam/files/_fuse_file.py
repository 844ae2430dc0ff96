"""Fuses a checkpoint file into another file, and checks every block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._tables import table
from ..blocks._set_fold import set_fold
from ..branches import Branch
from ..errors import CheckpointError, FuseError
from ..fusing._find import find_blocks
from ..fusing._fuse import fuse, made_up_image
from ..models._registry import Network
from ..modules._hooks import copy_module
from ..numerics._precision import module_in_float64
from ._checkpoint import Path, blueprint_of, check_target, network_of, write_network
from ._finder import Contents, read_file
from ._found_blocks import find_blocks_in, set_eps
from ._layouts import Options
from ._layouts.base import PerBlock
from ._state_dict import fuse_found
from ._tensor_files import write_file
from ._writing import check_targets

_MOST_ROUNDING = 100
"""The allowed error of a fused block, in units of its dtype's rounding."""
_LOST_IN_SUMS = 1e-9
"""The error that branches that nearly cancel may have in float64 themselves."""


@dataclass(frozen=True)
class FusedBlock:
    """A block of a file, and the convolution that replaced it."""

    name: str
    """Dotted name in the file; empty if the file is one block."""
    kind: str
    """The layout that was recognized, or the class of a block of this library."""
    before: int
    """How many values the block had."""
    after: int
    """How many values the convolution has."""
    error: float
    """max |fused - block| / max |block| in float64, on random input with large values at the borders. It shows the
    effect of rounding the fused weights to the dtype of the file, and nothing else."""


@dataclass(frozen=True)
class FileReport:
    """What `fuse_file` did. `print` shows it as a table."""

    network: str | None
    """Class of the network, if it was recognized."""
    blocks: tuple[FusedBlock, ...]
    before: int
    """How many values the source file has."""
    after: int
    """How many values the file that was written has."""

    def __str__(self) -> str:
        titles = {"block": "", "kind": "", "values": ",", "fused": ",", "error": ".0e"}
        whole = ("the whole file", "", self.before, self.after, None)
        title = self.network or "Blocks of an unknown network"
        return f"{title}\n{table(titles, [*map(astuple, self.blocks), whole])}"


def fuse_file(
    source: Path,
    target: Path,
    *,
    keys: Literal["source", "reparam"] = "source",
    wrapper: str | None = None,
    eps: PerBlock[float] = None,
    identity: PerBlock[bool] = None,
    groups: PerBlock[int] = None,
    dilations: PerBlock[Sequence[int]] = None,
    bias: PerBlock[bool] = True,
    with_13: PerBlock[bool] = False,
    pool: PerBlock[bool] = None,
    **options: Any,
) -> FileReport:
    """Fuse the checkpoint `source`, check every block on random input, and write `target`.

    If an error is raised, `target` stays as it was.

    Args:
        source: the file to read, as for `load_checkpoint`.
        target: the file to write, as for `save_checkpoint`; it must not be `source`. A torch file gets the state dict
            under the same keys.
        keys: "source" for the keys of the authors' inference code, as `fuse_state_dict` returns them, or "reparam" for
            the keys of our network, which for the family `SRNet` are those of SRVGGNetCompact.
        wrapper: as for `load_checkpoint`.
        eps, identity, groups, dilations, bias, with_13, pool: as for `fuse_state_dict`.
        **options: arguments of the network's class, as for `load_checkpoint`; used if the network is built.

    Returns:
        What was found, and the error of every block.

    Raises:
        FileNotFoundError: if there is no `source`.
        SpecError: if `target` is `source`.
        CheckpointError: if `source` cannot be used.
        FuseError: if a batch norm never saw a batch, or a fused convolution differs from its branches by more than
            rounding explains, because weights are not finite or too large for the dtype.
    """
    check_targets([target], [source])
    contents = read_file(source, wrapper)
    told = Options(eps, identity, groups, dilations, bias, with_13, pool)
    options = options if identity is None else _with_identity(identity, options)
    net = _ours(contents, options)
    blocks = [] if net is not None or keys == "reparam" else find_blocks_in(contents.state_dict, told)
    if not blocks:
        net = network_of(contents, **options) if net is None else net
        return _fuse_network(net, contents, target, told, keys)
    fused = fuse_found(contents.state_dict, blocks)
    rows = []
    for block in blocks:
        kernel = {key: fused[theirs] for key, theirs in block.kernel_keys().items()}
        rows.append(_row(block.name, block.kind, block.block, kernel))
    write_file(fused, target, keys=_keys_for(target, contents))
    return FileReport(_network(contents), tuple(rows), numbers_of(contents.state_dict), numbers_of(fused))


def _with_identity(identity: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options of our network, where None means an identity wherever the channels match."""
    return {**options, "identity": None if identity else False}


def _network(contents: Contents) -> str | None:
    try:
        known = blueprint_of(contents)
    except CheckpointError:  # its blocks can be fused anyway
        return None
    return known[1].network.__name__ if known else None


def _ours(contents: Contents, options: dict[str, Any]) -> Network | None:
    """The network, if the file holds one of ours with blocks: the keys are ours already, and a note may describe it."""
    try:
        known = blueprint_of(contents)
        net = network_of(contents, **options) if known and known[1].names is None else None
    except CheckpointError:  # another network with blocks in the same places
        return None
    return net if net is not None and find_blocks(net) else None


def _fuse_network(net: Network, contents: Contents, target: Path, told: Options, keys: str) -> FileReport:
    blocks = find_blocks(net)
    if not blocks:
        raise CheckpointError(f"nothing to fuse: the file holds a {type(net).__name__} of plain convolutions")
    for name, block in blocks.items():
        set_eps(block, told.at(name).eps)
    plain: Network = fuse(net, example=made_up_image(net))
    rows = [
        _row(name, type(block).__name__, block, plain.get_submodule(name).state_dict())
        for name, block in blocks.items()
    ]
    if keys == "reparam":
        check_target(plain)
    write_network(plain, target, _keys_for(target, contents))
    sizes = numbers_of(contents.state_dict), numbers_of(plain.state_dict())
    return FileReport(type(net).__name__, tuple(rows), *sizes)


@torch.no_grad()
def _row(name: str, kind: str, block: Branch, kernel: Mapping[str, Tensor]) -> FusedBlock:
    exact, conv = module_in_float64(copy_module(block)).eval(), block.spec.new_conv().double()
    set_fold(exact, False)  # run the branches: a folded block would compare its own kernel with itself
    conv.load_state_dict({key: kernel[key].reshape(tensor.shape) for key, tensor in conv.state_dict().items()})
    size = [4 * k + 3 for k in block.spec.kernel_size]
    x = torch.randn(1, block.spec.in_channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for axis in range(2, x.dim()):
        for edge in (0, x.shape[axis] - 1):
            x.select(axis, edge).mul_(10)
    y = exact(x)
    error = float((conv(x) - y).abs().max() / y.abs().max().clamp(min=torch.finfo(y.dtype).tiny))
    if not error <= _MOST_ROUNDING * torch.finfo(kernel["weight"].dtype).eps + _LOST_IN_SUMS:  # true of nan, too
        raise FuseError(
            f"block {name!r} ({kind}) and its convolution differ by {error:.0e} of the output, more than rounding to "
            f"{kernel['weight'].dtype} explains; nothing was written. Check that all weights are finite and fit this "
            "dtype"
        )
    numbers = sum(tensor.numel() for tensor in kernel.values())
    return FusedBlock(name, kind, numbers_of(block.state_dict()), numbers, error)


def numbers_of(state_dict: Mapping[str, Tensor]) -> int:
    """How many values a state dict holds, integer tensors left out."""
    return sum(tensor.numel() for tensor in state_dict.values() if tensor.is_floating_point())


def _keys_for(target: Path, contents: Contents) -> tuple[str, ...]:
    return () if str(target).endswith(".safetensors") else contents.keys
