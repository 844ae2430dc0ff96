"""Shows what the stored statistics of batch norm do to smooth areas, and how freezing them late in training helps.

It trains a network for nine tenths of the steps, and the last tenth twice: never frozen and frozen. Then it compares
both on photos that were not used for training. docs/artifacts.md explains the results.

    python -m examples.bn_artifacts [--smoke]
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from einops import rearrange, reduce
from PIL import Image, ImageDraw
from rich.table import Table
from skimage import data, io
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from typer import Option

from examples.train_sr.__main__ import console, user_errors
from examples.train_sr.__main__ import photos as write_photos
from examples.train_sr.data import Batches, image_files, read_pair, read_patches_of
from examples.train_sr.quality import bicubic, luma
from examples.train_sr.training import scale_start
from reparam import bn_gap, freeze_bn_stats, recalibrate_bn_stats
from reparam.bn import norms
from reparam.errors import SpecError
from reparam.sr import SRNet, create_model, load_checkpoint

WAYS = ("stored", "recalibrated", "own", "frozen")
"""The networks that are compared. The first three are the one that was never frozen, with the statistics that training
stored, with those of 100 batches at the end of training, and with the image's own; the last one was frozen."""
LOCAL = 17
"""Height and width of a "local" window below, in pixels of the large image."""
SMOOTH, TEXTURED = 3.0, 12.0
"""A pixel is smooth if the true luma has at most the first local standard deviation, textured from the second on."""
INNER = 16
"""Height and width of the part of a window that does not depend on its surroundings, in low-resolution pixels."""
AMPLIFY = 8
"""The factor by which pictures amplify errors."""


class Photo(NamedTuple):
    """A test image in gray levels, (3, h, w) and (3, scale * h, scale * w), float64."""

    name: str
    low: Tensor
    high: Tensor


class Nets(NamedTuple):
    """The networks that are compared."""

    never: SRNet
    recalibrated: SRNet
    frozen: SRNet


class Window(NamedTuple):
    """A square of a photo, in its low-resolution pixels."""

    photo: Photo
    top: int
    left: int
    size: int

    def of(self, image: Tensor, margin: int = 0) -> Tensor:
        """This part of the photo, or of an enlarged one, without `margin` low-resolution pixels on each side."""
        scale = image.shape[-1] // self.photo.low.shape[-1]
        size = scale * (self.size - 2 * margin)
        return image.narrow(-2, scale * (self.top + margin), size).narrow(-1, scale * (self.left + margin), size)


# Training


class Training:
    """Training with L1 and Adam, and an average of weights and statistics unless `ema` is 0. deepcopy forks it."""

    def __init__(self, net: SRNet, batches: Batches, steps: int, lr: float, cosine: bool, ema: float) -> None:
        self.net, self.ema, self.done = net.train(), ema, 0
        self.batches = batches
        self.optimizer = Adam(net.parameters(), lr)
        self.schedule = CosineAnnealingLR(self.optimizer, steps) if cosine else LambdaLR(self.optimizer, lambda _: 1.0)
        self.average = AveragedModel(net, use_buffers=True)

    @property
    def result(self) -> SRNet:
        """The average, or the network itself if there is none."""
        return self.average.module if self.ema else self.net  # type: ignore[return-value]  # of the same class

    def go_on(self, stop: int) -> None:
        """Train until `stop` steps are done."""
        for low, high in self.batches.loader(self.done, stop):
            loss = F.l1_loss(self.net(low.float() / 255), high.float() / 255)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.done += 1
            self.average.multi_avg_fn = get_ema_multi_avg_fn(min(self.ema, self.done / (9 + self.done)))
            self.average.update_parameters(self.net)


def train_both_ways(training: Training, steps: int, tests: Sequence[Photo]) -> tuple[SRNet, SRNet]:
    """Train a network that is never frozen, and one that is frozen for the last tenth; until then they are the same."""
    table = Table("step", title="PSNR (dB) of the test images before the freeze")
    for region in ("all", "smooth"):
        for way in ("stored", "own"):
            table.add_column(f"{region}, {way}")
    tenth = steps // 10
    for stop in range(tenth, 9 * tenth + 1, tenth):
        training.go_on(stop)
        scores = (
            mean_psnr(training.result, tests, region, own) for region in ("all", "smooth") for own in (False, True)
        )
        table.add_row(str(stop), *(f"{score:.2f}" for score in scores))
    console().print(table)
    frozen = copy.deepcopy(training)
    freeze_bn_stats(frozen.net)
    for one in (training, frozen):
        one.go_on(steps)
    return training.result, frozen.result


# Measuring


