"""Three dimensions, and time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from .animal import Animal


class TDC(nn.Module):
    """A temporal difference, made of the weight of a convolution in each forward."""

    def __init__(self, in_channels, out_channels, step=1):
        super().__init__()
        self.conv, self.step = nn.Conv3d(in_channels, out_channels, (3, 3, 3), padding=1, bias=False), step

    def get_time_gradient_weight(self):
        weight = self.conv.weight
        shifted = torch.zeros_like(weight)
        shifted[:, :, : -self.step] = weight[:, :, self.step :]
        return weight - shifted, torch.zeros(weight.shape[0], device=weight.device, dtype=weight.dtype)

    def forward(self, x):
        weight, bias = self.get_time_gradient_weight()
        return F.conv3d(x, weight, bias, stride=self.conv.stride, padding=self.conv.padding)


class RepConv3D(nn.Module):
    """Of video networks for the pulse: temporal differences over several steps."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.deploy = False
        self.s_tdc = nn.Sequential(TDC(in_channels, out_channels, 1), nn.BatchNorm3d(out_channels))
        self.m_tdc = nn.Sequential(TDC(in_channels, out_channels, 2), nn.BatchNorm3d(out_channels))

    def forward(self, x):
        out = self.conv_reparam(x) if self.deploy else self.s_tdc(x) + self.m_tdc(x)
        return F.relu(out)


class RepVGGBlock3D(nn.Module):
    """A port of RepVGG to volumes."""

    def __init__(self, channels):
        super().__init__()
        self.conv3 = nn.Sequential(nn.Conv3d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm3d(channels))
        self.conv1 = nn.Sequential(nn.Conv3d(channels, channels, 1, bias=False), nn.BatchNorm3d(channels))
        self.identity = nn.BatchNorm3d(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.conv3(x) + self.conv1(x) + self.identity(x))


class MultiScaleTCN(nn.Module):
    """Dilated convolutions over time, added up in front of one norm."""

    def __init__(self, in_channels, out_channels, dilations=(1, 2, 4)):
        super().__init__()
        layers = (nn.Conv1d(in_channels, out_channels, 3, padding=d, dilation=d) for d in dilations)
        self.convs, self.bn, self.relu = nn.ModuleList(layers), nn.BatchNorm1d(out_channels), nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(sum(conv(x) for conv in self.convs)))


def animals() -> Iterator[tuple[str, Animal]]:
    yield "3-D temporal differences", Animal(lambda: RepConv3D(4, 6), (1, 4, 5, 7, 6))
    yield "3-D RepVGG", Animal(lambda: RepVGGBlock3D(4), (1, 4, 5, 7, 6))
    yield "1-D dilated sum", Animal(lambda: MultiScaleTCN(8, 6), (2, 8, 40))
