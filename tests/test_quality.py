"""The yardstick of super-resolution against its definitions, and against published figures where the images are.

REPARAM_DATA names a folder below which Set5 lies, in a folder of that name.
"""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data

from examples.train_sr.data import image_files, read_pair
from examples.train_sr.evaluate import as_table, evaluate, open_network
from examples.train_sr.quality import bicubic, enlarge, luma, mean_quality, quality, shrink, validate
from reparam import create_model, export


def cubic(t: float) -> float:
    """Keys' kernel with a = -0.5."""
    t = abs(t)
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def resized_rows(image: np.ndarray, factor: float) -> np.ndarray:
    """imresize along the first axis by its definition: the kernel is widened where it shrinks, borders are mirrored."""
    length = image.shape[0]
    rows = []
    for out in range(math.ceil(length * factor)):
        center = (out + 0.5) / factor - 0.5
        reach, stretch = (2 / factor, factor) if factor < 1 else (2, 1)
        taps = range(math.floor(center - reach), math.ceil(center + reach) + 1)
        weights = np.array([cubic((center - tap) * stretch) for tap in taps])
        mirrored = [tap % (2 * length) for tap in taps]
        mirrored = [tap if tap < length else 2 * length - 1 - tap for tap in mirrored]
        rows.append(np.tensordot(weights / weights.sum(), image[mirrored], 1))
    return np.stack(rows)


@pytest.mark.parametrize("factor", [1 / 2, 1 / 3, 1 / 4, 2, 3, 4])
def test_bicubic_by_its_definition(factor):
    image = np.random.default_rng(0).uniform(0, 255, (3, 12, 24))
    expected = resized_rows(resized_rows(image.transpose(1, 2, 0), factor).swapaxes(0, 1), factor).swapaxes(0, 1)
    result = bicubic(image, factor).transpose(1, 2, 0)
    assert np.abs(result - expected).max() < 1e-3  # it computes in float32
    rounded = bicubic(image.astype(np.uint8), factor)
    assert rounded.dtype == np.uint8
    assert np.array_equal(rounded, bicubic(np.floor(image), factor).round().clip(0, 255))


def test_luma_of_known_colors():
    """BT.601: 16 + 65.481 R + 128.553 G + 24.966 B."""
    colors = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    expected = [16, 235, 81.481, 144.553, 40.966]
    assert luma(colors.T[:, :, None])[0, :, 0] == pytest.approx(expected, abs=1e-9)


def test_quality_by_its_definition():
    rng = np.random.default_rng(0)
    original = rng.uniform(16, 235, (1, 18, 17))
    image = original + rng.normal(0, 20, original.shape)
    image[0, 0], original[0, :, -3:] = 255, 0  # in the border, which does not count
    a, b = image[0, 3:-3, 3:-3], original[0, 3:-3, 3:-3]
    result = quality(image, original, border=3)
    assert result.psnr_db == pytest.approx(20 * math.log10(255 / math.sqrt(((a - b) ** 2).mean())), rel=1e-12)

    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            x, y = (z[top : top + 11, left : left + 11] for z in (a, b))
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy, cov = ((window * p).sum() for p in ((x - mx) ** 2, (y - my) ** 2, (x - mx) * (y - my)))
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert result.ssim == pytest.approx(np.mean(values), rel=1e-9)


def photo() -> np.ndarray:
    return np.ascontiguousarray(data.astronaut().transpose(2, 0, 1)[:, 50:181, 150:278])  # 131 x 128


def torch_resized(image: np.ndarray, factor: float) -> np.ndarray:
    """torch's antialiased bicubic, which differs at the borders only: they are cut off, not mirrored."""
    size = [round(factor * n) for n in image.shape[1:]]
    return F.interpolate(torch.from_numpy(image)[None], size, mode="bicubic", antialias=True)[0].numpy()


def as_in_the_papers(original: np.ndarray, scale: int, resize):
    """Bicubic's row in their tables: luma alone, rounded before it is made small and after it is made large."""
    y = luma(original).round()
    return quality(resize(resize(y, 1 / scale), scale).round().clip(0, 255), y, scale)


