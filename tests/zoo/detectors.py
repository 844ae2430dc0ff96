"""RT-DETR, D-FINE, PP-YOLOE, super-gradients and mmpretrain."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.utils.checkpoint as cp
from official import conv_bn, row
from torch import nn

from .animal import IMAGE, Animal


class ConvNormLayer(nn.Module):
    """RT-DETR's and D-FINE's."""

    def __init__(self, ch_in, ch_out, kernel_size, stride, padding=None, bias=False, act=None):
        super().__init__()
        padding = (kernel_size - 1) // 2 if padding is None else padding
        self.conv = nn.Conv2d(ch_in, ch_out, kernel_size, stride, padding=padding, bias=bias)
        self.norm = nn.BatchNorm2d(ch_out)
        self.act = nn.Identity() if act is None else nn.SiLU()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


class VGGBlock(nn.Module):
    """D-FINE's; RT-DETR's RepVggBlock has the same parts."""

    def __init__(self, ch_in, ch_out, act="silu"):
        super().__init__()
        self.ch_in, self.ch_out = ch_in, ch_out
        self.conv1 = ConvNormLayer(ch_in, ch_out, 3, 1, padding=1, act=None)
        self.conv2 = ConvNormLayer(ch_in, ch_out, 1, 1, padding=0, act=None)
        self.act = nn.Identity() if act is None else nn.SiLU()

    def forward(self, x):
        y = self.conv(x) if hasattr(self, "conv") else self.conv1(x) + self.conv2(x)
        return self.act(y)


class CSPRepLayer(nn.Module):
    """RT-DETR's, a nest of such blocks."""

    def __init__(self, in_channels, out_channels, num_blocks=2):
        super().__init__()
        hidden = out_channels // 2
        self.conv1 = ConvNormLayer(in_channels, hidden, 1, 1, act="silu")
        self.conv2 = ConvNormLayer(in_channels, hidden, 1, 1, act="silu")
        self.bottlenecks = nn.Sequential(*[VGGBlock(hidden, hidden) for _ in range(num_blocks)])
        self.conv3 = ConvNormLayer(hidden, out_channels, 1, 1, act="silu")

    def forward(self, x):
        x_1 = self.bottlenecks(self.conv1(x))
        return self.conv3(x_1 + self.conv2(x))


class RepVggBlockWithAlpha(nn.Module):
    """PP-YOLOE's: the 1x1 branch has a learned weight."""

    def __init__(self, ch_in, ch_out):
        super().__init__()
        self.conv1 = ConvNormLayer(ch_in, ch_out, 3, 1, padding=1)
        self.conv2 = ConvNormLayer(ch_in, ch_out, 1, 1, padding=0)
        self.act = nn.Hardswish()
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x):
        y = self.conv1(x) + self.alpha * self.conv2(x) if self.alpha is not None else self.conv1(x) + self.conv2(x)
        return self.act(y)


class Residual(nn.Module):
    """super-gradients': nothing, as a module."""

    def forward(self, x):
        return x


class QARepVGGBlock(nn.Module):
    """super-gradients': only the 3x3 branch has a norm, and one follows the sum; it has its last form already."""

    def __init__(self, in_channels, out_channels, stride=1, use_residual_connection=True, use_alpha=True):
        super().__init__()
        self.nonlinearity, self.se = nn.ReLU(), nn.Identity()
        self.branch_3x3 = conv_bn(in_channels, out_channels, 3, stride=stride, padding=1)
        self.branch_1x1 = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=True)
        self.identity = Residual() if use_residual_connection else None
        self.alpha = nn.Parameter(torch.ones(1)) if use_alpha else 1.0
        self.post_bn = nn.BatchNorm2d(out_channels)
        self.rbr_reparam = nn.Conv2d(in_channels, out_channels, 3, stride, 1)
        self.partially_fused = self.fully_fused = False

    def forward(self, inputs):
        if self.fully_fused:
            return self.se(self.nonlinearity(self.rbr_reparam(inputs)))
        if self.partially_fused:
            return self.se(self.nonlinearity(self.post_bn(self.rbr_reparam(inputs))))
        id_out = 0.0 if self.identity is None else self.identity(inputs)
        branches = self.branch_3x3(inputs) + self.alpha * self.branch_1x1(inputs) + id_out
        return self.se(self.nonlinearity(self.post_bn(branches)))


class MMRepVGGBlock(nn.Module):
    """mmpretrain's RepVGGBlock: the sum stands in a function, for checkpointing."""

    def __init__(self, in_channels, out_channels, stride=1, padding=1, dilation=1, groups=1, with_cp=False):
        super().__init__()
        self.deploy, self.with_cp, self.se_cfg, self.se_layer = False, with_cp, None, None
        same = in_channels == out_channels and stride == 1 and padding == dilation
        self.branch_norm = nn.BatchNorm2d(in_channels) if same else None
        geometry = {"stride": stride, "groups": groups, "bias": False}
        big = nn.Conv2d(in_channels, out_channels, 3, dilation=dilation, padding=padding, **geometry)
        self.branch_3x3 = row(conv=big, norm=nn.BatchNorm2d(out_channels))
        point = nn.Conv2d(in_channels, out_channels, 1, **geometry)
        self.branch_1x1 = row(conv=point, norm=nn.BatchNorm2d(out_channels))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        def _inner_forward(inputs):
            if self.deploy:
                return self.branch_reparam(inputs)
            norm_out = 0 if self.branch_norm is None else self.branch_norm(inputs)
            inner_out = self.branch_3x3(inputs) + self.branch_1x1(inputs) + norm_out
            return inner_out if self.se_cfg is None else self.se_layer(inner_out)

        out = cp.checkpoint(_inner_forward, x) if self.with_cp and x.requires_grad else _inner_forward(x)
        return self.act(out)


def animals() -> Iterator[tuple[str, Animal]]:
    yield "D-FINE VGGBlock", Animal(lambda: VGGBlock(8, 6), IMAGE)
    yield "RT-DETR CSPRepLayer", Animal(lambda: CSPRepLayer(8, 8), IMAGE, fewest=5)
    yield "PP-YOLOE RepVggBlock", Animal(lambda: RepVggBlockWithAlpha(8, 6), IMAGE)
    yield "super-gradients QARepVGGBlock", Animal(lambda: QARepVGGBlock(8, 8), IMAGE)
    yield "super-gradients QARepVGGBlock with stride", Animal(lambda: QARepVGGBlock(8, 6, 2, False, False), IMAGE)
    yield "mmpretrain RepVGGBlock", Animal(lambda: MMRepVGGBlock(8, 8), IMAGE)
    yield "mmpretrain RepVGGBlock, dilated", Animal(lambda: MMRepVGGBlock(8, 8, padding=2, dilation=2, groups=2), IMAGE)
