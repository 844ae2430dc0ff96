"""Fine-tune a trained timm network with blocks: swap its convolutions for blocks, train, fuse, and load it back.

The task is small and needs no download: recognize which of scikit-image's photos a patch comes from. The network is a
ResNet, which is first trained without blocks. To start from timm's weights instead, build it with `pretrained=True`.

    python examples/finetune_timm.py [--smoke]
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Annotated

import numpy as np
import timm
import torch
import torch.nn.functional as F
import typer
from skimage import data
from torch import Tensor, nn

from reparam import RepVGGBlock, freeze_bn_stats, fuse, swap_convs, verify

PHOTOS = (data.astronaut, data.chelsea, data.coffee, data.rocket, data.hubble_deep_field, data.immunohistochemistry)
build = partial(timm.create_model, "resnet10t", num_classes=len(PHOTOS))
images = [torch.from_numpy(photo()).permute(2, 0, 1).float() / 255 for photo in PHOTOS]


def batch(rng: np.random.Generator, size: int, right: bool) -> tuple[Tensor, Tensor]:
    """Patches of 32x32 and the indices of their photos, from the right third of each photo or from the rest of it."""
    patches, labels = [], rng.integers(len(images), size=size)
    for label in labels:
        image = images[label]
        third = image.shape[2] * 2 // 3
        low, high = (third, image.shape[2] - 32) if right else (0, third - 32)
        top, left = int(rng.integers(image.shape[1] - 32)), int(rng.integers(low, high))
        patches.append(image[:, top : top + 32, left : left + 32])
    return torch.stack(patches), torch.from_numpy(labels)


def train(net: nn.Module, steps: int, learning_rate: float, rng: np.random.Generator) -> None:
    """Train with SGD and a cosine schedule."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), learning_rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, labels = batch(rng, 16, right=False)
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(net: nn.Module) -> float:
    """Share of correct answers on patches that training never saw."""
    x, labels = batch(np.random.default_rng(1), 256, right=True)
    return float((net.eval()(x).argmax(1) == labels).float().mean())


def main(smoke: Annotated[bool, typer.Option(help="Run only a few steps.")] = False) -> None:
    """Train a timm network, swap blocks in, fine-tune, fuse, and load the result back into the network."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    steps = 3 if smoke else 100
    net = build()
    train(net, steps, 0.02, rng)
    print(f"trained unchanged:    {accuracy(net):.3f}")

    x, _ = batch(rng, 8, right=True)
    before = copy.deepcopy(net)(x)
    report = swap_convs(net, RepVGGBlock, calibrate=[batch(rng, 32, right=False)[0] for _ in range(4)])
    change = (net(x) - before).abs().max()
    print(f"{len(report.swapped)} convolutions swapped; outputs changed by {change:.0e} at most")

    train(net, steps, 0.02, rng)
    freeze_bn_stats(net)
    print(f"fine-tuned, blocks:   {accuracy(net):.3f}")

    plain = fuse(net)
    print(verify(net, plain, x))
    loaded = build()
    loaded.load_state_dict(plain.state_dict(), strict=True)  # timm's class, with its own keys
    print(f"fused, loaded back:   {accuracy(loaded):.3f}")


if __name__ == "__main__":
    typer.run(main)
