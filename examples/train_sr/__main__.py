"""The command line: python -m examples.train_sr train --help, python -m examples.train_sr evaluate --help."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer import Option

from reparam import load_checkpoint

from .data import image_files, read_rgb
from .quality import bicubic, enlarge, luma, mean_quality, modulo_crop, quality
from .training import Recipe, Run
from .training import train as run_training

app = typer.Typer(no_args_is_help=True, help="Train and evaluate super-resolution networks on folders of images.")


class Schedule(str, Enum):
    cosine = "cosine"
    step = "step"
    constant = "constant"


class Loss(str, Enum):
    l1 = "l1"
    charbonnier = "charbonnier"


class Logger(str, Enum):
    csv = "csv"
    tensorboard = "tensorboard"


@app.command()
def train(
    images: Annotated[Path, Option("--train", exists=True, file_okay=False, help="Folder of images to train on.")],
    out: Annotated[Path, Option(file_okay=False, help="Folder for all results; a run in it is gone on with.")],
    val: Annotated[Path | None, Option(exists=True, file_okay=False, help="Folder of images to validate on.")] = None,
    model: Annotated[str, Option(help="Name for create_model; the scale and _y (luma) are part of it.")] = (
        "repsr_m4c16_x2"
    ),
    options: Annotated[str, Option(help="Further arguments of the network, as JSON.")] = "{}",
    steps: Annotated[int, Option(min=1, help="Training steps in all.")] = 100_000,
    batch: Annotated[int, Option(min=1, help="Patches in a batch, over all processes.")] = 32,
    patch: Annotated[int, Option(min=1, help="Height and width of a patch, in low-resolution pixels.")] = 64,
    lr: Annotated[float, Option(min=0, help="Learning rate at the start.")] = 5e-4,
    schedule: Annotated[Schedule, Option(help="How the learning rate falls.")] = Schedule.cosine,
    decay_every: Annotated[int, Option(min=1, help="Schedule step: it is halved every so many steps.")] = 25_000,
    loss: Annotated[Loss, Option(help="What is minimised.")] = Loss.l1,
    ema: Annotated[float, Option(min=0, max=1, help="Decay of the average that is validated and shipped; 0: none.")] = (
        0.999
    ),
    freeze_at: Annotated[float, Option(min=0, max=1, help="Fraction of the steps after which BN is frozen.")] = 0.9,
    precision: Annotated[str, Option(help="Of Fabric: 32-true, bf16-mixed, 16-mixed.")] = "32-true",
    seed: Annotated[int, Option(min=0, help="Of weights and data.")] = 0,
    validate_every: Annotated[int, Option(min=1, help="Steps.")] = 5_000,
    save_every: Annotated[int, Option(min=1, help="Steps from checkpoint to checkpoint.")] = 1_000,
    log_every: Annotated[int, Option(min=1, help="Steps.")] = 100,
    logger: Annotated[Logger, Option(help="Format of the log.")] = Logger.csv,
    workers: Annotated[int, Option(min=0, help="Processes that make batches; 0: the training itself.")] = 0,
    accelerator: Annotated[str, Option(help="Of Fabric: auto, cpu, cuda, mps.")] = "auto",
    devices: Annotated[str, Option(help="Of Fabric: a number, or auto. torchrun's word counts more.")] = "auto",
) -> None:
    """Train a network; the same command again goes on where it was killed."""
    recipe = Recipe(
        str(images), model, json.loads(options), steps, batch, patch, lr, schedule.value, decay_every, loss.value,
        ema, freeze_at, precision, seed,
    )  # fmt: skip
    run = Run(out, val, validate_every, save_every, log_every, logger.value, workers, accelerator, devices)
    result = run_training(recipe, run)
    for form in ("train", "fused"):
        if form in result:
            typer.echo(f"{form:5}: {result[form]['psnr_db']:.3f} dB, SSIM {result[form]['ssim']:.4f}")


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(exists=True, help="Weights that load_checkpoint reads.")],
    images: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of high-resolution images.")],
    device: Annotated[str, Option(help="Of torch.")] = "cpu",
) -> None:
    """Score a network on images that are made small by MATLAB's bicubic; PSNR and SSIM on luma, scale pixels shaved."""
    net = load_checkpoint(checkpoint).to(device)
    rows = {"bicubic": [], "network": []}
    table = Table("", "bicubic", "network", title=f"PSNR (dB) / SSIM on luma, x{net.scale}: {checkpoint.name}")
    for path in image_files(images):
        high = modulo_crop(read_rgb(path), net.scale)
        low = bicubic(high, 1 / net.scale)
        ours = {"bicubic": luma(bicubic(low, net.scale)), "network": enlarge(net, low)}
        for name, image in ours.items():
            rows[name].append(quality(image, luma(high), net.scale))
        table.add_row(path.stem, *(f"{r[-1].psnr_db:.2f} / {r[-1].ssim:.4f}" for r in rows.values()))
    means = [mean_quality(r) for r in rows.values()]
    table.add_row("mean", *(f"{m.psnr_db:.2f} / {m.ssim:.4f}" for m in means))
    Console().print(table)


if __name__ == "__main__":
    app()
