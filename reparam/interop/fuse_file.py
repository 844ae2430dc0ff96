"""Fusing a file into a file, with proof."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..block import set_fold
from ..branches import Branch
from ..errors import CheckpointError
from ..fuse import fuse
from ..inspect import find_blocks
from ..norm import norms
from .checkpoint import Path, network_of, save_checkpoint
from .files import Contents, read_file, write_file
from .networks import recognise
from .state_dict import eps_of, find_blocks_in, fuse_found


@dataclass(frozen=True)
class BlockReport:
    """A block, and the convolution that it became."""

    name: str
    """Dotted name in the file; empty if the file is one block."""
    kind: str
    """Layout that was recognised, or the class of ours."""
    before: int
    """Numbers that the block had."""
    after: int
    """Numbers that the convolution has."""
    error: float
    """max |fused - block| / max |block| in float64, on random input with large borders: what rounding the fused weights
    to the dtype of the file does, and nothing else."""


@dataclass(frozen=True)
class FileReport:
    """What `fuse_file` did."""

    network: str | None
    """Class of the network, if it was recognised."""
    blocks: tuple[BlockReport, ...]
    before: int
    """Numbers in the file."""
    after: int
    """Numbers in the file that was written."""


def fuse_file(
    source: Path,
    target: Path,
    *,
    keys: Literal["source", "reparam"] = "source",
    wrapper: str | None = None,
    eps: float | Mapping[str, float] | None = None,
    with_13: bool = False,
    **options: Any,
) -> FileReport:
    """Fuses the checkpoint `source`, checks every block on random input, and writes `target`.

    Args:
        source: the file to read, as for `load_checkpoint`.
        target: the file to write, as for `save_checkpoint`; a torch file gets the wrapper of `source`.
        keys: "source" for those of the inference code that belongs to the file, as `fuse_state_dict` gives them, or
            "reparam" for those of our network, which are SRVGGNetCompact's where the network is of that kind.
        wrapper: as for `load_checkpoint`.
        eps: as for `fuse_state_dict`.
        with_13: as for `fuse_state_dict`.
        **options: `identity` as for `fuse_state_dict`, and those of the network's class, as for `load_checkpoint`.

    Raises:
        FileNotFoundError: if there is no `source`.
        CheckpointError: if `source` cannot be used; `target` is not touched.
        FuseError: if a batch norm never saw a batch.
    """
    contents = read_file(source, wrapper)
    before = _numbers(contents.state_dict)
    found = find_blocks_in(contents.state_dict, eps=eps, identity=options.get("identity"), with_13=with_13)
    known = recognise(contents.state_dict)
    if keys == "source" and found:
        fused = fuse_found(contents.state_dict, found)
        rows = tuple(_row(b.name, b.layout, b.block, *_kernel_of(fused, b.fused)) for b in found)
        write_file(fused, target, wrapper=_wrapper_for(target, contents))
        return FileReport(known[1].network.__name__ if known else None, rows, before, _numbers(fused))
    return _fuse_network(contents, target, before, eps, options)


def _fuse_network(contents: Contents, target: Path, before: int, eps: Any, options: dict[str, Any]) -> FileReport:
    if "identity" in options:
        options = {**options, "identity": None if options["identity"] else False}
    net = network_of(contents, **options)
    blocks = find_blocks(net)
    if not blocks:
        raise CheckpointError(f"nothing to fuse: the file holds a {type(net).__name__} of plain convolutions")
    for name, bn in norms(net):
        bn.eps = eps_of(eps, name) or bn.eps
    plain = fuse(net)
    fused = plain.state_dict()
    rows = tuple(_row(name, type(block).__name__, block, *_kernel_of(fused, name)) for name, block in blocks.items())
    save_checkpoint(plain, target, wrapper=_wrapper_for(target, contents))
    return FileReport(type(net).__name__, rows, before, _numbers(fused))


def _kernel_of(state_dict: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    weight, bias = (state_dict[f"{name}.{tensor}".removeprefix(".")] for tensor in ("weight", "bias"))
    return weight, bias


@torch.no_grad()
def _row(name: str, kind: str, block: Branch, weight: Tensor, bias: Tensor) -> BlockReport:
    exact, conv = copy.deepcopy(block).double().eval(), block.spec.build_conv(weight.double(), bias.double())
    set_fold(exact, False)  # run the branches: a folded block would be compared with itself
    size = [4 * k + 3 for k in block.spec.kernel_size]
    x = torch.randn(1, block.spec.in_channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for axis in range(2, x.dim()):
        for edge in (0, x.shape[axis] - 1):
            x.select(axis, edge).mul_(10)
    y = exact(x)
    error = float((conv(x) - y).abs().max() / y.abs().max().clamp(min=torch.finfo(y.dtype).tiny))
    return BlockReport(name, kind, _numbers(block.state_dict()), weight.numel() + bias.numel(), error)


def _numbers(state_dict: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state_dict.values() if tensor.is_floating_point())


def _wrapper_for(target: Path, contents: Contents) -> str | None:
    return None if str(target).endswith(".safetensors") else contents.wrapper
