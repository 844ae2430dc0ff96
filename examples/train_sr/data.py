"""A folder of images as batches of random patches, in which everything random is a function of (seed, step)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .quality import bicubic, luma, modulo_crop

Pair = tuple[np.ndarray, np.ndarray]
"""Low and high resolution, (C, h, w) and (C, scale * h, scale * w), uint8."""

_SUFFIXES = {".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"}


def image_files(folder: Path) -> list[Path]:
    """The images below a folder, in the order of their names."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no image in {folder} (looked for {', '.join(sorted(_SUFFIXES))})")
    return files


def read_rgb(path: Path) -> np.ndarray:
    """An image file as (3, H, W), uint8; grey becomes RGB."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB")).transpose(2, 0, 1)


def load_pairs(folder: Path, scale: int, colors: int, patch: int) -> list[Pair]:
    """Decodes and shrinks every image once; leaves out those smaller than a patch of `patch` low-resolution pixels."""
    pairs = []
    for path in image_files(folder):
        high = modulo_crop(read_rgb(path), scale)
        if min(high.shape[1:]) < patch * scale:
            continue
        pair = bicubic(high, 1 / scale), high
        if colors == 1:
            pair = tuple(luma(image).round().astype(np.uint8) for image in pair)
        pairs.append(tuple(map(np.ascontiguousarray, pair)))
    if not pairs:
        raise ValueError(f"no image in {folder} has {patch * scale} pixels on both sides, as patch={patch} needs")
    return pairs


class Batches(Dataset):
    """Batch `step` of an endless training: patches at random places of random images, turned and flipped.

    The whole batch is drawn from (seed, step), and each process takes its share, so that neither a resumed run nor
    another number of processes or workers sees other data.
    """

    def __init__(self, pairs: list[Pair], patch: int, batch: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.pairs, self.patch, self.batch, self.seed, self.rank, self.world = pairs, patch, batch, seed, rank, world
        self.scale = pairs[0][1].shape[1] // pairs[0][0].shape[1]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Low and high resolution, (N, C, h, w), uint8."""
        rng = np.random.default_rng((self.seed, step))
        which = rng.integers(len(self.pairs), size=self.batch)
        places = rng.random((self.batch, 2))
        symmetries = rng.integers(8, size=self.batch)
        mine = slice(self.rank, None, self.world)
        pairs = [self._patches(*drawn) for drawn in zip(which[mine], places[mine], symmetries[mine])]
        low, high = (torch.from_numpy(np.stack(images)) for images in zip(*pairs))
        return low, high

    def _patches(self, which: int, place: np.ndarray, symmetry: int) -> list[np.ndarray]:
        low = self.pairs[which][0]
        top, left = (int(u * (size - self.patch + 1)) for u, size in zip(place, low.shape[1:]))
        views = []
        for image, factor in zip(self.pairs[which], (1, self.scale)):
            rows, columns = (slice(factor * start, factor * (start + self.patch)) for start in (top, left))
            view = np.rot90(image[:, rows, columns], symmetry % 4, axes=(1, 2))
            views.append(view if symmetry < 4 else view[:, :, ::-1])
        return views

    def loader(self, start: int, stop: int, workers: int) -> DataLoader:
        """Batches number `start` to `stop` - 1, in order."""
        # The loader would draw from the global generator, of which a resumed run must find the state unchanged.
        own = torch.Generator()
        return DataLoader(
            self, batch_size=None, sampler=range(start, stop), num_workers=workers, generator=own, pin_memory=False
        )
