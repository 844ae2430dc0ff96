"""RepViT, LSNet, RepNeXt, FastViT, MobileOne, InceptionNeXt and FasterNet."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from official import MobileOneBlock
from torch import nn

from .animal import IMAGE, Animal


class Conv2d_BN(nn.Sequential):
    """RepViT's and LeViT's."""

    def __init__(self, a, b, ks=1, stride=1, pad=0, dilation=1, groups=1):
        super().__init__()
        self.add_module("c", nn.Conv2d(a, b, ks, stride, pad, dilation, groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(b))


class RepVGGDW(nn.Module):
    """RepViT's, and LSNet's with the norm after the sum."""

    def __init__(self, ed, norm_after=False):
        super().__init__()
        self.conv = Conv2d_BN(ed, ed, 3, 1, 1, groups=ed)
        self.conv1 = nn.Conv2d(ed, ed, 1, 1, 0, groups=ed) if norm_after else Conv2d_BN(ed, ed, 1, 1, 0, groups=ed)
        self.bn = nn.BatchNorm2d(ed) if norm_after else nn.Identity()
        self.dim = ed

    def forward(self, x):
        return self.bn((self.conv(x) + self.conv1(x)) + x)


class ResidualOfRepViT(nn.Module):
    def __init__(self, m, drop=0.1):
        super().__init__()
        self.m, self.drop = m, drop

    def forward(self, x):
        if self.training and self.drop > 0:
            return x + self.m(x) * torch.rand(x.size(0), 1, 1, 1).ge_(self.drop).div(1 - self.drop).detach()
        return x + self.m(x)


class BN_Linear(nn.Sequential):
    """RepViT's; RepNeXt's NormLinear."""

    def __init__(self, a, b):
        super().__init__()
        self.add_module("bn", nn.BatchNorm1d(a))
        self.add_module("l", nn.Linear(a, b))


class Classfier(nn.Module):
    """RepViT's two heads, of which the mean is taken; the name is theirs."""

    def __init__(self, dim, num_classes):
        super().__init__()
        self.classifier, self.classifier_dist = BN_Linear(dim, num_classes), BN_Linear(dim, num_classes)
        self.distillation = True

    def forward(self, x):
        if self.distillation:
            x = self.classifier(x), self.classifier_dist(x)
            if not self.training:
                x = (x[0] + x[1]) / 2
        else:
            x = self.classifier(x)
        return x


class RepDWConvS(nn.Module):
    """RepNeXt's small one; with stride two strips run one after the other."""

    def __init__(self, in_channels, stride=1, bias=True):
        super().__init__()
        self.stride = stride
        depthwise = {"in_channels": in_channels, "out_channels": in_channels, "groups": in_channels}
        both = bias and stride == 1
        self.conv_3_3 = nn.Conv2d(bias=bias, kernel_size=3, stride=stride, dilation=1, padding=1, **depthwise)
        self.conv_3_w = nn.Conv2d(bias=both, kernel_size=(1, 3), stride=(1, stride), padding=(0, 1), **depthwise)
        self.conv_3_h = nn.Conv2d(bias=both, kernel_size=(3, 1), stride=(stride, 1), padding=(1, 0), **depthwise)
        self.conv_2_2 = nn.Conv2d(bias=bias, kernel_size=2, stride=stride, dilation=2, padding=1, **depthwise)

    def forward(self, x):
        if self.stride == 1:
            return self.conv_3_3(x) + self.conv_3_h(x) + self.conv_3_w(x) + self.conv_2_2(x)
        return self.conv_3_3(x) + self.conv_3_h(self.conv_3_w(x)) + self.conv_2_2(x)


class RepDWConvM(nn.Module):
    """RepNeXt's middle one."""

    def __init__(self, in_channels, stride=1, bias=True):
        super().__init__()
        depthwise = {"in_channels": in_channels, "out_channels": in_channels, "groups": in_channels}
        self.conv_7_7 = nn.Conv2d(bias=bias, kernel_size=(7, 7), stride=stride, padding=3, **depthwise)
        self.conv_5_3 = nn.Conv2d(bias=bias, kernel_size=(5, 3), stride=stride, padding=(2, 1), **depthwise)
        self.conv_3_5 = nn.Conv2d(bias=bias, kernel_size=(3, 5), stride=stride, padding=(1, 2), **depthwise)
        self.conv_7_w = nn.Conv2d(bias=False, kernel_size=(1, 7), stride=(1, stride), padding=(0, 3), **depthwise)
        self.conv_7_h = nn.Conv2d(bias=False, kernel_size=(7, 1), stride=(stride, 1), padding=(3, 0), **depthwise)
        self.conv_5_w = nn.Conv2d(bias=False, kernel_size=(1, 5), stride=(1, stride), padding=(0, 2), **depthwise)
        self.conv_5_h = nn.Conv2d(bias=False, kernel_size=(5, 1), stride=(stride, 1), padding=(2, 0), **depthwise)

    def forward(self, x):
        stacked = self.conv_7_h(self.conv_7_w(x)) + self.conv_5_h(self.conv_5_w(x))
        return self.conv_7_7(x) + self.conv_5_3(x) + self.conv_3_5(x) + stacked


