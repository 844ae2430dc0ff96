"""The command line: python -m examples.train_sr --help, and --help after each command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from skimage import data, io
from typer import Argument, Option

from reparam import ConvBlock, ReparamError

from .evaluate import as_table, open_network
from .evaluate import evaluate as evaluate_network
from .summary import summary as summary_of
from .training import Recipe, Run
from .training import train as train_network

app = typer.Typer(no_args_is_help=True, help="Train and evaluate super-resolution networks on folders of images.")


def console() -> Console:
    """In a pipe or a file as wide as a table needs, where rich would cut it at 80 columns."""
    return Console(width=None if sys.stdout.isatty() else 1000)


class Schedule(str, Enum):
    cosine = "cosine"
    step = "step"
    constant = "constant"


class Loss(str, Enum):
    l1 = "l1"
    charbonnier = "charbonnier"


_BLOCKS = {name: name for name in sorted(block.__name__ for block in ConvBlock.__subclasses__())}
Block = Enum("Block", _BLOCKS, type=str)  # type: ignore[misc]  # members that are known at run time only


class Logger(str, Enum):
    csv = "csv"
    tensorboard = "tensorboard"


@contextmanager
def user_errors() -> Iterator[None]:
    """A mistake of the user's is a message and exit code 1, not a traceback."""
    try:
        yield
    except (ReparamError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@app.command()
def train(
    images: Annotated[Path, Option("--train", exists=True, file_okay=False, help="Folder of images to train on.")],
    out: Annotated[Path, Option(file_okay=False, help="Folder for all results; a run in it is gone on with.")],
    val: Annotated[Path | None, Option(exists=True, file_okay=False, help="Folder of images to validate on.")] = None,
    model: Annotated[str, Option(help="Name for create_model; the scale and _y for luma are part of it.")] = (
        "repsr_m4c16_x2"
    ),
    options: Annotated[dict, Option(parser=json.loads, help="Further arguments of the network, as JSON.")] = "{}",  # type: ignore[assignment]  # what the parser is given
    steps: Annotated[int, Option(min=1, help="Training steps in all.")] = 100_000,
    batch: Annotated[int, Option(min=1, help="Patches in a batch, all processes together.")] = 32,
    patch: Annotated[int, Option(min=1, help="Height and width of a patch, in low-resolution pixels.")] = 64,
    lr: Annotated[float, Option(min=0, help="Learning rate at the start, of Adam.")] = 5e-4,
    schedule: Annotated[Schedule, Option(help="How the learning rate falls.")] = Schedule.cosine,
    warmup: Annotated[int, Option(min=0, help="Steps over which the learning rate rises at the start.")] = 0,
    decay_every: Annotated[int, Option(min=1, help="With --schedule step: steps after which it is halved.")] = 25_000,
    loss: Annotated[Loss, Option(help="What is minimized.")] = Loss.l1,
    ema: Annotated[
        float, Option(min=0, max=1, help="Decay of the average of weights and statistics, which is shipped; 0: none.")
    ] = 0.999,
    freeze_at: Annotated[float, Option(min=0, max=1, help="Share of the steps after which BN is frozen; 1: never.")] = (
        0.9
    ),
    precision: Annotated[str, Option(help="Of Fabric: 32-true, bf16-mixed or 16-mixed.")] = "32-true",
    seed: Annotated[int, Option(min=0, help="Of weights and patches.")] = 0,
    start: Annotated[
        Path | None, Option(exists=True, dir_okay=False, help="Weights to go on from, in place of --model.")
    ] = None,
    body: Annotated[
        Path | None, Option(exists=True, dir_okay=False, help="Weights to take all layers but the last from.")
    ] = None,
    swap: Annotated[Block | None, Option(help="Block that takes the place of every convolution first.")] = None,
    gain: Annotated[
        float, Option(help="Factor on the kernels that the network starts with, without identities.")
    ] = 1.0,
    last_gain: Annotated[float, Option(help="Further factor on the last one of them.")] = 1.0,
    validate_every: Annotated[int, Option(min=1, help="Steps between validations.")] = 5_000,
    save_every: Annotated[int, Option(min=1, help="Steps between checkpoints.")] = 1_000,
    log_every: Annotated[int, Option(min=1, help="Steps between lines of the log.")] = 100,
    logger: Annotated[Logger, Option(help="Format of the log.")] = Logger.csv,
    workers: Annotated[int, Option(min=0, help="Processes that make the batches; 0: the training's own.")] = 0,
    accelerator: Annotated[str, Option(help="Of Fabric: auto, cpu, cuda or mps.")] = "auto",
    devices: Annotated[str, Option(help="Of Fabric: a number, or auto; torchrun has its own.")] = "auto",
    compiled: Annotated[bool, Option("--compile", help="Steps through torch.compile: for thousands of steps.")] = False,
) -> None:
    """Train a network; the same command again goes on where it was killed."""
    recipe = Recipe(
        train=str(images), model=model, options=options, steps=steps, batch=batch, patch=patch, lr=lr,
        schedule=schedule.value, decay_every=decay_every, loss=loss.value, ema=ema, freeze_at=freeze_at,
        precision=precision, seed=seed, start=str(start) if start else None, swap=swap.value if swap else None,
        gain=gain, last_gain=last_gain, warmup=warmup, body=str(body) if body else None,
    )  # fmt: skip
    run = Run(
        out=out, val=val, validate_every=validate_every, save_every=save_every, log_every=log_every,
        logger=logger.value, workers=workers, accelerator=accelerator, devices=devices,
        compiled=compiled,
    )  # fmt: skip
    with user_errors():
        result = train_network(recipe, run)
    for form in ("train", "fused"):
        if form in result:
            typer.echo(f"{form:5}: {result[form]['psnr_db']:.3f} dB, SSIM {result[form]['ssim']:.4f}")


@app.command()
def evaluate(
    checkpoint: Annotated[Path, Argument(exists=True, dir_okay=False, help="Weights, or a file in ONNX or OpenVINO.")],
    images: Annotated[Path, Argument(exists=True, file_okay=False, help="Folder of high-resolution images.")],
    device: Annotated[str, Option(help="Of torch.")] = "cpu",
) -> None:
    """Score a network on images made small by MATLAB's bicubic: PSNR and SSIM on luma, a border of the scale shaved."""
    with user_errors():
        net = open_network(checkpoint).to(device)
        rows = evaluate_network(net, images)
    console().print(as_table(rows, f"{checkpoint.name}, x{net.scale}: PSNR (dB) / SSIM on luma"))


@app.command()
def summary(
    runs: Annotated[list[Path], Argument(exists=True, file_okay=False, help="Folders of finished runs, as --out.")],
) -> None:
    """Print finished runs side by side; those that differ in their seed alone are one row."""
    with user_errors():
        table = summary_of(runs)
    console().print(table)


@app.command()
def photos(
    folder: Annotated[Path, Argument(file_okay=False, help="Gets the folders train and val.")],
) -> None:
    """Write photos that scikit-image ships, to try the other commands on."""
    for use, names in {"train": ("chelsea", "rocket", "camera", "coins"), "val": ("astronaut", "coffee")}.items():
        (folder / use).mkdir(parents=True, exist_ok=True)
        for name in names:
            io.imsave(folder / use / f"{name}.png", getattr(data, name)())


if __name__ == "__main__":
    app()
