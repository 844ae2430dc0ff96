"""Blocks with the names and the equations of their authors' codes, for tests of modules that live in user code.

Written from the equations; that names and equations are the authors' is tested with files that their codes wrote.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def row(**parts: nn.Module) -> nn.Sequential:
    """Modules in a row, by name."""
    return nn.Sequential(OrderedDict(parts))


def conv_bn(inputs: int, outputs: int, size: int, **geometry: Any) -> nn.Sequential:
    """A convolution without bias, and a batch norm."""
    return row(conv=nn.Conv2d(inputs, outputs, size, bias=False, **geometry), bn=nn.BatchNorm2d(outputs))


class Gate(nn.Module):
    """Squeeze and excite, with the names of its two convolutions given."""

    def __init__(self, channels: int, hidden: int, names: tuple[str, str]) -> None:
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Conv2d(channels, hidden, 1))
        self.add_module(names[1], nn.Conv2d(hidden, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        down, up = (self.get_submodule(name) for name in self.names)
        return x * up(down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class RepVGGBlock(nn.Module):
    """RepVGG, and RepVGGplus with the gate behind the ReLU."""

    def __init__(
        self, in_channels, out_channels, kernel_size=3, stride=1, padding=1, groups=1, use_se=False, use_post_se=False
    ):
        super().__init__()
        self.deploy = False
        self.nonlinearity = nn.ReLU()
        gate = (
            Gate(out_channels, out_channels // (16 if use_se else 4), ("down", "up"))
            if use_se or use_post_se
            else nn.Identity()
        )
        self.se = gate if use_se else nn.Identity()
        self.post_se = gate if use_post_se else nn.Identity()
        same = in_channels == out_channels and stride == 1
        self.rbr_identity = nn.BatchNorm2d(in_channels) if same else None
        self.rbr_dense = conv_bn(in_channels, out_channels, kernel_size, stride=stride, padding=padding, groups=groups)
        self.rbr_1x1 = conv_bn(
            in_channels, out_channels, 1, stride=stride, padding=padding - kernel_size // 2, groups=groups
        )

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "rbr_reparam"):
            y = self.rbr_reparam(x)
        else:
            y = self.rbr_dense(x) + self.rbr_1x1(x) + (0 if self.rbr_identity is None else self.rbr_identity(x))
        return self.post_se(self.nonlinearity(self.se(y)))


class MobileOneBlock(nn.Module):
    """MobileOne."""

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, groups=1, use_se=False, num_conv_branches=1
    ):
        super().__init__()
        self.inference_mode = False
        geometry = {"stride": stride, "groups": groups}
        self.se = Gate(out_channels, out_channels // 16, ("reduce", "expand")) if use_se else nn.Identity()
        self.activation = nn.ReLU()
        same = in_channels == out_channels and stride == 1
        self.rbr_skip = nn.BatchNorm2d(in_channels) if same else None
        branches = (
            conv_bn(in_channels, out_channels, kernel_size, padding=padding, **geometry)
            for _ in range(num_conv_branches)
        )
        self.rbr_conv = nn.ModuleList(branches)
        self.rbr_scale = conv_bn(in_channels, out_channels, 1, **geometry) if kernel_size > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.inference_mode:
            return self.activation(self.se(self.reparam_conv(x)))
        y = 0 if self.rbr_skip is None else self.rbr_skip(x)
        y = y + (0 if self.rbr_scale is None else self.rbr_scale(x))
        for branch in self.rbr_conv:
            y = y + branch(x)
        return self.activation(self.se(y))


class IdentityBasedConv1x1(nn.Conv2d):
    """DBB's first 1x1: the identity, which no state dict holds, plus what is learnt."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, channels, 1, groups=groups, bias=False)
        self.id_tensor = torch.eye(channels // groups).repeat(groups, 1)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight + self.id_tensor.to(self.weight), None, groups=self.groups)


class BNAndPadLayer(nn.Module):
    """A batch norm, and around it what it makes of zeros."""

    def __init__(self, pad_pixels: int, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.pad_pixels = pad_pixels

    def forward(self, x: Tensor) -> Tensor:
        p, bn = self.pad_pixels, self.bn
        y = F.pad(bn(x), [p] * 4)
        if p:
            border = (bn.bias - bn.running_mean * bn.weight / (bn.running_var + bn.eps).sqrt()).view(1, -1, 1, 1)
            y[:, :, :p], y[:, :, -p:], y[..., :p], y[..., -p:] = border, border, border, border
        return y


class DiverseBranchBlock(nn.Module):
    """DBB."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        groups=1,
        internal_channels_1x1_3x3=None,
        nonlinear=None,
    ):
        super().__init__()
        self.nonlinear = nonlinear or nn.Identity()
        g = {"groups": groups}
        depthwise = groups == out_channels
        inner = internal_channels_1x1_3x3 or (2 * in_channels if depthwise else in_channels)
        self.dbb_origin = conv_bn(in_channels, out_channels, kernel_size, stride=stride, padding=padding, **g)
        pool = nn.AvgPool2d(kernel_size, stride, padding if depthwise else 0)
        norm = nn.BatchNorm2d(out_channels)
        if depthwise:
            self.dbb_avg = row(avg=pool, avgbn=norm)
        else:
            point = nn.Conv2d(in_channels, out_channels, 1, bias=False, **g)
            self.dbb_avg = row(conv=point, bn=BNAndPadLayer(padding, out_channels), avg=pool, avgbn=norm)
            self.dbb_1x1 = conv_bn(in_channels, out_channels, 1, stride=stride, **g)
        first = nn.Conv2d(in_channels, inner, 1, bias=False, **g)
        first = {"idconv1": IdentityBasedConv1x1(in_channels, groups)} if inner == in_channels else {"conv1": first}
        second = nn.Conv2d(inner, out_channels, kernel_size, stride=stride, bias=False, **g)
        self.dbb_1x1_kxk = row(
            **first, bn1=BNAndPadLayer(padding, inner), conv2=second, bn2=nn.BatchNorm2d(out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "dbb_reparam"):
            return self.nonlinear(self.dbb_reparam(x))
        y = self.dbb_origin(x)
        if hasattr(self, "dbb_1x1"):
            y += self.dbb_1x1(x)
        y += self.dbb_avg(x)
        y += self.dbb_1x1_kxk(x)
        return self.nonlinear(y)


class CropLayer(nn.Module):
    """Takes rows and columns off."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, self.rows : -self.rows, :] if self.rows else x
        return x[:, :, :, self.columns : -self.columns] if self.columns else x


class ACBlock(nn.Module):
    """ACNet; its inference form has no activation."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        groups=1,
        padding_mode="zeros",
        nonlinear=None,
    ):
        super().__init__()
        self.nonlinear = nonlinear or nn.Identity()
        inner = padding - kernel_size // 2

        def conv(size, pads):
            geometry = {"stride": stride, "groups": groups, "padding_mode": padding_mode}
            return nn.Conv2d(in_channels, out_channels, size, padding=pads, bias=False, **geometry)

        pads = max(inner, 0)
        self.square_conv = conv((kernel_size, kernel_size), padding)
        self.ver_conv = conv((kernel_size, 1), (padding if inner >= 0 else 0, pads))
        self.hor_conv = conv((1, kernel_size), (pads, padding if inner >= 0 else 0))
        self.ver_conv_crop_layer = nn.Identity() if inner >= 0 else CropLayer(0, -inner)
        self.hor_conv_crop_layer = nn.Identity() if inner >= 0 else CropLayer(-inner, 0)
        for name in ("square_bn", "ver_bn", "hor_bn"):
            self.add_module(name, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.square_bn(self.square_conv(x))
        y = y + self.ver_bn(self.ver_conv(self.ver_conv_crop_layer(x)))
        return self.nonlinear(y + self.hor_bn(self.hor_conv(self.hor_conv_crop_layer(x))))


class SeqConv3x3(nn.Module):
    """One of the paths of ECB: a 1x1, its bias around what it made, and a 3x3."""

    def __init__(self, seq_type, inp_planes, out_planes, depth_multiplier=-1):
        super().__init__()
        dense = seq_type == "conv1x1-conv3x3"
        middle = int(out_planes * depth_multiplier) if dense else out_planes
        self.k0, self.b0 = nn.Conv2d(inp_planes, middle, 1).parameters()
        if dense:
            self.k1, self.b1 = nn.Conv2d(middle, out_planes, 3).parameters()
        else:
            self.scale = nn.Parameter(torch.randn(out_planes, 1, 1, 1))
            self.bias = nn.Parameter(torch.randn(out_planes))
            self.mask = nn.Parameter(torch.randn(out_planes, 1, 3, 3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(F.conv2d(x, self.k0, self.b0), (1, 1, 1, 1))
        border = self.b0.view(1, -1, 1, 1)
        y[:, :, :1], y[:, :, -1:], y[..., :1], y[..., -1:] = border, border, border, border
        if hasattr(self, "k1"):
            return F.conv2d(y, self.k1, self.b1)
        return F.conv2d(y, self.scale * self.mask, self.bias, groups=len(self.bias))


class ECB(nn.Module):
    """ECBSR's block with its activation."""

    def __init__(self, inp_planes, out_planes, depth_multiplier, act_type="prelu", with_idt=False):
        super().__init__()
        self.act_type = act_type
        self.with_idt = with_idt and inp_planes == out_planes
        self.conv3x3 = nn.Conv2d(inp_planes, out_planes, 3, padding=1)
        self.conv1x1_3x3 = SeqConv3x3("conv1x1-conv3x3", inp_planes, out_planes, depth_multiplier)
        for name in ("sbx", "sby", "lpl"):
            self.add_module(f"conv1x1_{name}", SeqConv3x3(f"conv1x1-{name}", inp_planes, out_planes))
        if act_type != "linear":
            self.act = {"prelu": nn.PReLU(out_planes), "softplus": nn.Softplus(), "relu": nn.ReLU()}[act_type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3x3(x) + self.conv1x1_3x3(x) + self.conv1x1_sbx(x) + self.conv1x1_sby(x) + self.conv1x1_lpl(x)
        if self.with_idt:
            y += x
        return y if self.act_type == "linear" else self.act(y)


class Conv3XC(nn.Module):
    """SPAN's convolution; the authors' eval forward writes what it works out into `eval_conv`."""

    def __init__(self, c_in, c_out, gain1=1, s=1, relu=False):
        super().__init__()
        self.has_relu, self.stride = relu, s
        self.sk = nn.Conv2d(c_in, c_out, 1, s)
        middle = nn.Conv2d(c_in * gain1, c_out * gain1, 3, s)
        self.conv = nn.Sequential(nn.Conv2d(c_in, c_in * gain1, 1), middle, nn.Conv2d(c_out * gain1, c_out, 1))
        self.eval_conv = nn.Conv2d(c_in, c_out, 3, s, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.pad(x, (1, 1, 1, 1))) + self.sk(x)
        return F.leaky_relu(y, 0.05) if self.has_relu else y


KINDS: dict[str, type[nn.Module]] = {
    "RepVGGBlock": RepVGGBlock,
    "RepVGGBlock(use_se)": RepVGGBlock,
    "RepVGGplusBlock": RepVGGBlock,
    "MobileOneBlock": MobileOneBlock,
    "DiverseBranchBlock": DiverseBranchBlock,
    "ACBlock": ACBlock,
    "ECB": ECB,
    "Conv3XC": Conv3XC,
}
"""By the name of the authors' class, which is `block` in the files of golden/."""
