"""docTR's FAST, and PP-LCNetV3."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from .animal import IMAGE, Animal


class FASTConvLayer(nn.Module):
    """docTR's: a kernel of any shape, its strips, and the identity."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, dilation=1, groups=1):
        super().__init__()
        sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        pads = tuple(((size - 1) * dilation) // 2 for size in sizes)
        self.hor_conv, self.hor_bn, self.ver_conv, self.ver_bn = None, None, None, None
        geometry = {"stride": stride, "dilation": dilation, "groups": groups, "bias": False}
        self.activation = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(in_channels, out_channels, sizes, padding=pads, **geometry)
        self.bn = nn.BatchNorm2d(out_channels)
        if sizes[1] != 1:
            self.ver_conv = nn.Conv2d(in_channels, out_channels, (sizes[0], 1), padding=(pads[0], 0), **geometry)
            self.ver_bn = nn.BatchNorm2d(out_channels)
        if sizes[0] != 1:
            self.hor_conv = nn.Conv2d(in_channels, out_channels, (1, sizes[1]), padding=(0, pads[1]), **geometry)
            self.hor_bn = nn.BatchNorm2d(out_channels)
        self.rbr_identity = nn.BatchNorm2d(in_channels) if out_channels == in_channels and stride == 1 else None

    def forward(self, x):
        main_outputs = self.bn(self.conv(x))
        vertical = self.ver_bn(self.ver_conv(x)) if self.ver_conv is not None and self.ver_bn is not None else 0
        horizontal = self.hor_bn(self.hor_conv(x)) if self.hor_bn is not None and self.hor_conv is not None else 0
        id_out = self.rbr_identity(x) if self.rbr_identity is not None and self.ver_bn is not None else 0
        return self.activation(main_outputs + vertical + horizontal + id_out)


class LearnableAffineBlock(nn.Module):
    """PP-LCNetV3's scale and shift of one number each."""

    def __init__(self):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.scale * x + self.bias


class ConvBNLayer(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, stride, groups=1):
        super().__init__()
        padding = (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        return self.bn(self.conv(x))


class Act(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.lab = nn.Hardswish(), LearnableAffineBlock()

    def forward(self, x):
        return self.lab(self.act(x))


class LearnableRepLayer(nn.Module):
    """PP-LCNetV3's."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, groups=1, num_conv_branches=4):
        super().__init__()
        self.stride = stride
        self.identity = nn.BatchNorm2d(in_channels) if out_channels == in_channels and stride == 1 else None
        layers = (ConvBNLayer(in_channels, out_channels, kernel_size, stride, groups) for _ in range(num_conv_branches))
        self.conv_kxk = nn.ModuleList(layers)
        self.conv_1x1 = ConvBNLayer(in_channels, out_channels, 1, stride, groups) if kernel_size > 1 else None
        self.lab, self.act = LearnableAffineBlock(), Act()

    def forward(self, x):
        out = 0
        if self.identity is not None:
            out = out + self.identity(x)
        if self.conv_1x1 is not None:
            out = out + self.conv_1x1(x)
        for conv in self.conv_kxk:
            out = out + conv(x)
        out = self.lab(out)
        return self.act(out) if self.stride != 2 else out


def animals() -> Iterator[tuple[str, Animal]]:
    yield "docTR FASTConvLayer", Animal(lambda: FASTConvLayer(8, 8, (3, 5)), IMAGE)
    yield "docTR FASTConvLayer, a strip", Animal(lambda: FASTConvLayer(8, 8, (1, 3)), IMAGE)
    yield "PP-LCNetV3 LearnableRepLayer", Animal(lambda: LearnableRepLayer(8, 8, 5, groups=8), IMAGE)
    yield "PP-LCNetV3 LearnableRepLayer, 1x1", Animal(lambda: LearnableRepLayer(8, 12, 1), IMAGE)
    yield "PP-LCNetV3 with stride", Animal(lambda: LearnableRepLayer(8, 8, 3, stride=2, groups=8), IMAGE)
