"""The demo: in minutes, on real photos, train a RepSR, freeze its batch norms, fuse it, check it, and look at it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from skimage import color, data
from torch import Tensor, nn

from .._timing import race
from ..bn._freeze import freeze_bn_stats, unfreeze_bn_stats
from ..files._writing import written
from ..fusing._fuse import fuse
from ..fusing._verify import VerifyReport, verify
from ..models import create_model
from ._psnr import psnr_db

MODEL = "repsr_m4c16_x2"
SCALE, PATCH, BATCH, LEARNING_RATE, FREEZE_AT = 2, 32, 16, 4e-3, 0.9

_TRAINING: tuple[Callable[[], np.ndarray], ...] = (
    data.chelsea,
    data.rocket,
    data.hubble_deep_field,
    data.immunohistochemistry,
    lambda: data.stereo_motorcycle()[0],
    data.camera,
    data.brick,
    data.grass,
    data.gravel,
    data.coins,
)
_HELD_OUT: dict[str, Callable[[], np.ndarray]] = {"astronaut": data.astronaut, "coffee": data.coffee}


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured."""

    psnr_db: dict[str, dict[str, float]]
    """For each held-out photo, the PSNR on luma of "bicubic", "train graph" and "fused"."""
    parameters: tuple[int, ...]
    """The parameters of the train graph and of the fused network."""
    batch_step_ms: tuple[float, ...]
    """Time of a training step (forward, backward) of each, with batch statistics; medians of interleaved runs."""
    frozen_step_ms: tuple[float, ...]
    """The same with frozen statistics of the train graph."""
    inference_ms: tuple[float, ...]
    """Time of a forward without gradient of each on a 256x256 image; medians of interleaved runs."""
    report: VerifyReport
    """The fused network compared with the train graph."""
    weights: Path
    """The file of fused weights, which loads wherever Real-ESRGAN's compact network does."""
    picture: Path
    """The file of a picture: low resolution, bicubic, ours, original."""


def files_in(out: Path) -> tuple[Path, Path]:
    """The files that the demo writes into a folder: fused weights and a picture."""
    return out / f"{MODEL}.safetensors", out / "comparison.png"


def run_demo(out: Path, steps: int = 1200, seed: int = 0) -> DemoResult:
    """Train on the photos that scikit-image ships, and write fused weights and a picture into `out`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    net = create_model(MODEL)
    train(net, [as_pair(photo()) for photo in _TRAINING], steps, rng)
    net.eval()
    plain = fuse(net)

    pairs = {name: as_pair(photo()) for name, photo in _HELD_OUT.items()}
    methods: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": bicubic, "train graph": net, "fused": plain}
    outputs = {name: {how: enlarge(f, low) for how, f in methods.items()} for name, (low, _) in pairs.items()}
    scores = {
        name: {how: luma_psnr_db(image, pairs[name][1]) for how, image in images.items()}
        for name, images in outputs.items()
    }
    report = verify(net, plain, pairs["coffee"][0][None])
    weights, picture = _write(out, plain, *pairs["coffee"], outputs["coffee"])
    sizes = tuple(sum(p.numel() for p in model.parameters()) for model in (net, plain))
    return DemoResult(scores, sizes, *_times_ms(net, plain), report, weights, picture)


def _times_ms(net: nn.Module, plain: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Times of training steps on batch statistics and on frozen ones, and of inference."""
    thawed = copy.deepcopy(net).train()
    unfreeze_bn_stats(thawed)
    batch_step_ms, frozen_step_ms = (
        time_pair_ms(lambda model: training_step(model, torch.rand(BATCH, 3, PATCH, PATCH)), model, plain)
        for model in (thawed, net)
    )
    inference_ms = time_pair_ms(lambda model: enlarge(model, torch.rand(3, 256, 256)), net, plain)
    return batch_step_ms, frozen_step_ms, inference_ms


def _write(out: Path, plain: nn.Module, low: Tensor, high: Tensor, enlarged: dict[str, Tensor]) -> tuple[Path, Path]:
    weights, picture = files_in(out)
    with written(weights) as unfinished:
        save_file(plain.state_dict(), unfinished)
    columns = {
        "low resolution": low,
        "bicubic": enlarged["bicubic"],
        "RepSR, fused": enlarged["fused"],
        "original": high,
    }
    with written(picture) as unfinished:
        side_by_side(columns, crop=(205, 190, 140, 105)).save(unfinished)
    return weights, picture


