"""Scores a network, beside bicubic, on images that are made small and large again."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from reparam.models.registry import Network

from .data import image_files, read_pair
from .quality import Quality, bicubic, enlarge, luma, mean_quality, quality


def evaluate(net: Network, folder: Path) -> dict[str, tuple[Quality, ...]]:
    """Bicubic and the network on each image by name, and "mean" last."""
    rows = {}
    for path in image_files(folder):
        low, high = read_pair(path, net.scale)
        images = luma(bicubic(low, net.scale)), enlarge(net, low)
        rows[path.stem] = tuple(quality(image, luma(high), net.scale) for image in images)
    return rows | {"mean": tuple(mean_quality(column) for column in zip(*rows.values()))}


def as_table(rows: dict[str, tuple[Quality, ...]], title: str) -> Table:
    """For printing."""
    table = Table("", "bicubic", "network", title=title)
    for name, row in rows.items():
        table.add_row(name, *(f"{one.psnr_db:.2f} / {one.ssim:.4f}" for one in row))
    return table