class ChunkConv(nn.Module):
    """RepNeXt's: a quarter of the channels each. The long strips have a bias between them, and stay two."""

    def __init__(self, in_channels):
        super().__init__()
        hidden = in_channels // 4
        self.conv_s, self.conv_m = RepDWConvS(hidden), RepDWConvM(hidden)
        self.conv_l = nn.Sequential(
            nn.Conv2d(hidden, hidden, (1, 11), padding=(0, 5), groups=hidden),
            nn.Conv2d(hidden, hidden, (11, 1), padding=(5, 0), groups=hidden),
        )

    def forward(self, x):
        i, s, m, long = torch.chunk(x, 4, dim=1)
        return torch.cat((i, self.conv_s(s), self.conv_m(m), self.conv_l(long)), dim=1)


class CopyConv(nn.Module):
    """RepNeXt's, between stages."""

    def __init__(self, in_channels):
        super().__init__()
        self.conv_s, self.conv_m = RepDWConvS(in_channels, stride=2), RepDWConvM(in_channels, stride=2)

    def forward(self, x):
        return torch.cat((self.conv_s(x), self.conv_m(x)), dim=1)


class RepMixer(nn.Module):
    """FastViT's: a scaled difference of two MobileOne blocks without activation."""

    def __init__(self, dim, kernel_size=3):
        super().__init__()
        self.norm = MobileOneBlock(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm.rbr_conv, self.norm.rbr_scale = nn.ModuleList(), None
        self.mixer = MobileOneBlock(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, num_conv_branches=2)
        self.norm.activation, self.mixer.activation = nn.Identity(), nn.Identity()
        self.layer_scale = nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x):
        if hasattr(self, "reparam_conv"):
            return self.reparam_conv(x)
        return x + self.layer_scale * (self.mixer(x) - self.norm(x))


class InceptionDWConv2d(nn.Module):
    """InceptionNeXt's: one convolution of all taps would cost ten times as much."""

    def __init__(self, in_channels, square_kernel_size=3, band_kernel_size=11, branch_ratio=0.25):
        super().__init__()
        gc = int(in_channels * branch_ratio)
        band, half = band_kernel_size, band_kernel_size // 2
        self.dwconv_hw = nn.Conv2d(gc, gc, square_kernel_size, padding=square_kernel_size // 2, groups=gc)
        self.dwconv_w = nn.Conv2d(gc, gc, kernel_size=(1, band), padding=(0, half), groups=gc)
        self.dwconv_h = nn.Conv2d(gc, gc, kernel_size=(band, 1), padding=(half, 0), groups=gc)
        self.split_indexes = (in_channels - 3 * gc, gc, gc, gc)

    def forward(self, x):
        x_id, x_hw, x_w, x_h = torch.split(x, self.split_indexes, dim=1)
        return torch.cat((x_id, self.dwconv_hw(x_hw), self.dwconv_w(x_w), self.dwconv_h(x_h)), dim=1)


class PartialConv(nn.Module):
    """FasterNet's: a quarter of the channels through a 3x3, then all through a 1x1."""

    def __init__(self, dim, hidden):
        super().__init__()
        self.dim_conv3, self.dim_untouched = dim // 4, dim - dim // 4
        self.partial_conv3 = nn.Conv2d(self.dim_conv3, self.dim_conv3, 3, 1, 1, bias=False)
        self.mlp = nn.Sequential(nn.Conv2d(dim, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())

    def forward(self, x):
        x1, x2 = torch.split(x, [self.dim_conv3, self.dim_untouched], dim=1)
        return self.mlp(torch.cat((self.partial_conv3(x1), x2), 1))


def animals() -> Iterator[tuple[str, Animal]]:
    yield "RepViT RepVGGDW", Animal(lambda: RepVGGDW(8), IMAGE)
    yield "LSNet RepVGGDW", Animal(lambda: RepVGGDW(8, norm_after=True), IMAGE)
    yield "RepViT Residual", Animal(lambda: ResidualOfRepViT(Conv2d_BN(8, 8, 3, 1, 1, groups=8)), IMAGE)
    yield "RepViT classifier", Animal(lambda: Classfier(8, 5), (3, 8))
    yield "RepNeXt RepDWConvS", Animal(lambda: RepDWConvS(8), IMAGE)
    yield "RepNeXt RepDWConvS with stride", Animal(lambda: RepDWConvS(8, stride=2), IMAGE)
    yield "RepNeXt RepDWConvM", Animal(lambda: RepDWConvM(8), IMAGE)
    yield "RepNeXt ChunkConv", Animal(lambda: ChunkConv(8), IMAGE, fewest=4, stays=True)
    yield "RepNeXt CopyConv", Animal(lambda: CopyConv(8), IMAGE, fewest=2)
    yield "FastViT RepMixer", Animal(lambda: RepMixer(8), IMAGE)
    yield "InceptionNeXt", Animal(lambda: InceptionDWConv2d(8), IMAGE, fewest=3, stays=True)
    yield "FasterNet", Animal(lambda: PartialConv(8, 16), IMAGE, fewest=2, stays=True)
    yield "MobileOne", Animal(lambda: MobileOneBlock(8, 8, 3, padding=1, groups=8, num_conv_branches=3), IMAGE)