def as_pair(photo: np.ndarray) -> tuple[Tensor, Tensor]:
    """Low- and high-resolution RGB of a photo, (3, H, W), values 0 to 1 in steps of 1/255."""
    rgb = np.broadcast_to(np.atleast_3d(photo), (*photo.shape[:2], 3))  # gray becomes RGB
    height, width = (size - size % SCALE for size in rgb.shape[:2])
    high = torch.from_numpy(rgb[:height, :width].copy()).permute(2, 0, 1).float() / 255
    size = (height // SCALE, width // SCALE)
    low = F.interpolate(high[None], size, mode="bicubic", antialias=True)[0]
    return to_8_bit(low), high


def to_8_bit(image: Tensor) -> Tensor:
    """An image as a file with 8 bits per value stores it."""
    return (image.clamp(0, 1) * 255).round() / 255


def bicubic(x: Tensor) -> Tensor:
    """Enlarge x (N, 3, H, W) by bicubic interpolation (a = -0.5, as in MATLAB and Pillow)."""
    return F.interpolate(x, scale_factor=SCALE, mode="bicubic", antialias=True)


def random_batch(pairs: list[tuple[Tensor, Tensor]], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Patches of both resolutions from random places, randomly flipped and rotated."""
    lows: list[Tensor] = []
    highs: list[Tensor] = []
    for _ in range(BATCH):
        low, high = pairs[rng.integers(len(pairs))]
        top, left = (int(rng.integers(size - PATCH + 1)) for size in low.shape[1:])
        turn, flip = int(rng.integers(4)), int(rng.integers(2))
        for patches, image, factor in ((lows, low, 1), (highs, high, SCALE)):
            size = factor * PATCH
            patch = image[:, factor * top : factor * top + size, factor * left : factor * left + size]
            patch = torch.rot90(patch, turn, (1, 2))
            patches.append(patch.flip(2) if flip else patch)
    return torch.stack(lows), torch.stack(highs)


def train(net: nn.Module, pairs: list[tuple[Tensor, Tensor]], steps: int, rng: np.random.Generator) -> None:
    """Train with L1 loss, Adam and a cosine schedule: nine tenths on batch statistics, then with frozen ones."""
    optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in track(range(steps), "Training RepSR-M4C16 x2", console=Console(stderr=True)):
        if step == int(FREEZE_AT * steps):
            freeze_bn_stats(net)
        low, high = random_batch(pairs, rng)
        loss = F.l1_loss(net(low), high)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def enlarge(model: Callable[[Tensor], Tensor], low: Tensor) -> Tensor:
    """Run a model on one image (3, H, W)."""
    return to_8_bit(model(low[None])[0])


def luma_psnr_db(image: Tensor, original: Tensor) -> float:
    """PSNR on the luma of BT.601 (16 to 235), without a border of `SCALE` pixels."""
    one, other = (color.rgb2ycbcr(x.permute(1, 2, 0).numpy())[SCALE:-SCALE, SCALE:-SCALE, 0] for x in (image, original))
    return psnr_db(one, other, peak=255)


def training_step(model: nn.Module, x: Tensor) -> None:
    """Run forward and backward."""
    model(x).sum().backward()


def time_pair_ms(run: Callable[[nn.Module], object], *models: nn.Module) -> tuple[float, ...]:
    """Median time of each model. They take turns, so that a slow moment of the machine affects all of them."""
    times = race({index: partial(run, model) for index, model in enumerate(models)}, 6)
    return tuple(1000 * median(its_times) for its_times in times.values())


def side_by_side(columns: dict[str, Tensor], crop: tuple[int, int, int, int], zoom: int = 3) -> Image.Image:
    """A sheet of all images, each with a box around the crop (left, top, width, height) and the enlarged crop below."""
    left, top, width, height = crop
    rows, cols = list(columns.values())[-1].shape[1:]
    full = (cols, rows)
    cell = width * zoom
    view = (cell, round(full[1] * cell / full[0]))
    font = ImageFont.load_default(size=18)
    sheet = Image.new("RGB", (cell * len(columns), 30 + view[1] + height * zoom), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (title, image) in enumerate(columns.items()):
        picture = Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy())
        picture = picture.resize(full, Image.Resampling.NEAREST)
        boxed = picture.copy()
        ImageDraw.Draw(boxed).rectangle((left, top, left + width, top + height), outline="red", width=3)
        detail = picture.crop((left, top, left + width, top + height)).resize(
            (cell, height * zoom), Image.Resampling.NEAREST
        )
        draw.text((index * cell + 8, 5), title, fill="black", font=font)
        sheet.paste(boxed.resize(view, Image.Resampling.LANCZOS), (index * cell, 30))
        sheet.paste(detail, (index * cell, 30 + view[1]))
    return sheet
