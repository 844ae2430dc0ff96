"""Low-rank adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .animal import IMAGE, Animal


class ConvLoRA(nn.Module):
    """loralib's: the low-rank part is added to the weight, in each forward."""

    def __init__(self, conv, r=4, lora_alpha=2):
        super().__init__()
        self.conv, self.r, self.merged = conv, r, False
        k, out = conv.kernel_size[0], conv.out_channels // conv.groups
        self.lora_A = nn.Parameter(torch.randn(r * k, conv.in_channels * k))
        self.lora_B = nn.Parameter(torch.randn(out * k, r * k))
        self.scaling = lora_alpha / r

    def forward(self, x):
        if self.r > 0 and not self.merged:
            change = (self.lora_B @ self.lora_A).view(self.conv.weight.shape) * self.scaling
            return self.conv._conv_forward(x, self.conv.weight + change, self.conv.bias)
        return self.conv(x)


class LoRAConv2d(nn.Module):
    """A wrapper around any convolution, which hands on whatever it is given."""

    def __init__(self, base_layer, rank=4, scaling=0.5, dropout=0.1):
        super().__init__()
        self.base_layer, self.scaling, self.lora_dropout = base_layer, scaling, nn.Dropout(dropout)
        geometry = {"stride": base_layer.stride, "padding": base_layer.padding, "dilation": base_layer.dilation}
        self.lora_A = nn.Conv2d(base_layer.in_channels, rank, base_layer.kernel_size, bias=False, **geometry)
        self.lora_B = nn.Conv2d(rank, base_layer.out_channels, 1, bias=False)

    def forward(self, x, *args, **kwargs):
        result = self.base_layer(x, *args, **kwargs)
        return result + self.lora_B(self.lora_A(self.lora_dropout(x))) * self.scaling


class LoRALinear(nn.Module):
    """peft's, with its dicts of adapters and a loop over the names of those that are on."""

    def __init__(self, base_layer, r=4):
        super().__init__()
        self.base_layer, self.active_adapters, self.scaling = base_layer, ["default"], {"default": 0.5}
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, r, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(r, base_layer.out_features, bias=False)})
        self.lora_dropout = nn.ModuleDict({"default": nn.Identity()})

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = self.base_layer(x, *args, **kwargs)
        result_dtype = result.dtype
        for active in self.active_adapters:
            if active not in self.lora_A:
                continue
            lora_A, lora_B = self.lora_A[active], self.lora_B[active]
            x = x.to(lora_A.weight.dtype)
            result = result + lora_B(lora_A(self.lora_dropout[active](x))) * self.scaling[active]
        return result.to(result_dtype)


def animals() -> Iterator[tuple[str, Animal]]:
    yield "ConvLoRA", Animal(lambda: ConvLoRA(nn.Conv2d(8, 6, 3, padding=1)), IMAGE)
    yield "LoRA around a convolution", Animal(lambda: LoRAConv2d(nn.Conv2d(8, 6, 3, padding=1)), IMAGE)
    yield "LoRA around a linear layer", Animal(lambda: LoRALinear(nn.Linear(8, 6)), (2, 5, 8))
