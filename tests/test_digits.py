"""In float32 the statistics of photos keep their digits, for kernels that leave little of them too."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import relative_error
from skimage import data
from torch import Tensor, nn

from reparam import (
    ACBlock,
    DiverseBranchBlock,
    OREPARepVGGBlock,
    RepSRBlock,
    RepVGGBlock,
    set_fold,
)

HIGH_PASS = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]) / 4
BLOCKS = {
    "repsr": lambda c, d: RepSRBlock(c, d, identity=False),  # the branches pass an identity on without any rounding
    "repvgg": lambda c, d: RepVGGBlock(c, d, identity=False),
    "dbb": DiverseBranchBlock,
    "acnet": ACBlock,
    "orepa": lambda c, d: OREPARepVGGBlock(c, d, identity=False),
}


def photos(count: int, size: int) -> Tensor:
    generator, patches = torch.Generator().manual_seed(0), []
    sources = [torch.from_numpy(source()).permute(2, 0, 1) for source in (data.astronaut, data.coffee, data.chelsea)]
    for index in range(count):
        photo = sources[index % len(sources)]
        top, left = (int(torch.randint(n - size, (1,), generator=generator)) for n in photo.shape[1:])
        patches.append(photo[:, top : top + size, left : left + size] / 255)
    return torch.stack(patches)


def features(channels: int, count: int, size: int) -> Tensor:
    """Photos, or what a first layer makes of them."""
    x = photos(count, size)
    if channels == 3:
        return x
    torch.manual_seed(1)
    return F.relu(F.conv2d(x, torch.randn(channels, 3, 3, 3) / 5, padding=1))


@torch.no_grad()
def made(name: str, channels: int, high_pass: bool) -> nn.Module:
    torch.manual_seed(0)
    block = BLOCKS[name](channels, 16 if channels == 3 else channels)
    for module in block.modules():
        if high_pass and isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.weight.copy_(torch.randn(module.weight.shape[:2])[..., None, None] * HIGH_PASS / channels**0.5)
    return block


def output_and_gradient(block: nn.Module, x: Tensor, fold: bool) -> tuple[Tensor, Tensor]:
    block, x = copy.deepcopy(block), x.clone().requires_grad_()
    set_fold(block, fold)
    y = block(x)
    target = torch.linspace(-1, 1, y.shape[1], dtype=y.dtype)[:, None, None] * x.detach().mean(1, keepdim=True)
    (gradient,) = torch.autograd.grad((y - target).square().mean(), x)
    return y.detach(), gradient


@pytest.mark.parametrize("high_pass", [False, True], ids=["fresh", "high-pass"])
@pytest.mark.parametrize(
    ("channels", "count", "size"), [(3, 4, 48), (3, 16, 64), (16, 4, 48), (16, 16, 64), (64, 4, 32)]
)
@pytest.mark.parametrize("name", BLOCKS)
def test_folded_on_photos_is_about_as_precise_as_the_branches(name, channels, count, size, high_pass):
    block, x = made(name, channels, high_pass), features(channels, count, size)
    exact = output_and_gradient(copy.deepcopy(block).double(), x.double(), False)
    folded, branches = (
        [relative_error(*pair) for pair in zip(output_and_gradient(block, x, fold), exact)] for fold in (True, False)
    )
    assert folded[0] <= 10 * branches[0] and folded[1] <= 30 * branches[1], (folded, branches)
