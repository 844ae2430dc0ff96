"""Restoration and super-resolution: OmniShift, RTMoSR, FMEN, EFDN, ECBSR."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from official import ECB, Conv3XC
from torch import Tensor, nn

from .animal import IMAGE, Animal


class OmniShift(nn.Module):
    """Restore-RWKV's; in eval mode its first forward writes the sum into `conv5x5_reparam`, and then runs it."""

    def __init__(self, dim):
        super().__init__()
        self.conv1x1 = nn.Conv2d(dim, dim, kernel_size=1, groups=dim, bias=False)
        self.conv3x3 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)
        self.conv5x5 = nn.Conv2d(dim, dim, kernel_size=5, padding=2, groups=dim, bias=False)
        self.alpha = nn.Parameter(torch.randn(4), requires_grad=True)
        self.conv5x5_reparam = nn.Conv2d(dim, dim, kernel_size=5, padding=2, groups=dim, bias=False)
        self.repram_flag = True

    def forward_train(self, x):
        out1x1, out3x3, out5x5 = self.conv1x1(x), self.conv3x3(x), self.conv5x5(x)
        return self.alpha[0] * x + self.alpha[1] * out1x1 + self.alpha[2] * out3x3 + self.alpha[3] * out5x5

    def reparam_5x5(self):
        one = F.pad(torch.ones_like(self.conv1x1.weight), (2, 2, 2, 2))
        small, middle = F.pad(self.conv1x1.weight, (2, 2, 2, 2)), F.pad(self.conv3x3.weight, (1, 1, 1, 1))
        combined = self.alpha[0] * one + self.alpha[1] * small + self.alpha[2] * middle
        self.conv5x5_reparam.weight = nn.Parameter(combined + self.alpha[3] * self.conv5x5.weight)

    def forward(self, x):
        if self.training:
            self.repram_flag = True
            out = self.forward_train(x)
        elif self.training is False and self.repram_flag is True:
            self.reparam_5x5()
            self.repram_flag = False
            out = self.conv5x5_reparam(x)
        elif self.training is False and self.repram_flag is False:
            out = self.conv5x5_reparam(x)
        return out


class OmniShiftThatSums(OmniShift):
    """Ports of it, which run the branches in eval mode too."""

    def forward(self, x):
        return self.forward_train(x)


class RepConvOfRTMoSR(nn.Module):
    """RTMoSR's: `eval()` works the sum out."""

    def __init__(self, in_dim=3, out_dim=32):
        super().__init__()
        self.conv1 = nn.Conv2d(in_dim, out_dim, 1, 1, 0)
        self.conv2 = nn.Conv2d(in_dim, out_dim, 3, 1, 1)
        self.conv3 = Conv3XC(in_dim, out_dim, gain1=2)
        self.conv_3x3_rep = nn.Conv2d(in_dim, out_dim, 3, 1, 1)
        self.alpha = nn.Parameter(torch.randn(3), requires_grad=True)

    def fuse(self):
        first, second, third = self.conv3.conv
        weight = torch.einsum("om,mnhw,ni->oihw", third.weight[..., 0, 0], second.weight, first.weight[..., 0, 0])
        bias = second.bias + torch.einsum("mnhw,n->m", second.weight, first.bias)
        bias = third.bias + third.weight[..., 0, 0] @ bias + self.conv3.sk.bias
        weight = weight + F.pad(self.conv3.sk.weight, (1, 1, 1, 1))
        small = F.pad(self.conv1.weight, (1, 1, 1, 1))
        summed = self.alpha[0] * small + self.alpha[1] * self.conv2.weight + self.alpha[2] * weight
        shift = self.alpha[0] * self.conv1.bias + self.alpha[1] * self.conv2.bias + self.alpha[2] * bias
        self.conv_3x3_rep.weight, self.conv_3x3_rep.bias = nn.Parameter(summed), nn.Parameter(shift)

    def train(self, mode: bool = True):
        super().train(mode)
        if not mode:
            self.fuse()
        return self

    def forward(self, x):
        if self.training:
            return self.alpha[0] * self.conv1(x) + self.alpha[1] * self.conv2(x) + self.alpha[2] * self.conv3(x)
        return self.conv_3x3_rep(x)