@torch.no_grad()
def enlarge(net: SRNet, low: Tensor, own: bool = False) -> Tensor:
    """The image enlarged with stored statistics, or with its own. The stored statistics do not change."""
    net = copy.deepcopy(net).train(own)
    return (net(low[None].float() / 255)[0].double() * 255).clamp(0, 255)


def in_all_ways(nets: Nets, low: Tensor) -> dict[str, Tensor]:
    """The image enlarged in each of `WAYS`."""
    stored = {name: enlarge(net, low) for name, net in zip(("stored", "recalibrated", "frozen"), nets)}
    return {way: enlarge(nets.never, low, own=True) if way == "own" else stored[way] for way in WAYS}


def enlarge_bicubic(photo: Photo) -> Tensor:
    """The image enlarged by bicubic interpolation in 8 bits, for comparison."""
    scale = photo.high.shape[-1] // photo.low.shape[-1]
    return torch.from_numpy(bicubic(photo.low.byte().numpy(), scale)).double()


def local_mean(image: Tensor) -> Tensor:
    """Mean over the LOCAL x LOCAL pixels around each pixel, as far as they are inside the image (C, H, W)."""
    return F.avg_pool2d(image, LOCAL, 1, LOCAL // 2, count_include_pad=False)


def regions(high: Tensor) -> dict[str, Tensor]:
    """Masks (H, W) of the smooth pixels, the textured pixels, and all pixels of an image (3, H, W)."""
    y = torch.from_numpy(luma(high.byte().numpy()))
    deviation = (local_mean(y * y) - local_mean(y).square()).clamp(min=0).sqrt()[0]
    return {"smooth": deviation <= SMOOTH, "textured": deviation >= TEXTURED, "all": deviation >= 0}


def psnr(errors: Tensor) -> float:
    """PSNR in dB, from errors in gray levels."""
    return float(10 * torch.log10(255**2 / errors.square().mean()))


def mean_psnr(net: SRNet, tests: Sequence[Photo], region: str, own: bool) -> float:
    """Mean PSNR over the images that have this region; nan if none has it."""
    masked = [(photo, mask) for photo in tests if (mask := regions(photo.high)[region]).any()]
    scores = [psnr((enlarge(net, photo.low, own) - photo.high)[:, mask]) for photo, mask in masked]
    return float(np.mean(scores)) if scores else math.nan


def region_tables(tests: Sequence[Photo], enlarged: Sequence[dict[str, Tensor]]) -> tuple[Table, Table, Table]:
    """The quality of each way in each region, and what the choice of statistics changes there."""
    scores = Table("", "share", "bicubic", *WAYS, title="PSNR (dB) by region")
    tints = Table("", *WAYS, title=f"|error averaged over {LOCAL}x{LOCAL} pixels|, in gray levels")
    changes = Table("", "mean size", "at most", "mean, R G B", title="stored - own, in gray levels")
    for photo, images in zip(tests, enlarged):
        for region, mask in regions(photo.high).items():
            if not mask.any():
                continue
            name = f"{photo.name}, {region}"
            errors = [image - photo.high for image in (enlarge_bicubic(photo), *images.values())]
            share = f"{mask.double().mean():.0%}"
            scores.add_row(name, share, *(f"{psnr(error[:, mask]):.2f}" for error in errors))
            tints.add_row(name, *(f"{local_mean(error)[:, mask].abs().mean():.2f}" for error in errors[1:]))
            change = (images["stored"] - images["own"])[:, mask]
            mean = " ".join(f"{value:+.2f}" for value in change.mean(1).tolist())
            changes.add_row(name, f"{change.abs().mean():.2f}", f"{change.abs().max():.1f}", mean)
    return scores, tints, changes


def gap_table(never: SRNet, windows: dict[str, Window]) -> Table:
    """The gap between the stored statistics and those of each window."""
    table = Table("", title="bn_gap: mean shift and typical ratio of the variances")
    for kind in windows:
        table.add_column(kind)
    reports = [bn_gap(never, window.of(window.photo.low)[None].float() / 255) for window in windows.values()]
    for layers in zip(*(report.layers for report in reports)):
        table.add_row(layers[0].name, *(f"{layer.shift:.2f}, {layer.ratio:.2f}" for layer in layers))
    return table


# Pasting


def margin_of(net: SRNet) -> int:
    """How far an output reaches in each direction: one pixel per 3x3 convolution."""
    return net.num_blocks + 2


def worst_window(tests: Sequence[Photo], enlarged: Sequence[dict[str, Tensor]], region: str, size: int) -> Window:
    """The square where stored and own statistics differ most, in pixels of this region."""
    found = []
    for photo, images in zip(tests, enlarged):
        difference = (images["stored"] - images["own"]).abs().mean(0) * regions(photo.high)[region]
        scale = photo.high.shape[-1] // photo.low.shape[-1]
        small = reduce(difference, "(h r) (w s) -> 1 h w", "mean", r=scale, s=scale)
        sums = F.avg_pool2d(small, size, 1)[0]
        top, left = divmod(int(sums.argmax()), sums.shape[1])
        found.append((float(sums.max()), Window(photo, top, left, size)))
    return max(found, key=lambda one: one[0])[1]


def paste(window: Window, into: Photo) -> Window:
    """Paste the window, in both resolutions, into the middle of another photo."""
    photo = Photo(f"{window.photo.name} in {into.name}", into.low.clone(), into.high.clone())
    top, left = ((size - window.size) // 2 for size in into.low.shape[1:])
    pasted = Window(photo, top, left, window.size)
    for source, target in ((window.photo.low, photo.low), (window.photo.high, photo.high)):
        pasted.of(target).copy_(window.of(source))
    return pasted


def other_photo(window: Window, tests: Sequence[Photo], region: str) -> Photo:
    """The other photo with the largest share of this region."""
    others = [photo for photo in tests if photo.name != window.photo.name]
    return max(others, key=lambda photo: float(regions(photo.high)[region].double().mean()))


def paste_table(nets: Nets, pairs: Sequence[tuple[Window, Window]]) -> Table:
    """The error inside each window in its photo and where it was pasted, and how much these outputs differ."""
    table = Table("", *WAYS, title="Inside of the window: mean |error|, in gray levels")
    margin = margin_of(nets.never)
    for pair in pairs:
        outputs = []
        for window in pair:
            images = in_all_ways(nets, window.photo.low)
            inner = {way: window.of(image, margin) for way, image in images.items()}
            truth = window.of(window.photo.high, margin)
            table.add_row(window.photo.name, *(f"{(image - truth).abs().mean():.3f}" for image in inner.values()))
            outputs.append(inner)
        changes = [float((outputs[0][way] - outputs[1][way]).abs().max()) for way in WAYS]
        table.add_row("changed by, at most", *(f"{change:.2g}" for change in changes), end_section=True)
    return table


# Pictures


def picture(window: Window, images: dict[str, Tensor]) -> Image.Image:
    """The window in rows of three: the truth and all ways, with an amplified error around gray below each."""
    shown = {"truth": window.photo.high, "bicubic": enlarge_bicubic(window.photo), **images}
    above = {name: window.of(image) for name, image in shown.items()}
    errors = {f"{name} - truth": image - above["truth"] for name, image in above.items() if name != "truth"}
    errors = {"stored - own": above["stored"] - above["own"], **errors}
    below = {f"{AMPLIFY} ({name})": 128 + AMPLIFY * error for name, error in errors.items()}
    pairs = list(zip(above.items(), below.items()))
    rows = [row for start in range(0, len(pairs), 3) for row in zip(*pairs[start : start + 3])]
    edge, line = 3 * above["truth"].shape[-1], 18
    sheet = Image.new("RGB", (3 * edge, len(rows) * (edge + line)), "white")
    for number, (title, image) in enumerate(tile for row in rows for tile in row):
        left, top = number % 3 * edge, number // 3 * (edge + line)
        ImageDraw.Draw(sheet).text((left + 3, top + 1), title, "black", font_size=13)
        pixels = rearrange(image.round().clamp(0, 255).byte(), "c h w -> h w c").numpy()
        sheet.paste(Image.fromarray(pixels).resize((edge - 2, edge - 2), Image.Resampling.NEAREST), (left, top + line))
    return sheet


def show(nets: Nets, tests: Sequence[Photo], out: Path) -> None:
    """Print all tables and write all pictures."""
    enlarged = [in_all_ways(nets, photo.low) for photo in tests]
    size = INNER + 2 * margin_of(nets.never)
    windows = {region: worst_window(tests, enlarged, region, size) for region in ("smooth", "textured")}
    pasted = {
        region: paste(window, other_photo(window, tests, "textured" if region == "smooth" else "smooth"))
        for region, window in windows.items()
    }
    for table in (
        *region_tables(tests, enlarged),
        paste_table(nets, list(zip(windows.values(), pasted.values()))),
        gap_table(nets.never, windows),
    ):
        console().print(table)
    out.mkdir(parents=True, exist_ok=True)
    for kind, found in (("", windows), ("_pasted", pasted)):
        for region, window in found.items():
            picture(window, in_all_ways(nets, window.photo.low)).save(out / f"{region}{kind}.png", optimize=True)
    console().print(f"pictures: {out}")


# The command


def check_net(net: object, name: object) -> SRNet:
    """The network, if this program can compare it."""
    if not (isinstance(net, SRNet) and net.colors == 3 and any(norms(net))):
        raise SpecError(
            f"cannot examine {name}: it must be a network such as repsr_m4c16_x2 or repvggsr_m4c16_x2, for three "
            "colors and with its batch norms (train.safetensors of a training run, not fused.safetensors)"
        )
    return net


def read_tests(folder: Path, net: SRNet) -> list[Photo]:
    """The test images. Each must be large enough for a window, and pasting needs at least two."""
    files = image_files(folder)
    if len(files) < 2:
        raise SpecError(f"{folder} has only one image, {files[0].name}, and pasting needs two: add another")
    tests, size = [], INNER + 2 * margin_of(net)
    for path in files:
        low, high = (torch.from_numpy(image.copy()).double() for image in read_pair(path, net.scale))
        if min(high.shape[1:]) < net.scale * size:
            height, width = high.shape[1:]
            raise SpecError(
                f"{path} is too small: {height}x{width} pixels, but a window of this network needs "
                f"{net.scale * size}x{net.scale * size}; remove it or use a larger one"
            )
        tests.append(Photo(path.stem, low, high))
    return tests


def main(
    folder: Annotated[
        Path | None, Option("--train", help="Folder of training images. Default: scikit-image's.")
    ] = None,
    val: Annotated[Path | None, Option(help="Folder of two or more test images. Default: scikit-image's.")] = None,
    out: Annotated[Path, Option(file_okay=False, help="Folder for the pictures.")] = Path("bn-artifacts"),
    model: Annotated[str, Option(help="Name of the network, as for create_model.")] = "repvggsr_m4c16_x2",
    steps: Annotated[int, Option(min=10, help="Number of training steps.")] = 1000,
    batch: Annotated[int, Option(min=1, help="Patches per batch.")] = 4,
    patch: Annotated[int, Option(min=1, help="Height and width of a patch, in low-resolution pixels.")] = 24,
    lr: Annotated[float, Option(min=0, help="Learning rate of Adam.")] = 4e-3,
    cosine: Annotated[bool, Option("--cosine", help="Let the learning rate fall to zero along a cosine.")] = False,
    ema: Annotated[float, Option(min=0, max=1, help="Decay of the weight average to compare; 0 for none.")] = 0.0,
    seed: Annotated[int, Option(min=0, help="Random seed for weights and patches.")] = 0,
    last_gain: Annotated[
        float, Option(help="Factor on the last layer's start; 100 is a layer as torch starts it, 1 the network's own.")
    ] = 100.0,
    never: Annotated[
        Path | None, Option(exists=True, dir_okay=False, help="A checkpoint that was never frozen; skips training.")
    ] = None,
    frozen: Annotated[
        Path | None, Option(exists=True, dir_okay=False, help="A checkpoint that was frozen; needs --never.")
    ] = None,
    smoke: Annotated[bool, Option(help="Run only a few steps.")] = False,
) -> None:
    """Train a network with batch norm never frozen and frozen late, and show what the choice of statistics changes."""
    with user_errors():
        if (never is None) != (frozen is None):
            raise SpecError("--never and --frozen go together: pass both to compare them, or neither to train them")
        for given in (folder, val):
            if given and not given.is_dir():
                raise SpecError(f"there is no folder {given}: pass a folder of images, or none for scikit-image's")
        if val is None or folder is None:
            write_photos(out / "photos")
            for name in ("moon", "grass"):  # hardly any texture, and nothing else
                io.imsave(out / "photos" / "val" / f"{name}.png", getattr(data, name)())
        torch.manual_seed(seed)
        net = check_net(load_checkpoint(never), never) if never else check_net(create_model(model), model)
        tests = read_tests(val or out / "photos" / "val", net)
        pairs = read_patches_of(folder or out / "photos" / "train", net.scale, net.colors, patch)
        batches = Batches(pairs, patch, batch, seed)
        if frozen:
            both = net, check_net(load_checkpoint(frozen), frozen)
        else:
            steps = 10 if smoke else steps
            body: Any = net.body
            scale_start(body[-1:], last_gain)
            both = train_both_ways(Training(net, batches, steps, lr, cosine, ema), steps, tests)
        recalibrated = copy.deepcopy(both[0])
        recalibrate_bn_stats(recalibrated, (low.float() / 255 for low, _ in batches.loader(0, 100)))
        show(Nets(both[0], recalibrated, both[1]), tests, out)


if __name__ == "__main__":
    typer.run(main)
