"""What a user writes, for `mypy --strict`: a wrong line says which error it is, and mypy says if it is none."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from reparam import Branch, ConvBlock, ConvBNBranch, ConvBranch, ConvSpec, RepSRBlock, fuse, swap_convs
from reparam.sr import Network, RepSR, create_model, load_checkpoint


class Repeated(ConvBlock):
    count: int = 2
    sum_bn = True

    def design(self, spec: ConvSpec) -> list[Callable[[ConvSpec], Branch]]:
        return [ConvBranch, *[partial(ConvBNBranch, kernel_size=1)] * self.count]


net = nn.Sequential(RepSRBlock(3, 16, paths=3), nn.ReLU(), Repeated(16, 8, (3, 5), 2, bias=True, fold=False, count=1))
block = RepSRBlock(16, 16, 3, 1, "same", groups=2, dtype=torch.float64, bn=partial(nn.BatchNorm2d, eps=1e-3))
taps: tuple[int, ...] = block.kernel_size
channels: int = block.out_channels + Repeated(4).count
swap_convs(nn.Sequential(nn.Conv2d(3, 8, 3)), partial(RepSRBlock, paths=1))
plain: Network = fuse(create_model("ecbsr_m1c4_x2"))


def classes(file: str) -> int:
    fused: nn.Sequential = fuse(net)
    narrow: RepSR = fuse(RepSR(num_blocks=1, channels=4))
    same: RepSRBlock = fuse(block)  # type: ignore[assignment]  # a block becomes a convolution
    inner: nn.DataParallel[nn.Module] = fuse(nn.DataParallel(net))  # type: ignore[assignment]  # a wrapper is taken off
    return load_checkpoint(file).scale * narrow.scale + len(fused) + len([same, inner])


def wrong() -> None:
    RepSRBlock(3, 16, pathz=3)  # type: ignore[call-arg]  # no option has this name
    RepSRBlock(3, 16, paths="3")  # type: ignore[arg-type]  # a word for a number
    RepSRBlock(3, "16")  # type: ignore[arg-type]  # the same of a convolution's argument
    RepSRBlock()  # type: ignore[call-arg]  # the channels are missing
    RepSRBlock(3, 16, 3, 1, 1, 1, 1, True, "zeros", None, None, 2)  # type: ignore[call-arg]  # options have names
    Repeated(3, 16, paths=3)  # type: ignore[call-arg]  # another block's option
