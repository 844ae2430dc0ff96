"""RepLKNet, UniRepLKNet and, in one dimension, ModernTCN."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from official import row
from torch import nn

from .animal import IMAGE, Animal


class ReparamLargeKernelConv(nn.Module):
    """RepLKNet's and, in one dimension, ModernTCN's."""

    def __init__(self, channels, kernel_size, small_kernel, groups, one_dimension=False):
        super().__init__()
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if one_dimension else (nn.Conv2d, nn.BatchNorm2d)
        for name, size in (("lkb_origin", kernel_size), ("small_conv", small_kernel)):
            layer = conv(channels, channels, size, padding=size // 2, groups=groups, bias=False)
            self.add_module(name, row(conv=layer, bn=norm(channels)))

    def forward(self, inputs):
        if hasattr(self, "lkb_reparam"):
            out = self.lkb_reparam(inputs)
        else:
            out = self.lkb_origin(inputs)
            if hasattr(self, "small_conv"):
                out += self.small_conv(inputs)
        return out


class DilatedReparamBlock(nn.Module):
    """UniRepLKNet's."""

    def __init__(self, channels, kernel_size=9):
        super().__init__()
        self.lk_origin = nn.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False
        )
        self.kernel_sizes, self.dilates = {9: ([5, 5, 3, 3], [1, 2, 3, 4]), 7: ([5, 3, 3], [1, 2, 3])}[kernel_size]
        self.origin_bn = nn.BatchNorm2d(channels)
        for k, r in zip(self.kernel_sizes, self.dilates):
            padding = (r * (k - 1) + 1) // 2
            conv = nn.Conv2d(channels, channels, k, padding=padding, dilation=r, groups=channels, bias=False)
            setattr(self, f"dil_conv_k{k}_{r}", conv)
            setattr(self, f"dil_bn_k{k}_{r}", nn.BatchNorm2d(channels))

    def forward(self, x):
        if not hasattr(self, "origin_bn"):
            return self.lk_origin(x)
        out = self.origin_bn(self.lk_origin(x))
        for k, r in zip(self.kernel_sizes, self.dilates):
            conv = self.__getattr__(f"dil_conv_k{k}_{r}")
            bn = self.__getattr__(f"dil_bn_k{k}_{r}")
            out = out + bn(conv(x))
        return out


class NCHWtoNHWC(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class NHWCtoNCHW(nn.Module):
    def forward(self, x):
        return x.permute(0, 3, 1, 2)


class GRNwithNHWC(nn.Module):
    """Global response normalization: not linear."""

    def __init__(self, dim):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim)), nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x):
        energy = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return (self.gamma * (energy / (energy.mean(dim=-1, keepdim=True) + 1e-6)) + 1) * x + self.beta


class SEBlock(nn.Module):
    def __init__(self, input_channels, internal_neurons):
        super().__init__()
        self.down = nn.Conv2d(input_channels, internal_neurons, 1)
        self.up = nn.Conv2d(internal_neurons, input_channels, 1)
        self.input_channels, self.nonlinear = input_channels, nn.ReLU(inplace=True)

    def forward(self, inputs):
        x = F.adaptive_avg_pool2d(inputs, output_size=(1, 1))
        x = torch.sigmoid(self.up(self.nonlinear(self.down(x))))
        return inputs * x.view(-1, self.input_channels, 1, 1)


class UniRepLKNetBlock(nn.Module):
    """UniRepLKNet's whole block: the second norm is behind a linear layer and a permutation."""

    def __init__(self, dim, kernel_size=7, ffn_factor=2):
        super().__init__()
        self.with_cp = False
        self.dwconv, self.norm = DilatedReparamBlock(dim, kernel_size), nn.BatchNorm2d(dim)
        self.se = SEBlock(dim, dim // 4)
        inner = ffn_factor * dim
        self.pwconv1 = nn.Sequential(NCHWtoNHWC(), nn.Linear(dim, inner))
        self.act = nn.Sequential(nn.GELU(), GRNwithNHWC(inner))
        self.pwconv2 = nn.Sequential(nn.Linear(inner, dim, bias=False), NHWCtoNCHW(), nn.BatchNorm2d(dim))
        self.gamma = nn.Parameter(torch.ones(dim))
        self.drop_path = nn.Identity()

    def compute_residual(self, x):
        y = self.se(self.norm(self.dwconv(x)))
        y = self.pwconv2(self.act(self.pwconv1(y)))
        if self.gamma is not None:
            y = self.gamma.view(1, -1, 1, 1) * y
        return self.drop_path(y)

    def forward(self, inputs):
        def _f(x):
            return x + self.compute_residual(x)

        return cp.checkpoint(_f, inputs) if self.with_cp and inputs.requires_grad else _f(inputs)


def animals() -> Iterator[tuple[str, Animal]]:
    yield "RepLKNet", Animal(lambda: ReparamLargeKernelConv(8, 13, 5, groups=8), IMAGE)
    yield "ModernTCN", Animal(lambda: ReparamLargeKernelConv(8, 15, 5, groups=8, one_dimension=True), (2, 8, 40))
    yield "UniRepLKNet DilatedReparamBlock", Animal(lambda: DilatedReparamBlock(8), IMAGE)
    yield "UniRepLKNet block", Animal(lambda: UniRepLKNetBlock(8), IMAGE, fewest=5)
