"""What training a block costs, as ratios to a plain convolution of the same shape measured in the same run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..blocks import ECB, RepSRBlock, RepVGGBlock
from ..blocks._conv_block import ConvBlock
from ..blocks._set_fold import set_fold
from ..bn._freeze import freeze_bn_stats
from ..bn._norm import norms
from ..fusing._fuse import fuse
from ..fusing._verify import verify
from ..models import create_model
from ._race import race, ratio

BLOCKS: tuple[type[ConvBlock], ...] = (RepSRBlock, ECB, RepVGGBlock)
FAMILIES = ("repsr", "ecbsr", "repvggsr", "collapsiblesr")


@dataclass(frozen=True)
class BlockCost:
    """One way to train one block, against the plain convolution."""

    block: str
    """Class of the block."""
    channels: int
    """Of input and output."""
    phase: str
    """"batch statistics", "frozen", or "no BN"."""
    mode: str
    """"folded" or "branches"."""
    step: float
    """Time of forward and backward, over that of the convolution: the median of the ratios of all rounds."""
    saved: float
    """Bytes kept for the backward pass, over those of the convolution; parameters are not counted."""
    fuse_ms: float
    """Time to fuse the block, milliseconds."""
    fuse_error: float
    """Largest difference of the fused convolution, relative to the largest output."""


@dataclass(frozen=True)
class TrainingCost:
    """One way to train a network, nine tenths as it is and one tenth with frozen batch norms, against the plain one."""

    model: str
    """Name for `create_model`."""
    mode: str
    """"folded" (where `fold="auto"` chooses it) or "branches"."""
    step: float
    """Mean time of a training step, over that of the plain network."""


def bench_blocks(
    channels: int, batch: int = 16, size: int = 64, rounds: int = 20, progress: Callable[[], object] = lambda: None
) -> list[BlockCost]:
    """Measures every shipped block at one width; the ways take turns in each round, so that noise meets all alike.

    Args:
        channels: of input and output.
        batch: images.
        size: height and width in pixels.
        rounds: how often every way runs.
        progress: called after each round.
    """
    x = torch.rand(batch, channels, size, size, requires_grad=True)
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    ways = {way: block for make in BLOCKS for way, block in _ways(make(channels), x).items()}
    runs: dict[Hashable, Callable[[], object]] = {"": partial(_step, conv, x)}
    runs |= {way: partial(_step, block, x) for way, block in ways.items()}
    times = race(runs, rounds, progress)
    plain = saved_bytes(conv, x)
    rows = []
    for way, block in ways.items():
        in_eval = copy.deepcopy(block).eval()
        start = time.perf_counter()
        fused = fuse(in_eval)
        fuse_ms = 1000 * (time.perf_counter() - start)
        error = verify(in_eval, fused, x.detach()[:1]).total.relative
        saved = saved_bytes(block, x) / plain
        rows.append(BlockCost(way[0], channels, way[1], way[2], ratio(times, way, ""), saved, fuse_ms, error))
    return rows


def bench_training(
    size: str = "m4c16",
    batch: int = 16,
    patch: int = 64,
    rounds: int = 20,
    progress: Callable[[], object] = lambda: None,
) -> list[TrainingCost]:
    """Measures training steps of whole networks x2 with Adam: both phases, folded and branch by branch."""
    x = torch.rand(batch, 3, patch, patch)
    ways: dict[Hashable, Callable[[], object]] = {"": _training(create_model(f"plain_{size}_x2"), x)}
    for family in FAMILIES:
        for mode in ("folded", "branches"):
            net = create_model(f"{family}_{size}_x2")
            set_fold(net, "auto" if mode == "folded" else False)
            ways[family, mode, "learning"] = _training(net, x)
            if any(norms(net)):
                frozen = copy.deepcopy(net)
                frozen(x)
                freeze_bn_stats(frozen)
                ways[family, mode, "frozen"] = _training(frozen, x)
    times = race(ways, rounds, progress)
    rows = []
    for family in FAMILIES:
        for mode in ("folded", "branches"):
            learning = ratio(times, (family, mode, "learning"), "")
            frozen_way = (family, mode, "frozen")
            frozen_step = ratio(times, frozen_way, "") if frozen_way in times else learning
            rows.append(TrainingCost(f"{family}_{size}_x2", mode, 0.9 * learning + 0.1 * frozen_step))
    return rows


def _training(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """A function that takes one step."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        net(x).abs().mean().backward()
        optimizer.step()

    return step


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes that a forward keeps for the backward pass: each storage once, without the module's own parameters."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x)  # alive until all is counted, so that no address is used twice
    del y
    return sum(storages.values())


def _ways(block: ConvBlock, x: Tensor) -> dict[tuple[str, str, str], nn.Module]:
    """The block in each phase, folded and branch by branch."""
    block(x)
    ways: dict[tuple[str, str, str], nn.Module] = {}
    for phase in ("batch statistics", "frozen") if any(norms(block)) else ("no BN",):
        for mode, fold in (("folded", True), ("branches", False)):
            way = copy.deepcopy(block)
            set_fold(way, fold)
            if phase == "frozen":
                freeze_bn_stats(way)
            ways[type(block).__name__, phase, mode] = way
    return ways


def _step(module: nn.Module, x: Tensor) -> None:
    """Forward, and backward to the input and to every parameter."""
    x.grad = None
    module.zero_grad()
    y = module(x)
    y.backward(torch.ones_like(y))
