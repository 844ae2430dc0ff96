"""Branches with branches: DBB, ACNet, and rep modules of rep modules."""

from __future__ import annotations

from collections.abc import Iterator

from official import ACBlock, DiverseBranchBlock
from torch import nn

from .animal import IMAGE, Animal
from .detectors import VGGBlock
from .yolo import RepConv


class RepOfReps(nn.Module):
    """Branches that are rep modules themselves, without an activation between."""

    def __init__(self, channels):
        super().__init__()
        self.branches = nn.ModuleList([VGGBlock(channels, channels, act=None), RepConv(channels, channels, act=False)])
        self.branches.append(DiverseBranchBlock(channels, channels, 3, padding=1))
        self.post = nn.BatchNorm2d(channels)
        self.act = nn.SiLU()

    def forward(self, x):
        y = self.branches[0](x)
        for branch in self.branches[1:]:
            y = y + branch(x)
        return self.act(self.post(y))


def animals() -> Iterator[tuple[str, Animal]]:
    yield "DBB", Animal(lambda: DiverseBranchBlock(8, 6, 3, padding=1, nonlinear=nn.ReLU()), IMAGE)
    yield "DBB, depthwise", Animal(lambda: DiverseBranchBlock(8, 8, 5, padding=2, groups=8), IMAGE)
    yield "ACNet", Animal(lambda: ACBlock(8, 6, 3, padding=0, nonlinear=nn.ReLU()), IMAGE)
    yield "a rep module of rep modules", Animal(lambda: RepOfReps(8), IMAGE)