def sets() -> dict[str, Path]:
    folder = os.environ.get("REPARAM_DATA")
    return {} if folder is None else {p.name.lower(): p for p in Path(folder).rglob("*") if p.name.lower() == "set5"}


PUBLISHED = {2: (33.66, 0.9299), 3: (30.39, 0.8682), 4: (28.42, 0.8104)}


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["photo", *sets()])
def test_bicubic_scores_as_it_is_published(name, scale):
    if name == "photo":
        originals = [shrink(photo(), scale)[1]]
        expected = as_in_the_papers(originals[0], scale, torch_resized)
    else:
        originals = [read_pair(path, scale)[1] for path in image_files(sets()[name])]
        assert len(originals) == 5
        expected = PUBLISHED[scale]
    strict = mean_quality([as_in_the_papers(original, scale, bicubic) for original in originals])
    assert strict.psnr_db == pytest.approx(expected[0], abs=0.006)
    assert strict.ssim == pytest.approx(expected[1], abs=1e-4)
    # From files of 8-bit RGB, as everything else is scored:
    pairs = [shrink(original, scale) for original in originals]
    files = mean_quality([quality(luma(bicubic(low, scale)), luma(high), scale) for low, high in pairs])
    assert files.psnr_db == pytest.approx(expected[0], abs=0.03)
    assert files.ssim == pytest.approx(expected[1], abs=1.2e-3)


def test_shrink_cuts_to_multiples_of_the_scale():
    low, high = shrink(photo(), 3)
    assert low.shape == (3, 43, 42) and high.shape == (3, 129, 126) and low.dtype == high.dtype == np.uint8
    assert np.array_equal(high, photo()[:, :129, :126])


class Nearest(torch.nn.Module):
    """A network that repeats every pixel and adds a little."""

    def __init__(self, colors: int, more: float = 0.0) -> None:
        super().__init__()
        self.scale, self.colors = 2, colors
        self.more = torch.nn.Parameter(torch.tensor(more))

    def forward(self, x):
        assert x.shape[1] == self.colors and float(x.max()) <= 1
        return F.interpolate(x, scale_factor=2, mode="nearest") + self.more


@pytest.mark.parametrize(("colors", "more"), [(1, 0.0), (3, 0.0), (1, 9.0), (3, 9.0), (3, 0.4 / 255), (1, 0.4 / 255)])
def test_what_a_network_enlarges(colors, more):
    low = photo()[:, :9, :8]
    repeated = low.repeat(2, axis=1).repeat(2, axis=2)
    result = enlarge(Nearest(colors, more), low)
    if more == 9.0:  # white, cut off at what a file can hold
        assert np.array_equal(result, np.full((1, 18, 16), 255.0)) if colors == 1 else result == pytest.approx(235)
    else:  # 0.4 of a step is rounded off in RGB, and kept in luma
        expected = luma(repeated) + (0.4 if more and colors == 1 else 0)
        assert np.abs(result - expected).max() < 1e-4


def test_evaluating_a_folder(tmp_path):
    from PIL import Image

    for name, crop in {"b": photo()[:, :61, :50], "a": photo()[:, -40:, -44:]}.items():
        Image.fromarray(crop.transpose(1, 2, 0)).save(tmp_path / f"{name}.png")
    Image.fromarray(photo()[0, :32, :32]).save(tmp_path / "gray.png")
    (tmp_path / "notes.txt").write_text("no image")
    net = create_model("plain_m1c4_x2_y").eval()
    rows = evaluate(net, tmp_path)
    assert list(rows) == ["a", "b", "gray", "mean"]
    low, high = shrink(photo()[:, :61, :50], 2)
    assert rows["b"][0] == quality(luma(bicubic(low, 2)), luma(high), 2)
    assert rows["b"][1] == validate(net, [(low, high)])
    assert rows["mean"][1] == mean_quality([rows[name][1] for name in ("a", "b", "gray")])
    assert [len(column._cells) for column in as_table(rows, "title").columns] == [4, 4, 4]
    export(net, tmp_path / "net.onnx")
    exported = evaluate(open_network(tmp_path / "net.onnx"), tmp_path)
    assert exported["mean"][1].psnr_db == pytest.approx(rows["mean"][1].psnr_db, abs=1e-3)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no image in {tmp_path}"):
        image_files(tmp_path)
