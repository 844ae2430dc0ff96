"""Trains a super-resolution network, on one process or on many; a run that is killed goes on exactly where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.loggers import CSVLogger, TensorBoardLogger
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import reparam
from reparam import BNFreezeSchedule, ConvBlock, bn_gap, fuse, inspect_model, swap_convs
from reparam.errors import CheckpointError
from reparam.sr import Network, SRNet, create_model, load_checkpoint, save_checkpoint

from .data import Batches, image_files, read_pair, read_patches_of
from .quality import Pair, validate


@dataclass(frozen=True)
class Recipe:
    """All that decides the outcome of a training."""

    train: str
    model: str
    options: dict[str, Any]
    steps: int
    batch: int
    patch: int
    lr: float
    schedule: str
    decay_every: int
    loss: str
    ema: float
    freeze_at: float
    precision: str
    seed: int
    start: str | None = None
    swap: str | None = None
    gain: float = 1.0
    last_gain: float = 1.0
    warmup: int = 0
    body: str | None = None


@dataclass(frozen=True)
class Run:
    """How it runs and what it tells, which does not change the outcome, rounding apart."""

    out: Path
    val: Path | None
    validate_every: int
    save_every: int
    log_every: int
    logger: str
    workers: int
    accelerator: str
    devices: str
    compiled: bool = False


def train(recipe: Recipe, run: Run) -> dict[str, Any]:
    """Trains, or goes on with what is in `run.out`; writes the weights and returns what they are worth."""
    fabric = make_fabric(recipe, run)
    fabric.seed_everything(recipe.seed, verbose=False)
    net, batches = fresh(recipe, fabric)
    ema = AveragedModel(net, use_buffers=True).eval().to(fabric.device)  # without the statistics of BN it is worthless
    model, optimizer = fabric.setup(net, Adam(net.parameters(), recipe.lr))
    forward = torch.compile(model) if run.compiled else model  # of the same parameters: checkpoints know nothing of it
    schedule = make_schedule(optimizer.optimizer, recipe)
    freeze = BNFreezeSchedule(net, recipe.steps, fraction=recipe.freeze_at)
    state = {
        "recipe": asdict(recipe),
        "step": 0,
        "model": model,
        "ema": ema,
        "optimizer": optimizer,
        "schedule": schedule,
        "freeze": freeze,
        "precision": fabric.strategy.precision,  # the scaler of float16
    }
    resume(fabric, run.out / "last.ckpt", state)

    val = [read_pair(path, net.scale) for path in image_files(run.val)] if run.val else []
    first = state["step"]
    fabric.print(f"{len(batches.pairs)} images, steps {first} to {recipe.steps}, {fabric.world_size} processes")
    total_loss = torch.zeros((), device=fabric.device)
    with Progress(*COLUMNS, refresh_per_second=1, disable=not fabric.is_global_zero) as bar:
        task = bar.add_task(recipe.model, total=recipe.steps, completed=first)
        for step, batch in enumerate(batches.loader(first, recipe.steps, run.workers), first):
            torch.manual_seed(seed_of(recipe.seed, step, fabric.global_rank))  # for what is random in a network
            freeze.step()
            low, high = (images.float() / 255 for images in fabric.to_device(batch))
            loss = loss_of(forward(low), high, recipe.loss)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            schedule.step()
            ema.multi_avg_fn = get_ema_multi_avg_fn(min(recipe.ema, (1 + step) / (10 + step)))  # short at the start
            ema.update_parameters(net)

            total_loss += loss.detach()
            state["step"] = done = step + 1
            bar.advance(task)
            if done % run.log_every == 0:
                mean_loss = total_loss / min(run.log_every, done - first)
                fabric.log_dict({"loss": mean_loss, "lr": optimizer.param_groups[0]["lr"]}, done)
                total_loss.zero_()
            if done % run.validate_every == 0 and fabric.is_global_zero:
                values = health(ema.module, low) | (validate(shipped(ema.module), val)._asdict() if val else {})
                fabric.log_dict(values, done)
                bar.print(f"step {done}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
            if done % run.save_every == 0 or done == recipe.steps:
                save(fabric, run.out / "last.ckpt", state)
    return finish(fabric, ema.module, val, recipe, run)


def fresh(recipe: Recipe, fabric: Fabric) -> tuple[Network, Batches]:
    """The network as it starts, and the batches that it will see."""
    net = load_checkpoint(recipe.start) if recipe.start else create_model(recipe.model, **recipe.options)
    if recipe.body:
        take_over_body(net, recipe.body)
    pairs = read_patches_of(Path(recipe.train), net.scale, net.colors, recipe.patch)
    batches = Batches(pairs, recipe.patch, recipe.batch, recipe.seed, fabric.global_rank, fabric.world_size)
    if recipe.swap:
        first = [low.float() / 255 for low, _ in batches.loader(0, 8, workers=0)]
        swap_convs(net, getattr(reparam, recipe.swap), calibrate=first)
    body: Any = net.body  # every network here has one
    scale_start(body, recipe.gain)
    scale_start(body[-1:], recipe.last_gain)
    return net.train().to(memory_format=torch.channels_last), batches


def take_over_body(net: Any, path: str) -> None:
    """Copies all layers but the last, which every scale has its own of; from RGB to luma, what they do with gray."""
    theirs: Any = load_checkpoint(path)
    for one in (net, theirs):
        if not isinstance(one, SRNet):  # whose body is the whole network
            raise CheckpointError(f"layers are taken over between networks like RepSR, not with {type(one).__name__}")
    weights = theirs.body[:-1].state_dict()
    if net.colors < theirs.colors and isinstance(theirs.body[0], nn.Conv2d):
        weights["0.weight"] = weights["0.weight"].sum(1, keepdim=True)
    try:
        net.body[:-1].load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the layers of {path} do not fit into {type(net).__name__}: number of blocks, channels and colors must be "
            "the same (but fused weights for RGB fit a network for luma), and fused weights need one named plain_..."
        ) from error


@torch.no_grad()
def scale_start(layers: Iterable[nn.Module], gain: float) -> None:
    """Multiplies what convolutions and blocks give at the start, but not the identity of a block."""
    if gain == 1:
        return
    for layer in layers:
        parts: Iterable[nn.Module] = [layer] * isinstance(layer, nn.Conv2d)
        if isinstance(layer, ConvBlock):  # a norm after the sum would undo what the branches do
            parts = layer.branches if layer.norm is None else [layer.norm]
        for part in parts:
            weights = [parameter for name, parameter in part.named_parameters() if not name.endswith("bias")]
            for weight in weights[-1:]:
                weight.mul_(gain)


COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def make_fabric(recipe: Recipe, run: Run) -> Fabric:
    """The engine; under torchrun, the numbers of processes and machines are torchrun's."""
    per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    make_logger = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}[run.logger]
    fabric = Fabric(
        accelerator=run.accelerator,
        devices=per_machine or run.devices,
        num_nodes=int(os.environ["WORLD_SIZE"]) // per_machine if per_machine else 1,
        precision=recipe.precision,  # type: ignore[arg-type]  # Fabric looks at it
        loggers=make_logger(run.out, name="logs"),
    )
    fabric.launch()
    return fabric


