"""Measures the cost of training a block or network, relative to the plain one measured in the same run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from .._timing import race, ratio
from ..blocks import ECB, RepSRBlock, RepVGGBlock
from ..blocks._block import Fold
from ..blocks._conv_block import ConvBlock
from ..blocks._set_fold import set_fold
from ..bn._freeze import freeze_bn_stats
from ..bn._norm import norms
from ..fusing._fuse import fuse
from ..fusing._verify import verify
from ..models import create_model
from ._launches import launches
from ._setting import Setting

BLOCKS: tuple[type[ConvBlock], ...] = (RepSRBlock, ECB, RepVGGBlock)
FAMILIES = ("repsr", "ecbsr", "repvggsr", "collapsiblesr")
_PLAIN = ("", "", "")
"""The plain network or convolution, which all others are compared with."""
_HERE = Setting()
FOLDS: dict[str, Fold] = {"folded": True, "branches": False, "auto": "auto"}


@dataclass(frozen=True)
class BlockCost:
    """The cost of one way to train one block, relative to the plain convolution."""

    block: str
    """Class of the block."""
    channels: int
    """Channels of input and output."""
    phase: str
    """"batch statistics", "frozen", or "no BN"."""
    mode: str
    """"folded", "branches", or "auto", which chooses one of the two."""
    step: float
    """Time of forward and backward relative to the convolution's: the median of the ratios of all rounds."""
    saved: float
    """Bytes kept for the backward pass relative to the convolution's; parameters are not counted."""
    launches: int
    """Operations of forward and backward, uncompiled, each of which is sent to a GPU separately."""
    fuse_ms: float
    """Time to fuse the block, in milliseconds."""
    fuse_error: float
    """The largest difference of the fused convolution, relative to the largest output."""


@dataclass(frozen=True)
class TrainingCost:
    """The cost of one way to train a network, relative to the plain one. The last tenth has frozen batch norms."""

    model: str
    """Name for `create_model`."""
    mode: str
    """"plain" (the plain network itself), "folded", "branches", or "auto", which chooses one of the last two."""
    step: float
    """Mean time of a training step, relative to the plain network's."""
    learning: float
    """The same before the batch norms are frozen."""
    frozen: float
    """The same after they are frozen; equal to `learning` for a network without batch norms."""
    launches: int
    """Operations of forward and backward before freezing, uncompiled, each of which is sent to a GPU separately."""
    frozen_launches: int
    """The same after freezing."""


def bench_blocks(
    channels: int,
    batch: int = 16,
    size: int = 64,
    rounds: int = 20,
    progress: Callable[[], object] = lambda: None,
    *,
    setting: Setting = _HERE,
    blocks: Sequence[type[ConvBlock]] = BLOCKS,
) -> list[BlockCost]:
    """Measure the training cost of blocks at one width. They take turns in each round, so noise affects all equally.

    Args:
        channels: channels of input and output.
        batch: number of images.
        size: height and width of the images, in pixels.
        rounds: how often everything runs.
        progress: called after each round.
        setting: the device, and how the blocks run on it.
        blocks: the classes of the blocks.

    Returns:
        A row for each block, phase and mode.
    """
    x = torch.rand(batch, channels, size, size, device=setting.device, requires_grad=True)
    conv = nn.Conv2d(channels, channels, 3, padding=1, device=setting.device)
    ways = {way: block for make in blocks for way, block in _ways(make(channels).to(setting.device), x).items()}
    forwards = {way: setting.forward(module) for way, module in [(_PLAIN, conv), *ways.items()]}
    runs: dict[Hashable, Callable[[], object]] = {
        way: partial(_step, ways.get(way, conv), forward, x) for way, forward in forwards.items()
    }
    times = race(runs, rounds, progress, setting.device)
    plain = saved_bytes(conv, forwards[_PLAIN], x)
    rows = []
    for way, block in ways.items():
        saved = saved_bytes(block, forwards[way], x) / plain
        told = launches(partial(_step, block, setting.forward(block, compiled=False), x)).total()
        rows.append(
            BlockCost(way[0], channels, *way[1:], ratio(times, way, _PLAIN), saved, told, *_fused(block, x, setting))
        )
    return rows


