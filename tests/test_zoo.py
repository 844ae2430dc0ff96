"""Modules of other people, of no class that is known: each becomes the fewest layers, and computes the same."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import ZOO, Animal

from reparam import FuseError, fuse
from reparam.fusing._foreign.trace import is_any_norm

ATEN = torch.ops.aten
PRODUCTS = (ATEN.mm.default, ATEN.addmm.default, ATEN.bmm.default)
NORMS = (ATEN.native_batch_norm.default, ATEN._native_batch_norm_legit_no_training.default)
POOLS = (ATEN.avg_pool1d.default, ATEN.avg_pool2d.default, ATEN.avg_pool3d.default)


class Counter(TorchDispatchMode):
    """Counts the weight layers that run, however they are written, and their multiply-adds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = self.macs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is ATEN.convolution.default:
            self.layers += 1
            turned = args[6]
            self.macs += (args[0] if turned else out).numel() * args[1][0].numel()
        elif func in PRODUCTS:
            self.layers += 1
            self.macs += out.numel() * args[-2].shape[-1]
        elif func in NORMS or func in POOLS:
            self.layers += 1
        return out


def counted(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """What a module returns, how many layers run for it, and with how many multiply-adds."""
    with torch.no_grad(), Counter() as counter:
        y = copy.deepcopy(module)(x)
    return y, counter.layers, counter.macs


def layers_in(module: nn.Module) -> int:
    weighed = (nn.modules.conv._ConvNd, nn.Linear)
    return sum(isinstance(part, weighed) or is_any_norm(part) for part in module.modules())


class Net(nn.Module):
    """A module between layers that have nothing to do with it."""

    def __init__(self, inner: nn.Module, x: torch.Tensor) -> None:
        super().__init__()
        with torch.no_grad():
            outputs = copy.deepcopy(inner)(x).shape
        self.head, self.inner, self.tail = pointwise(x.shape), inner, pointwise(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(F.leaky_relu(self.inner(self.head(x).sigmoid()), 0.3))


def pointwise(shape: torch.Size) -> nn.Module:
    """Of images by their channels; of vectors, and of tokens, of which there are five, by their last axis."""
    if len(shape) == 2 or shape[1] == 5:
        return nn.Linear(shape[-1], shape[-1]).double()
    return {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)](shape[1], shape[1], 1).double()


def alone(animal: Animal) -> tuple[nn.Module, torch.Tensor, int]:
    return animal.module(), animal.example(), animal.fewest


def in_a_net(animal: Animal) -> tuple[nn.Module, torch.Tensor, int]:
    return Net(animal.module(), animal.example()).eval(), animal.example(), animal.fewest + 2


PLACES = pytest.mark.parametrize("place", [alone, in_a_net])


@contextmanager
def unchanged(model: nn.Module):
    """Fails if what runs inside changes a model."""
    state = copy.deepcopy(model.state_dict())
    parts = [(name, type(part), part.training, sorted(vars(part))) for name, part in model.named_modules()]
    yield
    assert parts == [(name, type(part), part.training, sorted(vars(part))) for name, part in model.named_modules()]
    assert list(state) == list(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


@PLACES
@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_it_becomes_the_fewest_layers_and_computes_the_same(name, place):
    animal = ZOO[name]
    model, x, fewest = place(animal)
    y, layers, macs = counted(model, x)
    if max(layers, layers_in(model)) == fewest:
        with pytest.raises(FuseError, match="found no block to fuse"):
            fuse(model)
        return
    with unchanged(model):
        plain = fuse(model, strict=not animal.stays)
    got, left, cost = counted(plain, x)
    assert_close(got, y)
    assert max(left, layers_in(plain)) == fewest
    assert cost <= macs, "the result costs more than what it replaces"


@PLACES
@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_in_float32_every_number_is_rounded_once(name, place):
    model, x, fewest = place(ZOO[name])
    y, layers, _ = counted(model, x)
    if max(layers, layers_in(model)) == fewest:
        return  # as the other test shows, there is nothing to fuse
    single = copy.deepcopy(model).float()
    plain, exact = fuse(single), fuse(copy.deepcopy(single).double())
    assert list(plain.state_dict()) == list(exact.state_dict())
    for key, value in exact.state_dict().items():
        assert torch.equal(plain.state_dict()[key], value.to(plain.state_dict()[key].dtype)), key
    got, noise = plain(x.float()), (single(x.float()).double() - y).abs().max()
    assert got.dtype == torch.float32
    assert (got.double() - y).abs().max() <= 10 * max(noise, torch.finfo(torch.float32).eps * y.abs().max())
