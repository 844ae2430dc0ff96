"""What training a block costs, as ratios to a plain convolution of the same shape measured in the same run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from .block import ConvBlock, set_fold
from .blocks import ECB, RepSRBlock, RepVGGBlock
from .freeze import freeze_bn_stats
from .fuse import fuse
from .models import create_model
from .norm import norms
from .verify import verify

BLOCKS: tuple[type[ConvBlock], ...] = (RepSRBlock, ECB, RepVGGBlock)


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
    """One way to train a RepSR, nine tenths on batch statistics and one tenth frozen, against the plain network."""

    model: str
    """Name for `create_model`."""
    mode: str
    """"folded" or "branches"."""
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
    ratios = _race({"": conv, **ways}, lambda module: _step(module, x), rounds, progress)
    plain = saved_bytes(conv, x)
    rows = []
    for way, block in ways.items():
        ready = copy.deepcopy(block).eval()
        start = time.perf_counter()
        fused = fuse(ready)
        fuse_ms = 1000 * (time.perf_counter() - start)
        error = verify(ready, fused, x.detach()[:1]).total.relative
        saved = saved_bytes(block, x) / plain
        rows.append(BlockCost(way[0], channels, way[1], way[2], median(ratios[way]), saved, fuse_ms, error))
    return rows


def bench_training(
    size: str = "m4c16",
    batch: int = 16,
    patch: int = 64,
    rounds: int = 20,
    progress: Callable[[], object] = lambda: None,
) -> list[TrainingCost]:
    """Measures training steps of a whole RepSR x2 with Adam: both phases, folded and branch by branch."""
    x = torch.rand(batch, 3, patch, patch)
    names = [(phase, mode) for phase in ("batch statistics", "frozen") for mode in ("folded", "branches")]
    nets: dict[object, nn.Module] = {"": create_model(f"plain_{size}_x2")}
    for phase, mode in names:
        net = create_model(f"repsr_{size}_x2")
        set_fold(net, "auto" if mode == "folded" else False)
        net(x)
        if phase == "frozen":
            freeze_bn_stats(net)
        nets[phase, mode] = net
    optimizers = {id(net): torch.optim.Adam(net.parameters(), 1e-4) for net in nets.values()}

    def step(net: nn.Module) -> None:
        optimizers[id(net)].zero_grad()
        net(x).abs().mean().backward()
        optimizers[id(net)].step()

    ratios = {way: median(its) for way, its in _race(nets, step, rounds, progress).items()}
    return [
        TrainingCost(f"repsr_{size}_x2", mode, 0.9 * ratios["batch statistics", mode] + 0.1 * ratios["frozen", mode])
        for mode in ("folded", "branches")
    ]


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
    ways = {}
    for phase in ("batch statistics", "frozen") if any(norms(block)) else ("no BN",):
        for mode, fold in (("folded", True), ("branches", False)):
            way = copy.deepcopy(block)
            set_fold(way, fold)
            if phase == "frozen":
                freeze_bn_stats(way)
            ways[type(block).__name__, phase, mode] = way
    return ways  # type: ignore[return-value]


def _step(module: nn.Module, x: Tensor) -> None:
    """Forward, and backward to the input and to every parameter."""
    x.grad = None
    module.zero_grad()
    y = module(x)
    y.backward(torch.ones_like(y))


def _race(
    modules: dict, run: Callable[[nn.Module], object], rounds: int, progress: Callable[[], object]
) -> dict[object, list[float]]:
    """Times of all modules over the first one's, round by round; two rounds to warm up are not counted."""
    ratios: dict[object, list[float]] = {way: [] for way in modules}
    for number in range(rounds + 2):
        times = {}
        for way, module in modules.items():
            run(module)  # not counted: it meets the caches and the memory that the one before it left
            start = time.perf_counter()
            run(module)
            times[way] = time.perf_counter() - start
        if number >= 2:
            plain = next(iter(times.values()))
            for way, seconds in times.items():
                ratios[way].append(seconds / plain)
        progress()
    return ratios
