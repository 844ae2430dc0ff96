"""Trains a super-resolution network: one loop, on one process or on many, which can be killed and goes on exactly."""

from __future__ import annotations

import json
import os
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
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from reparam import BNFreezeSchedule, create_model, fuse, inspect_model, save_checkpoint

from .data import Batches, image_files, load_pairs, read_rgb
from .quality import Quality, bicubic, enlarge, luma, mean_quality, modulo_crop, quality


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


@dataclass(frozen=True)
class Run:
    """Where and how it runs, which does not change the outcome."""

    out: Path
    val: Path | None
    validate_every: int
    save_every: int
    log_every: int
    logger: str
    workers: int
    accelerator: str
    devices: str


def train(recipe: Recipe, run: Run) -> dict[str, Any]:
    """Trains, or goes on with what is in `run.out`; returns (and writes) the quality of the trained network."""
    fabric = make_fabric(recipe, run)
    fabric.seed_everything(recipe.seed)
    net = create_model(recipe.model, **recipe.options)
    ema = AveragedModel(net, use_buffers=True)  # an average that forgot the statistics of BN could not be fused
    optimizer = Adam(net.parameters(), recipe.lr, fused=True)
    schedule = make_schedule(optimizer, recipe)
    freeze = BNFreezeSchedule(net, recipe.steps, fraction=recipe.freeze_at)
    ema.to(fabric.device)
    model, optimizer = fabric.setup(net, optimizer)
    state = {
        "model": model,
        "ema": ema,
        "optimizer": optimizer,
        "schedule": schedule,
        "freeze": freeze,
        "precision": fabric.strategy.precision,  # the scaler of float16
        "step": 0,
        "recipe": asdict(recipe),
    }
    last = run.out / "last.ckpt"
    if last.exists():
        resume(fabric, last, state, recipe)

    pairs = load_pairs(Path(recipe.train), net.scale, net.colors, recipe.patch)
    val = [read_rgb(path) for path in image_files(run.val)] if run.val else []
    batches = Batches(pairs, recipe.patch, recipe.batch, recipe.seed, fabric.global_rank, fabric.world_size)
    fabric.print(f"{len(pairs)} images, steps {state['step']} to {recipe.steps} on {fabric.world_size} processes")
    model.train()
    losses = torch.zeros((), device=fabric.device)
    with Progress(*_COLUMNS, refresh_per_second=1, disable=fabric.global_rank > 0) as bar:
        task = bar.add_task(recipe.model, total=recipe.steps, completed=state["step"])
        for step, batch in enumerate(batches.loader(state["step"], recipe.steps, run.workers), state["step"]):
            torch.manual_seed(seed_of(recipe.seed, step, fabric.global_rank))  # for what is random in a network
            freeze.step()
            low, high = (fabric.to_device(images).float() / 255 for images in batch)
            loss = loss_of(model(low), high, recipe.loss)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            schedule.step()
            ema.multi_avg_fn = get_ema_multi_avg_fn(min(recipe.ema, (1 + step) / (10 + step)))  # short at the start
            ema.update_parameters(net)

            state["step"] = done = step + 1
            losses += loss.detach()
            bar.advance(task)
            if done % run.log_every == 0:
                fabric.log_dict({"loss": losses / run.log_every, "lr": schedule.get_last_lr()[0]}, done)
                losses.zero_()
            if val and done % run.validate_every == 0 and fabric.global_rank == 0:
                score = validate(inference_copy(ema.module), val)
                fabric.log_dict({"psnr_db": score.psnr_db, "ssim": score.ssim}, done)
                bar.print(f"step {done}: {score.psnr_db:.3f} dB, SSIM {score.ssim:.4f}")
            if done % run.save_every == 0 or done == recipe.steps:
                save(fabric, last, state)
    return finish(fabric, ema.module.eval(), val, recipe, run)


_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def make_fabric(recipe: Recipe, run: Run) -> Fabric:
    """The engine; under torchrun, the numbers of processes and machines are torchrun's."""
    per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    make_logger = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}[run.logger]
    fabric = Fabric(
        accelerator=run.accelerator,
        devices=per_machine or run.devices,
        num_nodes=int(os.environ["WORLD_SIZE"]) // per_machine if per_machine else 1,
        strategy="ddp" if per_machine else "auto",
        precision=recipe.precision,
        loggers=make_logger(run.out, name="logs"),
    )
    fabric.launch()
    return fabric


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> LRScheduler:
    """To zero along a cosine, halved every so many steps, or constant."""
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, recipe.steps)
    if recipe.schedule == "step":
        return StepLR(optimizer, recipe.decay_every, gamma=0.5)
    return LambdaLR(optimizer, lambda step: 1.0)


def seed_of(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def loss_of(output: Tensor, target: Tensor, kind: str) -> Tensor:
    """L1, or Charbonnier's smooth one."""
    if kind == "charbonnier":
        return ((output - target).square() + 1e-6).sqrt().mean()
    return F.l1_loss(output, target)


def save(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Puts a whole checkpoint in place of the last one, or leaves that."""
    unfinished = path.with_suffix(".part")
    fabric.save(unfinished, state)
    if fabric.global_rank == 0:
        unfinished.replace(path)
    fabric.barrier()


def resume(fabric: Fabric, path: Path, state: dict[str, Any], recipe: Recipe) -> None:
    """Restores all that `state` names, in place."""
    fabric.load(path, state)
    theirs, ours = state["recipe"], asdict(recipe)
    if changed := [f"{key}={theirs.get(key)!r}" for key in ours if theirs.get(key) != ours[key]]:
        raise ValueError(f"{path} was made with {', '.join(changed)}; run it so again, or choose another folder")


def inference_copy(net: nn.Module) -> nn.Module:
    """The network as it is shipped: fused, if there is something to fuse."""
    return fuse(net.eval()) if inspect_model(net).blocks else net.eval()


def validate(net: nn.Module, images: list) -> Quality:
    """Mean quality on luma of images that are made small and enlarged again."""
    rows = []
    for image in images:
        high = modulo_crop(image, net.scale)
        rows.append(quality(enlarge(net, bicubic(high, 1 / net.scale)), luma(high), net.scale))
    return mean_quality(rows)


def finish(fabric: Fabric, net: nn.Module, val: list, recipe: Recipe, run: Run) -> dict[str, Any]:
    """Writes the weights and what they are worth."""
    result: dict[str, Any] = {"recipe": asdict(recipe)}
    if fabric.global_rank == 0:
        forms = {"train": net, "fused": inference_copy(net)}
        for name, form in forms.items():
            save_checkpoint(form, run.out / f"{name}.safetensors")
            if val:
                result[name] = validate(form, val)._asdict()
        (run.out / "result.json").write_text(json.dumps(result, indent=2))
    for logger in fabric.loggers:
        logger.finalize("success")
    fabric.barrier()
    return result