def make_schedule(optimizer: Optimizer, recipe: Recipe) -> LRScheduler:
    """To zero along a cosine, halved every so many steps, or constant; before, it may rise along a line."""
    falls: LRScheduler
    if recipe.schedule == "cosine":
        falls = CosineAnnealingLR(optimizer, recipe.steps)
    elif recipe.schedule == "step":
        falls = StepLR(optimizer, recipe.decay_every, gamma=0.5)
    else:
        falls = LambdaLR(optimizer, lambda step: 1.0)
    if recipe.warmup < 2:
        return falls
    rises = LinearLR(optimizer, start_factor=1 / recipe.warmup, total_iters=recipe.warmup - 1)
    return ChainedScheduler([falls, rises], optimizer)


def loss_of(output: Tensor, target: Tensor, kind: str) -> Tensor:
    """L1, or Charbonnier's smooth one."""
    if kind == "charbonnier":
        return ((output - target).square() + 1e-6).sqrt().mean()
    return F.l1_loss(output, target)


def seed_of(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def save(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Puts a whole checkpoint in place of the last one, or leaves that."""
    unfinished = path.with_suffix(".part")
    fabric.save(unfinished, state)
    if fabric.is_global_zero:
        unfinished.replace(path)


def resume(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Restores all that `state` names, if there is a checkpoint; it must be of the same recipe."""
    if not path.exists():
        return
    theirs = asdict(Recipe(**fabric.load(path)["recipe"]))  # an older version's lacks what it did not know
    if other := [f"{key}={theirs.get(key)!r}" for key, ours in state["recipe"].items() if theirs.get(key) != ours]:
        raise CheckpointError(f"cannot go on with {path}, of {', '.join(other)}: give the same, or another folder")
    fabric.load(path, state)


def shipped(net: nn.Module) -> Network:
    """What is shipped: the network fused, if there is something to fuse."""
    return fuse(net) if inspect_model(net).blocks else net  # type: ignore[return-value]  # of the class that was trained


def health(net: nn.Module, low: Tensor) -> dict[str, float]:
    """How far the stored statistics of BN are from those of a batch; see `bn_gap`."""
    gap = bn_gap(net, low)
    return {"bn_shift": gap.shift, "bn_worst_shift": gap.worst.worst_shift} if gap.worst else {}


def finish(fabric: Fabric, net: nn.Module, val: list[Pair], recipe: Recipe, run: Run) -> dict[str, Any]:
    """Writes the weights in both forms, and what they are worth."""
    result: dict[str, Any] = {"recipe": asdict(recipe)}
    if fabric.is_global_zero:
        forms: dict[str, Any] = {"train": net, "fused": shipped(net)}
        for name, form in forms.items():
            save_checkpoint(form, run.out / f"{name}.safetensors")
            result |= {name: validate(form, val)._asdict()} if val else {}
        (run.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    for logger in fabric.loggers:
        logger.finalize("success")
    fabric.barrier()
    return result