def pad_tensor(t: Tensor, pattern: Tensor) -> Tensor:
    """FMEN's: around an image, what a 1x1 made of zeros."""
    pattern = pattern.view(1, -1, 1, 1)
    t = F.pad(t, (1, 1, 1, 1), "constant", 0)
    t[:, :, 0:1, :], t[:, :, -1:, :] = pattern, pattern
    t[:, :, :, 0:1], t[:, :, :, -1:] = pattern, pattern
    return t


class RRRB(nn.Module):
    """FMEN's: a residual inside of a residual."""

    def __init__(self, n_feats, ratio=2):
        super().__init__()
        self.expand_conv = nn.Conv2d(n_feats, ratio * n_feats, 1, 1, 0)
        self.fea_conv = nn.Conv2d(ratio * n_feats, ratio * n_feats, 3, 1, 0)
        self.reduce_conv = nn.Conv2d(ratio * n_feats, n_feats, 1, 1, 0)

    def forward(self, x):
        out = self.expand_conv(x)
        out_identity = out
        out = pad_tensor(out, self.expand_conv.bias)
        out = self.fea_conv(out) + out_identity
        out = self.reduce_conv(out)
        out += x
        return out


class SeqConv(nn.Module):
    """One of the paths of EFDN's EDBB, with parameters in place of layers."""

    def __init__(self, channels, depth_multiplier=None):
        super().__init__()
        middle = channels if depth_multiplier is None else int(channels * depth_multiplier)
        self.type = "conv1x1-sobelx" if depth_multiplier is None else "conv1x1-conv3x3"
        self.k0, self.b0 = nn.Parameter(torch.randn(middle, channels, 1, 1)), nn.Parameter(torch.randn(middle))
        if depth_multiplier is None:
            self.scale, self.bias = nn.Parameter(torch.randn(channels, 1, 1, 1)), nn.Parameter(torch.randn(channels))
            self.mask = nn.Parameter(torch.randn(channels, 1, 3, 3), requires_grad=False)
        else:
            self.k1, self.b1 = nn.Parameter(torch.randn(channels, middle, 3, 3)), nn.Parameter(torch.randn(channels))

    def forward(self, x):
        y0 = pad_tensor(F.conv2d(input=x, weight=self.k0, bias=self.b0, stride=1), self.b0)
        if self.type == "conv1x1-conv3x3":
            return F.conv2d(input=y0, weight=self.k1, bias=self.b1, stride=1)
        return F.conv2d(input=y0, weight=self.scale * self.mask, bias=self.bias, stride=1, groups=len(self.bias))


class EDBB(nn.Module):
    """EFDN's."""

    def __init__(self, n_feats, depth_multiplier=2):
        super().__init__()
        self.rep_conv, self.conv1x1 = nn.Conv2d(n_feats, n_feats, 3, 1, 1), nn.Conv2d(n_feats, n_feats, 1)
        self.conv1x1_3x3 = SeqConv(n_feats, depth_multiplier)
        self.conv1x1_sbx, self.conv1x1_lpl = SeqConv(n_feats), SeqConv(n_feats)
        self.act = nn.PReLU(n_feats)

    def forward(self, x):
        y = self.rep_conv(x) + self.conv1x1(x) + self.conv1x1_3x3(x)
        return self.act(y + self.conv1x1_sbx(x) + self.conv1x1_lpl(x) + x)


def animals() -> Iterator[tuple[str, Animal]]:
    yield "OmniShift", Animal(lambda: OmniShift(8), IMAGE)
    yield "OmniShift that sums", Animal(lambda: OmniShiftThatSums(8), IMAGE, fewest=1)
    yield "RTMoSR RepConv", Animal(lambda: RepConvOfRTMoSR(8, 6), IMAGE)
    yield "FMEN RRRB", Animal(lambda: RRRB(8), IMAGE)
    yield "EFDN EDBB", Animal(lambda: EDBB(8), IMAGE)
    yield "ECB", Animal(lambda: ECB(8, 8, 2, with_idt=True), IMAGE)