def _fused(block: ConvBlock, x: Tensor, setting: Setting) -> tuple[float, float]:
    """The time of fusing, in milliseconds, and the error of the result."""
    in_eval, fused = copy.deepcopy(block).eval(), []
    seconds = setting.seconds(lambda: fused.append(fuse(in_eval)))
    return 1000 * seconds, verify(in_eval, fused[0], x.detach()[:1]).total.relative


def bench_training(
    size: str = "m4c16",
    batch: int = 16,
    patch: int = 64,
    rounds: int = 20,
    progress: Callable[[], object] = lambda: None,
    *,
    setting: Setting = _HERE,
    families: Sequence[str] = FAMILIES,
    modes: Sequence[str] = tuple(FOLDS),
) -> list[TrainingCost]:
    """Measure training steps of whole x2 networks with Adam, before and after freezing, relative to the plain network.

    Args:
        size: size of the networks, as in their names.
        batch: number of images.
        patch: height and width of the images, in pixels.
        rounds: how often everything runs.
        progress: called after each round.
        setting: the device, and how the networks run on it.
        families: families of the networks, as in their names.
        modes: which of "folded", "branches" and "auto" to measure.

    Returns:
        A row for the plain network, and one for each family and mode.
    """
    x = torch.rand(batch, 3, patch, patch, device=setting.device)
    nets = {_PLAIN: create_model(f"plain_{size}_x2").to(setting.device)}
    for family, mode in product(families, modes):
        net = nets[family, mode, "learning"] = create_model(f"{family}_{size}_x2").to(setting.device)
        set_fold(net, FOLDS[mode])
        if any(norms(net)):
            frozen = nets[family, mode, "frozen"] = copy.deepcopy(net)
            frozen(x)
            freeze_bn_stats(frozen)
    runs: dict[Hashable, Callable[[], object]] = {
        way: _training(net, setting.forward(net), x) for way, net in nets.items()
    }
    times = race(runs, rounds, progress, setting.device)
    told = {
        way: launches(partial(_step, net, setting.forward(net, compiled=False), x)).total() for way, net in nets.items()
    }
    rows = [TrainingCost(f"plain_{size}_x2", "plain", 1.0, 1.0, 1.0, told[_PLAIN], told[_PLAIN])]
    for family, mode in product(families, modes):
        way = (family, mode, "learning")
        last = (family, mode, "frozen") if (family, mode, "frozen") in nets else way
        learning, frozen_step = (ratio(times, phase, _PLAIN) for phase in (way, last))
        step = 0.9 * learning + 0.1 * frozen_step
        rows.append(TrainingCost(f"{family}_{size}_x2", mode, step, learning, frozen_step, told[way], told[last]))
    return rows


def _training(net: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """A function that runs one training step."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        forward(x).abs().mean().backward()
        optimizer.step()

    return step


def saved_bytes(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes that a forward keeps for the backward pass: each storage once, without the module's own parameters.

    Under autocast, casts of parameters are kept as well, so they count.
    """
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = forward(x)  # keep it until everything is counted, so that no address is reused
    del y
    return sum(storages.values())


def _ways(block: ConvBlock, x: Tensor) -> dict[tuple[str, str, str], ConvBlock]:
    """The block in each phase and mode."""
    block(x)
    ways = {}
    for phase in ("batch statistics", "frozen") if any(norms(block)) else ("no BN",):
        for mode, fold in FOLDS.items():
            way = copy.deepcopy(block)
            set_fold(way, fold)
            if phase == "frozen":
                freeze_bn_stats(way)
            ways[type(block).__name__, phase, mode] = way
    return ways


def _step(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Run forward, and backward to the input and to every parameter."""
    x.grad = None
    module.zero_grad()
    y = forward(x)
    y.backward(torch.ones_like(y))
