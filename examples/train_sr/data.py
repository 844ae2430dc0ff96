"""A folder of images as batches of random patches, in which everything random is a function of (seed, step)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reparam.errors import SpecError

from .quality import Pair, luma, shrink

_SUFFIXES = {".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"}


def image_files(folder: Path) -> list[Path]:
    """The images below a folder, in the order of their names."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no image in {folder} (looked for {', '.join(sorted(_SUFFIXES))})")
    return files


def read_pair(path: Path, scale: int) -> Pair:
    """An image file, small and large, RGB; gray becomes RGB."""
    with Image.open(path) as image:
        rgb = np.array(image.convert("RGB"))
    return shrink(rgb.transpose(2, 0, 1), scale)


def read_patches_of(folder: Path, scale: int, colors: int, patch: int) -> list[Pair]:
    """All images, decoded once, in RGB or as rounded luma; those smaller than a patch are left out."""
    pairs = [pair for path in image_files(folder) if min((pair := read_pair(path, scale))[0].shape[1:]) >= patch]
    if not pairs:
        raise SpecError(f"no image in {folder} has {patch * scale} pixels on both sides, as patch={patch} needs")
    colored = luma_8_bit if colors == 1 else np.ascontiguousarray
    return [(colored(low), colored(high)) for low, high in pairs]


def luma_8_bit(rgb: np.ndarray) -> np.ndarray:
    """Luma (1, H, W) of RGB (3, H, W), both uint8."""
    return luma(rgb).round().astype(np.uint8)


class Batches(Dataset):
    """Batch `step` of an endless training: patches at random places of random images, turned and flipped.

    The whole batch is drawn from (seed, step), and each process takes its share, so that a resumed run, or one with
    another number of processes or workers, sees the same data.
    """

    def __init__(self, pairs: list[Pair], patch: int, batch: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if batch % world:  # the mean of unequal shares would not be that of the batch
            raise SpecError(f"{world} processes cannot share batch={batch} equally")
        self.pairs, self.patch, self.batch, self.seed, self.mine = pairs, patch, batch, seed, slice(rank, None, world)
        self.scale = pairs[0][1].shape[1] // pairs[0][0].shape[1]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Low and high resolution, (N, C, h, w), uint8."""
        rng = np.random.default_rng((self.seed, step))
        which = rng.integers(len(self.pairs), size=self.batch)
        places = rng.random((self.batch, 2))
        symmetries = rng.integers(8, size=self.batch)
        drawn = zip(which[self.mine], places[self.mine], symmetries[self.mine])
        low, high = (torch.from_numpy(np.stack(views)) for views in zip(*(self._views(*one) for one in drawn)))
        return low, high

    def _views(self, which: int, place: np.ndarray, symmetry: int) -> list[np.ndarray]:
        """The same patch of both resolutions; nothing is copied."""
        low = self.pairs[which][0]
        top, left = (int(u * (size - self.patch + 1)) for u, size in zip(place, low.shape[1:]))
        views = []
        for image, factor in zip(self.pairs[which], (1, self.scale)):
            rows, columns = (slice(factor * start, factor * (start + self.patch)) for start in (top, left))
            view = np.rot90(image[:, rows, columns], symmetry % 4, axes=(1, 2))
            views.append(view if symmetry < 4 else view[:, :, ::-1])
        return views

    def loader(self, start: int, stop: int, workers: int = 0) -> DataLoader:
        """Batches number `start` to `stop` - 1, in this order."""
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,  # a fork may hang or crash beside threads
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the global one, of which it would draw, must be the same in a resumed run
        )
