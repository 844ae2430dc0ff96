"""Scores a network, beside bicubic, on images that are made small and large again."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn

from reparam.deploy import FILE_ENGINES, open_engine, read_note
from reparam.sr import Network, load_checkpoint

from .data import image_files, read_pair
from .quality import Quality, bicubic, enlarge, luma, mean_quality, quality


class Exported(nn.Module):
    """A file of `export` or `quantize`, as a network."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        note = read_note(file)
        self.scale, self.colors = int(note["scale"]), int(note["colors"])
        self.run = open_engine(file, FILE_ENGINES[file.suffix][0])
        self.register_parameter("none", nn.Parameter(torch.zeros(())))  # says that it is on the CPU

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges x of shape (N, colors, H, W)."""
        return torch.from_numpy(self.run(x.numpy()))


def open_network(file: Path) -> Network:
    """The network of a checkpoint, or of a file in ONNX or OpenVINO."""
    return Exported(file) if file.suffix in FILE_ENGINES else load_checkpoint(file)  # type: ignore[return-value]  # it has what is used of one


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
