"""In float32 the statistics of photos keep their digits, for kernels that leave little of them too."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, relative_error
from skimage import data
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight
from torch.utils._python_dispatch import TorchDispatchMode

from reparam import ACBlock, DiverseBranchBlock, OREPARepVGGBlock, RepSRBlock, RepVGGBlock, set_fold
from reparam.algebra._kernels import Kernel
from reparam.folding._convolution import _of_weight
from reparam.folding._correlation import Distances, correlation, lay_out
from reparam.folding.moments import patch_moments

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


@pytest.mark.parametrize("together", [True, False])
def test_sums_over_a_large_image_lose_no_digits(together):
    """As one float32 sum they would be off by 3e-5 here, as float32 sums of sums by 1.5e-7."""
    x = torch.rand(1, 8, 1024, 1024).cumsum(2).cumsum(3)
    x = (x - x.mean((2, 3), keepdim=True)) / x.std()
    lines = [lay_out(x, (2, 2), dtype, together) for dtype in (torch.float32, torch.float64)]
    rows = [Distances(0, 0, 0), Distances(1, -1, -1), Distances(2, 2, 2)]
    sums, exact = (correlation(one, one, rows) for one in lines)
    assert_close(sums, exact, 3e-8)


def smooth(count: int, size: int) -> Tensor:
    return F.interpolate(torch.rand(count, 8, 8, 8), size=(size, size), mode="bicubic")


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    "images", [smooth, lambda count, size: torch.randn(count, 8, size, size)], ids=["smooth", "noise"]
)
def test_sums_at_all_distances_lose_less_than_a_rounding(images, together):
    """Sums twice as long would be off by up to 1.2e-7, which is more than rounding the sum once, 6e-8."""
    for seed in range(3):
        torch.manual_seed(seed)
        x = images(4, 128)
        x = x - x.mean((0, 2, 3), keepdim=True)
        lines = [lay_out(x, (2, 2), dtype, together) for dtype in (torch.float32, torch.float64)]
        rows = [Distances(0, 0, 2), Distances(1, -2, 2), Distances(2, -2, 2)]
        assert_close(*(correlation(one, one, rows) for one in lines), 6e-8)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (3, 5), (7, 1)])
def test_the_gradient_to_a_weight_is_torchs(size, layout):
    x, of_y = (torch.randn(3, c, 6, 7).double().to(memory_format=layout) for c in (4, 5))
    weight = torch.randn(5, 4, *size).double()
    expected = conv2d_weight(x, weight.shape, of_y, padding=(size[0] // 2, size[1] // 2))
    assert_close(_of_weight(x, weight, of_y), expected)


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
    rounding = 50 * torch.finfo(torch.float32).eps  # 6e-6, of the largest output; before, the error was up to 1e-3
    assert folded[0] <= max(10 * branches[0], rounding) and folded[1] <= 30 * branches[1], (folded, branches)


class InTF32(TorchDispatchMode):
    """What a GPU does to float32 products where the switches let it: operands of ten bits."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket._qualified_op_name.removeprefix("aten::")
        if name in ("mm", "bmm", "addmm") and torch.get_float32_matmul_precision() != "highest":
            args = tuple(map(self.rounded, args))
        return function(*args, **(kwargs or {}))

    @staticmethod
    def rounded(value):
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        return ((value.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_tf32_never_reaches_the_moments():
    x = features(16, 4, 32)
    kernel = Kernel(made("repsr", 16, True).branches[0].expand.weight.detach(), torch.zeros(32))

    def variance_and_gradient():
        leaf = x.clone().requires_grad_()
        _, var = patch_moments(leaf, (3, 3)).of(kernel)
        return var.detach(), *torch.autograd.grad(var.sum(), leaf)

    expected = variance_and_gradient()
    torch.set_float32_matmul_precision("high")
    try:
        with InTF32():
            one = torch.ones(1, 1)
            assert torch.equal((one * 1.0001) @ one, one)  # it does round
            found = variance_and_gradient()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    for ours, theirs in zip(found, expected):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_switches_are_off_inside_of_the_moments_only(compiled, monkeypatch):
    seen, bmm = [], torch.bmm

    def state():
        return torch.get_float32_matmul_precision(), convolutions_are_exact()

    def recorded(function):
        return lambda *args, **options: (seen.append(state()), function(*args, **options))[1]

    monkeypatch.setattr(torch, "bmm", recorded(bmm))
    run = torch.compile(variance, fullgraph=True, backend="aot_eager") if compiled else variance
    torch.set_float32_matmul_precision("medium")
    before = state()
    try:
        for _ in range(2):  # the first one compiles, and looks at shapes
            seen.clear()
            run(features(16, 2, 8).requires_grad_()).sum().backward()
        assert state() == before == ("medium", False)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen and set(seen) == {("highest", True)}


def variance(x: Tensor) -> Tensor:
    return patch_moments(x, (3, 3)).of(Kernel(torch.ones(4, 16, 3, 3), torch.zeros(4)))[1]


def convolutions_are_exact() -> bool:
    conv = getattr(torch.backends.cudnn, "conv", None)
    return not torch.backends.cudnn.allow_tf32 if conv is None else conv.fp32_precision == "ieee"
