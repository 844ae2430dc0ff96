"""Ultralytics, and YOLOv6, v9 and v10."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from .animal import IMAGE, Animal


def autopad(k: int, p: int | None = None) -> int:
    return k // 2 if p is None else p


class Conv(nn.Module):
    """Ultralytics' and YOLOv9's."""

    default_act = nn.SiLU()

    def __init__(self, c1, c2, k=1, s=1, p=None, g=1, d=1, act=True):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, autopad(k, p), groups=g, dilation=d, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = self.default_act if act is True else act if isinstance(act, nn.Module) else nn.Identity()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x):
        return self.act(self.conv(x))


class Conv2(Conv):
    """Ultralytics' simplified RepConv: two convolutions in front of one norm."""

    def __init__(self, c1, c2, k=3, s=1, p=None, g=1, d=1, act=True):
        super().__init__(c1, c2, k, s, p, g=g, d=d, act=act)
        self.cv2 = nn.Conv2d(c1, c2, 1, s, autopad(1, p), groups=g, dilation=d, bias=False)

    def forward(self, x):
        return self.act(self.bn(self.conv(x) + self.cv2(x)))


class RepConv(nn.Module):
    """Ultralytics'; YOLOv9's RepConvN is the same, and never has the norm."""

    default_act = nn.SiLU()

    def __init__(self, c1, c2, k=3, s=1, p=1, g=1, d=1, act=True, bn=False, deploy=False):
        super().__init__()
        self.g, self.c1, self.c2 = g, c1, c2
        self.act = self.default_act if act is True else act if isinstance(act, nn.Module) else nn.Identity()
        self.bn = nn.BatchNorm2d(num_features=c1) if bn and c2 == c1 and s == 1 else None
        self.conv1 = Conv(c1, c2, k, s, p=p, g=g, act=False)
        self.conv2 = Conv(c1, c2, 1, s, p=(p - k // 2), g=g, act=False)

    def forward_fuse(self, x):
        return self.act(self.conv(x))

    def forward(self, x):
        id_out = 0 if self.bn is None else self.bn(x)
        return self.act(self.conv1(x) + self.conv2(x) + id_out)


class RepConvN(RepConv):
    """YOLOv9's."""


class RepVGGDWOfYolo(nn.Module):
    """YOLOv10's."""

    def __init__(self, ed):
        super().__init__()
        self.conv = Conv(ed, ed, 7, 1, 3, g=ed, act=False)
        self.conv1 = Conv(ed, ed, 3, 1, 1, g=ed, act=False)
        self.dim = ed
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(self.conv(x) + self.conv1(x))


class RepNCSP(nn.Module):
    """YOLOv9's bottlenecks, each with a rep module: a nest."""

    def __init__(self, c1, c2, n=2):
        super().__init__()
        c_ = c2 // 2
        self.cv1, self.cv2, self.cv3 = Conv(c1, c_, 1, 1), Conv(c1, c_, 1, 1), Conv(2 * c_, c2, 1)
        self.m = nn.Sequential(*(RepNBottleneck(c_) for _ in range(n)))

    def forward(self, x):
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class RepNBottleneck(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.cv1, self.cv2, self.add = RepConvN(c, c, 3, 1), Conv(c, c, 3, 1), True

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class ScaleLayer(nn.Module):
    """A learned scale per channel, of RepOptimizer and YOLOv6."""

    def __init__(self, num_features, use_bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.num_features = num_features
        self.bias = nn.Parameter(torch.zeros(num_features)) if use_bias else None

    def forward(self, inputs):
        scaled = inputs * self.weight.view(1, self.num_features, 1, 1)
        return scaled if self.bias is None else scaled + self.bias.view(1, self.num_features, 1, 1)


class LinearAddBlock(nn.Module):
    """YOLOv6's, of RepOptimizer: scaled branches in front of one norm."""

    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, padding=1):
        super().__init__()
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.scale_conv = ScaleLayer(out_channels, use_bias=False)
        self.conv_1x1 = nn.Conv2d(in_channels, out_channels, 1, stride, 0, bias=False)
        self.scale_1x1 = ScaleLayer(out_channels, use_bias=False)
        if in_channels == out_channels and stride == 1:
            self.scale_identity = ScaleLayer(out_channels, use_bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.se = nn.Identity()

    def forward(self, inputs):
        out = self.scale_conv(self.conv(inputs)) + self.scale_1x1(self.conv_1x1(inputs))
        if hasattr(self, "scale_identity"):
            out += self.scale_identity(inputs)
        return self.relu(self.se(self.bn(out)))


def animals() -> Iterator[tuple[str, Animal]]:
    yield "ultralytics Conv", Animal(lambda: Conv(8, 6, 3), IMAGE)
    yield "ultralytics Conv, grouped and dilated", Animal(lambda: Conv(8, 12, 3, 2, 2, g=4, d=2, act=nn.ReLU()), IMAGE)
    yield "ultralytics Conv2", Animal(lambda: Conv2(8, 6), IMAGE)
    yield "ultralytics RepConv", Animal(lambda: RepConv(8, 6), IMAGE)
    yield "ultralytics RepConv with a norm", Animal(lambda: RepConv(8, 8, g=2, bn=True, act=nn.ReLU()), IMAGE)
    yield "YOLOv9 RepConvN with stride", Animal(lambda: RepConvN(8, 6, s=2), IMAGE)
    yield "YOLOv9 RepNCSP", Animal(lambda: RepNCSP(8, 8), IMAGE, fewest=7)
    yield "YOLOv10 RepVGGDW", Animal(lambda: RepVGGDWOfYolo(8), IMAGE)
    yield "YOLOv6 LinearAddBlock", Animal(lambda: LinearAddBlock(8, 8), IMAGE)
