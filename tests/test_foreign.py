"""Other people's modules: kernels read off their forward, known blocks, and norms that their neighbors take in."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, randomise, relative_error
from official import KINDS, BNAndPadLayer, Conv3XC, DiverseBranchBlock, MobileOneBlock, RepVGGBlock, conv_bn
from test_golden import files, read
from torch import nn

from reparam import (
    ConvSpec,
    FuseError,
    Kernel,
    NotLinearError,
    RepSRBlock,
    SpecError,
    StatisticsError,
    freeze_bn_stats,
    fuse,
    inspect_model,
    kernel_of,
    set_fold,
    verify,
)
from reparam.algebra._affine import the_input
from reparam.fusing._foreign.blocks import to_read
from reparam.fusing._foreign.leaves import _REGISTERED, like_of
from reparam.fusing._foreign.reading import Reader
from reparam.fusing._foreign.trace import is_any_norm


def ready(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics, in float64 and eval mode."""
    torch.manual_seed(seed)
    return randomise(module.double(), seed).eval()


def image(*shape: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(*shape).double() + 0.5


def norms_in(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if is_any_norm(module)]


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def check_rounded_once(model: nn.Module, dtype: torch.dtype, **options) -> nn.Module:
    """The fused model in a dtype, which must be that in float64, every number rounded once."""
    model = copy.deepcopy(model).to(dtype)
    exact, plain = fuse(copy.deepcopy(model).double(), **options), fuse(model, **options)
    assert plain.state_dict().keys() == exact.state_dict().keys()
    for key, value in plain.state_dict().items():
        wanted = exact.state_dict()[key]
        assert value.dtype == (dtype if wanted.is_floating_point() else wanted.dtype), key
        assert torch.equal(value, wanted.to(value.dtype)), f"{key} is rounded on the way"
    for name, part in model.named_parameters():
        assert part.dtype == dtype, name
    return plain


def value_of(module):
    """A module as a linear map."""
    return Reader(like_of(module)).apply(module, the_input(like_of(module)))


class Forward(nn.Module):
    """A module whose forward is given, and parts."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def conv(size=3, padding=None, **options):
    """Six channels to six, of the same size if nothing else is said."""
    return nn.Conv2d(6, 6, size, padding=size // 2 if padding is None else padding, **options)


def bn(channels=6):
    return nn.BatchNorm2d(channels)


def number(*shape):
    return nn.Parameter(torch.ones(shape))


LINEAR = {
    "conv": lambda: conv(dilation=2, stride=2, groups=3),
    "reflect": lambda: conv(padding_mode="reflect"),
    "pair": lambda: conv_bn(6, 4, 3, padding=1),
    "norm first": lambda: nn.Sequential(nn.BatchNorm2d(6), conv(padding=0)),
    "1x1 and 3x3 with zeros around": lambda: nn.Sequential(conv(1, bias=False), conv()),
    "1x1 and 3x3 reflected": lambda: nn.Sequential(conv(1), conv(padding_mode="reflect")),
    "3x3 and 1x1": lambda: nn.Sequential(conv(), nn.Dropout(0.5), conv(1), nn.Identity()),
    "two strides": lambda: nn.Sequential(conv(stride=2), conv(stride=2, padding=0)),
    "pool": lambda: nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.BatchNorm2d(6)),
    "pool of a pair": lambda: nn.Sequential(conv_bn(6, 4, 1), nn.AvgPool2d(3, 2), nn.BatchNorm2d(4)),
    "sum of sizes": lambda: Forward(lambda m, x: m.a(x) + m.b(x), a=conv(3), b=conv(5)),
    "sum of a size and none": lambda: Forward(lambda m, x: m.a(x) + m.b(x) + x, a=conv(1), b=nn.BatchNorm2d(6)),
    "sum over groups": lambda: Forward(lambda m, x: m.a(x) + m.b(x) + x, a=conv(groups=2), b=conv(1, groups=6)),
    "sum over other groups": lambda: Forward(lambda m, x: m.a(x) + m.b(x), a=conv(groups=2), b=conv(groups=3)),
    "sum of dilations": lambda: Forward(lambda m, x: m.a(x) + m.b(x), a=conv(dilation=2, padding=2), b=conv(1)),
    "sum of offset grids": lambda: Forward(lambda m, x: m.a(x) + m.b(x), a=conv(dilation=2, padding=2), b=conv()),
    "sum of grids that lie apart": lambda: Forward(
        lambda m, x: m.a(F.pad(x, (1, 3) * 2)) + m.b(F.pad(x, (3, 1) * 2)) + x,
        a=conv(padding=0, dilation=2),
        b=conv(padding=0, dilation=2),
    ),
    "sum of a tall and a wide": lambda: Forward(
        lambda m, x: m.a(x) + m.b(x), a=conv((3, 1), padding=(1, 0)), b=conv((1, 5), padding=(0, 2))
    ),
    "sum with stride": lambda: Forward(lambda m, x: m.a(x) + m.b(x), a=conv(stride=2), b=conv(1, stride=2)),
    "sum of reflected": lambda: Forward(
        lambda m, x: m.a(x) + m.b(x) + x,
        a=conv(padding_mode="reflect"),
        b=conv(5, padding_mode="reflect"),
    ),
    "norm after a sum": lambda: Forward(
        lambda m, x: m.norm(m.a(x) + m.b(x) + x), a=conv(), b=conv(1), norm=nn.BatchNorm2d(6)
    ),
    "sum of sums": lambda: Forward(
        lambda m, x: 2 * (m.a(x) + m.b(x)) - (m.c(x) + x) / 4 + 1, a=conv(), b=conv(1), c=conv(5)
    ),
    "numbers per channel": lambda: Forward(
        lambda m, x: x + m.gamma * (m.a(x) - m.norm(x)).mul(0.5),
        gamma=number(6, 1, 1),
        a=conv(),
        norm=nn.BatchNorm2d(6),
    ),
    "a shift per channel": lambda: Forward(lambda m, x: m.a(x).add(m.beta) - m.beta, beta=number(1, 6, 1, 1), a=conv()),
    "a negative": lambda: Forward(lambda m, x: -m.a(x) - x, a=conv()),
    "functions": lambda: Forward(
        lambda m, x: F.conv2d(F.pad(x, (1, 1, 2, 2)), m.w * 2, groups=2) + F.dropout(x, 0.5, m.training)[:, :, :, :],
        w=number(6, 3, 5, 3),
    ),
    "cropped": lambda: Forward(lambda m, x: m.a(x)[:, :, 1:-1, 1:-1] + m.b(x), a=conv(1), b=conv(padding=0)),
    "in place": lambda: Forward(lambda m, x: m.a(x).add_(m.b(x)).mul_(2), a=conv(), b=conv(1)),
    "applied twice": lambda: Forward(lambda m, x: m.a(m.a(x)) + m.a(x), a=conv(1)),
    "a branch of ours": lambda: nn.Sequential(RepSRBlock(6), nn.BatchNorm2d(6)),
    "1d": lambda: Forward(
        lambda m, x: m.norm(m.a(x) + x), a=nn.Conv1d(6, 6, 3, padding=1), norm=nn.BatchNorm1d(6)
    ),
    "3d": lambda: Forward(lambda m, x: m.a(x) + x, a=nn.Conv3d(6, 6, 3, padding=1)),
    "linear": lambda: Forward(
        lambda m, x: (m.b(m.norm(x)) + m.c(x)) / 2,
        norm=nn.BatchNorm1d(6),
        b=nn.Linear(6, 5),
        c=nn.Linear(6, 5, bias=False),
    ),
    "linear functions": lambda: Forward(lambda m, x: F.linear(x, m.w, m.b) * m.b, w=number(5, 6), b=number(5)),
}  # fmt: skip
SHAPES = {"1d": (2, 6, 11), "3d": (2, 6, 5, 4, 7), "linear": (9, 6), "linear functions": (9, 6)}


@pytest.mark.parametrize("name", LINEAR)
@torch.no_grad()
def test_a_kernel_is_read_off_any_linear_forward(name):
    module, x = ready(LINEAR[name]()), image(*SHAPES.get(name, (2, 6, 11, 10)))
    value, kernel = value_of(module), kernel_of(module)
    assert_close(F.linear(x, *kernel) if value.flat else value.spec().build_conv(*kernel)(x), module(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in LINEAR if "branch of ours" not in name])
@torch.no_grad()
def test_a_kernel_of_any_precision_is_worked_out_in_float64(name, dtype):
    module = ready(LINEAR[name]()).to(dtype)
    exact, like = copy.deepcopy(module).double(), torch.empty(0, dtype=torch.float64)
    value, wanted = (Reader(like).apply(one, the_input(like)) for one in (to_read(module), exact))
    for got, right in zip(value.kernel, wanted.kernel):
        assert got.dtype == torch.float64 and torch.equal(got, right)
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}


@pytest.mark.parametrize("name", ["pair", "norm first", "3x3 and 1x1", "sum over groups", "sum of sums"])
@torch.no_grad()
def test_a_kernel_of_mixed_precision(name):
    module, x = ready(LINEAR[name]()), image(2, 6, 11, 10)
    next(part for part in module.modules() if isinstance(part, nn.Conv2d)).float()
    kernel = kernel_of(module)
    assert kernel.weight.dtype == kernel.bias.dtype == torch.float64
    value = value_of(module)
    assert_close(value.spec().build_conv(*kernel)(x), copy.deepcopy(module).double()(x))


class TestWhatIsNotLinear:
    @pytest.mark.parametrize(
        ("build", "match"),
        [
            (lambda: nn.Sequential(conv(), nn.ReLU()), "ReLU is not known to be linear"),
            (lambda: nn.Sequential(conv(1), conv()), "zero padding follows a bias"),
            (lambda: nn.Sequential(conv(bias=False), conv()), "follows one with taps"),
            (lambda: nn.Sequential(BNAndPadLayer(1, 6), BNAndPadLayer(1, 6), conv()), "follows a bias|with taps"),
            (lambda: Forward(lambda m, x: F.pad(x[:, :, 1:-1, 1:-1], [1] * 4), a=conv()), "padding follows cropping"),
            (lambda: Forward(lambda m, x: m.a(x) * m.a(x), a=conv()), "two values that depend on the input are mult"),
            (lambda: Forward(lambda m, x: 1 / m.a(x), a=conv()), "divided by a value that depends"),
            (lambda: Forward(lambda m, x: m.a(x) + m.b(x), a=conv(), b=conv(padding=0)), "outputs differ in size"),
            (lambda: Forward(lambda m, x: m.a(x) + x, a=conv(stride=2)), r"strides \(2, 2\) and \(1, 1\)"),
            (lambda: Forward(lambda m, x: m.a(x) + m.g, a=conv(), g=number(1, 6, 1, 4)), r"shape \(1, 6, 1, 4\) is"),
            (lambda: Forward(lambda m, x: m.a(x).abs(), a=conv()), "abs is not known to be linear"),
            (lambda: Forward(lambda m, x: m.a(x)[:, 3], a=conv()), "part .* is taken out"),
            (lambda: Forward(lambda m, x: m.a(x)[:, :, 2:5], a=conv()), "part .* is taken out"),
            (lambda: Forward(lambda m, x: F.pad(m.a(x), [1] * 4, value=3.0), a=conv()), r"3\.0 is padded"),
            (lambda: Forward(lambda m, x: F.dropout(m.a(x)), a=conv()), "dropout is active"),
            (lambda: Forward(lambda m, x: m.a(x).flatten(1), a=conv()), "a value is flattened"),
            (lambda: Forward(lambda m, x: m.a(x) if x.sum() > 0 else x, a=conv()), "Forward cannot be traced"),
            (lambda: Forward(lambda m, x: m.w * 2, w=number(6)), "does not depend on its input"),
            (lambda: nn.ConvTranspose2d(6, 6, 3), "ConvTranspose2d is not equal to any plain convolution"),
            (lambda: nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv()), "divides by less at"),
            (lambda: nn.Sequential(nn.Linear(6, 6), conv(1)), "a linear layer is combined with a convol"),
            (lambda: nn.Sequential(conv(1), nn.Conv2d(8, 6, 1)), "6 channels reach an operation that takes 8"),
            (lambda: nn.Sequential(conv(1), nn.BatchNorm2d(8)), "6 channels reach an operation that takes 8"),
            (lambda: Forward(lambda m, x: m.a(x) + m.b(x), a=conv(1), b=nn.Conv2d(3, 6, 1)), "have 6 and 3 channels"),
            (lambda: nn.ReLU(), "ReLU has no parameters"),
        ],
    )  # fmt: skip
    def test_it_is_refused(self, build, match):
        with pytest.raises(NotLinearError, match=match):
            kernel_of(ready(build()))

    def test_a_value_that_is_overwritten_and_used(self):
        def twice(module, x):
            y = module.a(x)
            return y.mul_(2) + y  # four times y, and not three times

        module = ready(Forward(twice, a=conv()))
        for kernel, once in zip(kernel_of(module), kernel_of(module.a)):
            assert torch.equal(kernel, 4 * once)

    def test_a_value_whose_part_is_overwritten(self):
        def part(module, x):
            y = module.a(x)
            y[:, :3].mul_(2)
            return y

        with pytest.raises(NotLinearError, match="Forward writes into a part of a value"):
            kernel_of(ready(Forward(part, a=conv())))

    def test_another_input(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = conv()

            def forward(self, x, y):
                return self.conv(x) + y

        with pytest.raises(NotLinearError, match="Two depends on 'y' as well"):
            kernel_of(Two())

    def test_batch_statistics(self):
        with pytest.raises(StatisticsError, match="uses batch statistics"):
            kernel_of(conv_bn(6, 6, 3))

    def test_no_convolution(self):
        for module in (nn.BatchNorm2d(6), nn.Linear(6, 6)):
            value = value_of(ready(module))
            with pytest.raises(NotLinearError, match=r"it is linear, but not a convolution: axes [01], pads \(\)"):
                value.spec()


def test_a_kernel_is_differentiable():
    module = ready(LINEAR["norm after a sum"]())
    weights = [torch.rand_like(tensor) for tensor in kernel_of(module)]
    sum((w * tensor).sum() for w, tensor in zip(weights, kernel_of(module))).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    assert len(gradients) == 6
    for name, parameter in module.named_parameters():
        step = torch.zeros_like(parameter)
        step.flatten()[1] = 1e-6
        with torch.no_grad():
            parameter += step
            up = sum((w * tensor).sum() for w, tensor in zip(weights, kernel_of(module)))
            parameter -= 2 * step
            down = sum((w * tensor).sum() for w, tensor in zip(weights, kernel_of(module)))
            parameter += step
        assert float(gradients[name].flatten()[1]) == pytest.approx(float(up - down) / 2e-6, rel=1e-6), name


class MyConv(nn.Conv2d):
    """A convolution whose forward cannot be traced."""

    def forward(self, x):
        return super().forward(x) * 3 if x.sum() != 0 else x


@pytest.fixture
def registered():
    kernel_of.register(MyConv)(lambda module: Kernel(module.weight * 3, module.bias * 3))
    yield
    del _REGISTERED[MyConv]  # as if nobody had


class TestRegistering:
    @pytest.mark.usefixtures("registered")
    def test_one_line_makes_a_type_known(self):
        model = ready(nn.Sequential(MyConv(3, 4, 3, 2, 1), nn.ReLU(), RepSRBlock(4)))
        x = image(2, 3, 9, 8)
        plain = fuse(model)
        assert type(plain[0]) is nn.Conv2d and plain[0].fused_from == "MyConv"
        assert_close(plain(x), model(x))
        assert inspect_model(model).blocks[1].kind == "MyConv"

    @pytest.mark.usefixtures("registered")
    def test_it_is_called_in_float64(self):
        model = ready(nn.Sequential(MyConv(3, 4, 3))).bfloat16()
        assert torch.equal(fuse(model)[0].weight, (model[0].weight.double() * 3).bfloat16())

    def test_nothing_is_replaced_before(self):
        model = ready(nn.Sequential(MyConv(3, 4, 3), nn.BatchNorm2d(4)))
        with pytest.raises(FuseError, match="types registered with kernel_of"):
            fuse(model)

    @pytest.mark.usefixtures("registered")
    def test_a_spec_tells_the_geometry(self):
        class Other(nn.Module):
            def __init__(self, spec=None):
                super().__init__()
                self.weight = nn.Parameter(torch.rand(4, 1, 3, 3))
                self.spec = spec

            def forward(self, x):
                return F.conv2d(x, self.weight, stride=2, padding=1, groups=2) if x.sum() != 0 else x

        kernel_of.register(Other)(lambda m: Kernel(m.weight, m.weight.new_zeros(4)))
        model = nn.Sequential(Other(ConvSpec(2, 4, 3, stride=2, groups=2)))
        x = torch.rand(1, 2, 6, 5)
        assert_close(fuse(model)(x), model(x))
        with pytest.raises(SpecError, match="Other is registered with kernel_of, but has no stride, padding, dila"):
            kernel_of(Other())
        with pytest.raises(FuseError, match="0: Other: Other is registered with kernel_of, but has no stride, padd"):
            fuse(nn.Sequential(Other()))


OFFICIAL = ("repvgg_s", "repvgg_se", "repvggplus", "mobileone_", "dbb_", "acb_", "ecb_", "span_conv3xc")
official_files = files(lambda name: name.startswith(OFFICIAL) and "seq" not in name and "official" not in name)


@official_files
@torch.no_grad()
def test_an_official_block_becomes_what_its_authors_make_of_it(path):
    golden = read(path)
    config = {key: value for key, value in golden.meta["config"].items() if key != "input_hw"}
    block = KINDS[golden.meta["block"]](**config)
    block.load_state_dict(golden.official)
    block, x, wanted = block.double().eval(), golden.tensors["input"].double(), golden.wanted
    assert_close(block(x), wanted)  # the twin in official.py has the authors' names and computes what they do
    for before, back in ((nn.Sequential(block), lambda model: model[0]), (block, lambda model: model)):
        plain = back(fuse(before))
        assert_close(plain(x), wanted)
    assert not norms_in(plain)
    kernel = kernel_of(block)
    for name, ours in zip(("weight", "bias"), kernel):
        assert relative_error(ours, golden.tensors[f"fused.{name}"]) <= 1e-6
    for dtype in DTYPES:
        check_rounded_once(nn.Sequential(block), dtype)


INFERENCE_KEYS = {
    "RepVGG": (lambda: RepVGGBlock(16, 16, use_se=True), ["rbr_reparam", "se.down", "se.up"], RepVGGBlock),
    "MobileOne": (lambda: MobileOneBlock(6, 8, 3, padding=1), ["reparam_conv"], MobileOneBlock),
    "DBB": (lambda: DiverseBranchBlock(6, 8, 3, padding=1, nonlinear=nn.ReLU()), ["dbb_reparam"], DiverseBranchBlock),
    "ACNet": (lambda: KINDS["ACBlock"](6, 8, 3, padding=1, nonlinear=nn.ReLU()), ["fused_conv"], nn.Sequential),
    "ECB": (lambda: KINDS["ECB"](6, 8, 2, "relu"), ["conv3x3"], nn.Sequential),
    "SPAN": (lambda: Conv3XC(6, 8, 2), [""], nn.Conv2d),
}


@pytest.mark.parametrize("name", INFERENCE_KEYS)
@pytest.mark.parametrize("inplace", [False, True])
@torch.no_grad()
def test_the_keys_are_those_of_the_inference_code(name, inplace):
    build, names, kind = INFERENCE_KEYS[name]
    model, x = ready(nn.Sequential(build(), nn.Identity())), image(1, 16 if name == "RepVGG" else 6, 9, 8)
    wanted, before = model(x), copy.deepcopy(model)
    plain = fuse(model, inplace=inplace)
    assert (plain is model) is inplace
    keys = {f"0.{part}.{tensor}".replace("..", ".") for part in names for tensor in ("weight", "bias")}
    assert plain.state_dict().keys() == keys
    assert type(plain[0]) is kind
    assert_close(plain(x), wanted)
    if not inplace:
        assert model.state_dict().keys() == before.state_dict().keys()
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values()))
    assert fuse(plain).state_dict().keys() == keys  # what is fused already stays as it is


TAKES = {
    "conv": lambda: (conv(groups=3), bn()),
    "linear": lambda: (nn.Linear(6, 4), nn.BatchNorm1d(4)),
    "transposed": lambda: (nn.ConvTranspose2d(6, 4, 3, groups=2), bn(4)),
    "block": lambda: (RepSRBlock(6), bn()),
}


class TestKnownBlocks:
    """What the authors' codes fail at."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_precision_is_rounded_once(self, dtype):
        check_rounded_once(ready(nn.Sequential(RepVGGBlock(8, 8), MobileOneBlock(8, 8, 3, padding=1))), dtype)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("bias", [False, True])
    def test_convolutions_in_a_row_are_rounded_once(self, bias, dtype):
        sums = Forward(lambda m, x: m.a(x) + m.b(x) + m.c(x), a=conv(), b=conv(1), c=conv(1))
        in_a_row = Forward(
            lambda m, x: m.c(m.b(m.a(F.pad(x, [1] * 4)))) + m.s(x),
            a=conv(1, bias=bias),
            b=conv(padding=0, bias=bias),
            c=conv(1, bias=bias),
            s=conv(1, bias=bias),
        )
        for block in (sums, in_a_row):
            block.fuse = lambda: None
            plain = check_rounded_once(ready(nn.Sequential(block)), dtype)
            assert type(plain[0]) is nn.Conv2d

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_numbers_that_are_convolved_are_of_the_same_precision(self, dtype):
        block = Forward(lambda m, x: m.a(x) + m.b(m.w), a=conv(), b=conv(1), w=number(1, 6, 1, 1))
        block.fuse = lambda: None
        assert type(check_rounded_once(ready(nn.Sequential(block)), dtype)[0]) is nn.Conv2d

    def test_hooks_inside_do_not_run(self):
        model, seen = ready(nn.Sequential(RepVGGBlock(8, 8))), []
        model[0].rbr_dense.register_forward_hook(lambda module, args, y: seen.append(y))
        fuse(model)
        assert seen == []

    def test_norms_that_stayed_in_float_are_fine(self):
        model = ready(nn.Sequential(RepVGGBlock(8, 8))).bfloat16()
        for name in norms_in(model):
            model.get_submodule(name).float()
        assert {value.dtype for value in fuse(model).state_dict().values()} == {torch.bfloat16}

    def test_sync_batch_norm(self):
        model, x = ready(nn.Sequential(RepVGGBlock(8, 8), nn.Sequential(conv_bn(8, 4, 1)))), image(2, 8, 7, 6)
        wanted = model(x)
        plain = fuse(nn.SyncBatchNorm.convert_sync_batchnorm(model))
        assert not norms_in(plain)
        assert_close(plain(x), wanted)

    def test_a_norm_without_affine_and_with_an_eps_of_its_own(self):
        block = RepVGGBlock(8, 8)
        block.rbr_identity = nn.BatchNorm2d(8, affine=False, eps=1e-3)
        block.rbr_1x1.bn.eps = 0.1
        model, x = ready(nn.Sequential(block)), image(2, 8, 7, 6)
        assert_close(fuse(model)(x), model(x))

    def test_what_is_kept(self):
        model = ready(nn.Sequential(RepVGGBlock(8, 8), conv_bn(8, 8, 3))).float().to(memory_format=torch.channels_last)
        model[0].requires_grad_(False)
        freeze_bn_stats(model)
        model.train()
        seen = []
        model[0].register_forward_hook(lambda module, args, y: seen.append(type(module)))
        plain = fuse(model)
        inner = plain[0].rbr_reparam
        assert inner.weight.is_contiguous(memory_format=torch.channels_last)
        assert not inner.weight.requires_grad and plain[1][0].weight.requires_grad and plain[1][0].bias.requires_grad
        assert plain[1][0].weight.is_contiguous(memory_format=torch.channels_last)
        assert inner.training and plain[1][0].training
        plain(torch.rand(1, 8, 5, 5))
        assert seen == [RepVGGBlock]

    @pytest.mark.parametrize(
        "build", [lambda: RepVGGBlock(6, 6), lambda: Conv3XC(6, 6), lambda: MobileOneBlock(6, 6, 3, padding=1)]
    )
    @pytest.mark.parametrize("trainable", [False, True])
    def test_what_a_layer_of_a_block_keeps(self, build, trainable):
        model = ready(nn.Sequential(build())).requires_grad_(trainable)
        freeze_bn_stats(model)
        for training in (False, True):
            plain = fuse(model.train(training))
            (layer,) = (part for part in plain.modules() if isinstance(part, nn.Conv2d))
            assert layer.fused_from == type(model[0]).__name__ and layer.training is training
            assert [parameter.requires_grad for parameter in plain.parameters()] == [trainable] * 2

    @pytest.mark.parametrize(
        "build", [lambda: RepVGGBlock(6, 6), *(lambda one=one: nn.Sequential(*one()) for one in TAKES.values())]
    )
    def test_what_is_trained_in_part_stays_trainable(self, build):
        model = ready(nn.Sequential(build())).float()
        next(model.parameters()).requires_grad_(False)
        plain = fuse(model, batch_norms=True)
        assert [parameter.requires_grad for parameter in plain.parameters()] == [True] * 2

    def test_a_block_used_twice(self):
        block = RepVGGBlock(8, 8)
        model, x = ready(nn.Sequential(block, nn.Sigmoid(), block)), image(1, 8, 7, 6)
        plain = fuse(model)
        assert plain[0] is plain[2] and type(plain[0].rbr_reparam) is nn.Conv2d
        assert_close(plain(x), model(x))

    def test_a_class_that_does_not_know_the_convolution_becomes_a_row(self):
        class Like(RepVGGBlock):
            def forward(self, x):
                return self.nonlinearity(self.se(self.rbr_dense(x) + self.rbr_1x1(x)))

        model, x = ready(nn.Sequential(Like(8, 8))), image(1, 8, 7, 6)
        plain = fuse(model)
        assert list(plain.state_dict()) == ["0.conv.weight", "0.conv.bias"]
        assert [name for name, _ in plain[0].named_children()] == ["conv", "se", "nonlinearity"]
        assert_close(plain(x), model(x))

    def test_spans_relu_is_not_lost(self):
        model, x = ready(nn.Sequential(Conv3XC(6, 6, 2, relu=True), RepSRBlock(6))), image(1, 6, 7, 6)
        assert_close(fuse(model)(x), model(x))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_network_of_spandrel_in_every_precision(self, dtype):
        from spandrel.architectures.SPAN import SPAN

        torch.manual_seed(0)
        model = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8).eval()
        assert sum(type(part) is nn.Conv2d for part in check_rounded_once(model, dtype).modules()) == 22
        assert inspect_model(model.to(dtype)).ready

    def test_the_network_of_spandrel(self):
        from spandrel.architectures.SPAN import SPAN

        model = randomise(SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8), 0).eval()
        x = torch.rand(1, 3, 9, 8)
        plain = fuse(model.double())
        assert sum(type(module) is nn.Conv2d for module in plain.modules()) == 22
        assert not any(hasattr(module, "eval_conv") for module in plain.modules())
        model.train()  # the branches; its eval forward works its kernel out in place
        assert_close(plain(x.double()), model(x.double()))

    def test_several_convolutions_have_no_one_kernel(self):
        from timm.models.ghostnet import GhostModuleV3

        with pytest.raises(NotLinearError, match="GhostModuleV3 holds 2 convolutions, not one: primary_conv, c"):
            kernel_of(ready(GhostModuleV3(4, 4)))

    def test_one_that_pads_as_no_convolution_does(self):
        block = Forward(lambda m, x: m.bn(m.conv(F.pad(x, (0, 1, 0, 1)))), conv=conv(padding=0), bn=nn.BatchNorm2d(6))
        block.fuse = lambda: None
        model, x = ready(nn.Sequential(block)), image(1, 6, 7, 6)
        plain = fuse(model)
        assert type(plain[0]) is Forward and not norms_in(plain) and not inspect_model(plain).left
        assert_close(plain(x), model(x))


class TestRefusals:
    """Nothing is changed then."""

    def check(self, model, match):
        before = copy.deepcopy(model)
        for inplace in (False, True):
            with pytest.raises(FuseError, match=match):
                fuse(model, inplace=inplace)
        assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values()))

    def test_batch_statistics(self):
        model = ready(nn.Sequential(RepVGGBlock(8, 8), conv_bn(8, 8, 1))).train()
        self.check(model, r"0\.rbr_1x1\.bn: it uses batch statistics \(train mode\): call model\.eval\(\)")
        with pytest.raises(FuseError) as caught:
            fuse(model)
        named = set(re.findall(r"^  (\S+): ", str(caught.value), re.MULTILINE))
        assert named == {"0.rbr_identity", "0.rbr_dense.bn", "0.rbr_1x1.bn", "1.bn"}
        report = inspect_model(model)
        assert not report.ready and report.problems["1.bn"].startswith("it uses batch statistics")
        assert "1.bn goes into 1.conv: it uses batch statistics" in str(report)

    def test_never_saw_a_batch(self):
        self.check(nn.Sequential(RepVGGBlock(8, 8)).eval(), r"0\.rbr_dense\.bn: it never saw a batch")
        self.check(nn.Sequential(conv_bn(8, 8, 1)).eval(), r"0\.bn: it never saw a batch")

    def test_statistics_from_a_file_that_does_not_count_batches_are_fine(self):
        model, x = ready(nn.Sequential(RepVGGBlock(8, 8))), image(1, 8, 7, 6)
        for name in norms_in(model):
            model.get_submodule(name).num_batches_tracked.zero_()
        assert_close(fuse(model)(x), model(x))
        with torch.no_grad():
            model[0].rbr_identity.reset_running_stats()
        with pytest.raises(FuseError, match="0.rbr_identity: it never saw a batch"):
            fuse(model)

    def test_the_root_in_place(self):
        with pytest.raises(FuseError, match=r"itself a block \(Conv3XC\)"):
            fuse(ready(Conv3XC(4, 4)), inplace=True)


def test_a_known_block_may_be_the_root_in_place():
    block, x = ready(RepVGGBlock(8, 8)), image(1, 8, 7, 6)
    wanted = block(x)
    assert fuse(block, inplace=True) is block
    assert_close(block(x), wanted)


# Batch norms outside of blocks.


FOLDED = {
    "vectors": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6 * 9 * 8, 5), nn.BatchNorm1d(5), nn.BatchNorm1d(5)),
    "by names": lambda: Forward(lambda m, x: m.bn(m.conv(x)).relu(), bn=bn(), conv=conv()),
    "over an identity": lambda: nn.Sequential(conv(), nn.Identity(), bn()),
    "two norms": lambda: nn.Sequential(conv(), bn(), bn()),
    "before": lambda: nn.Sequential(nn.ReLU(), bn(), nn.Dropout(0.3), conv(1)),
    "before a valid one": lambda: nn.Sequential(nn.ReLU(), bn(), conv(padding="valid", groups=2)),
    "before and after": lambda: nn.Sequential(nn.ReLU(), bn(), conv(padding=0), bn()),
    "before three": lambda: Forward(
        lambda m, x: m.a(y := m.bn(x.relu())) * m.b(y) + m.c(y), bn=bn(), a=conv(1), b=conv(1), c=conv(1)
    ),
    "padded by the input's size": lambda: Forward(
        lambda m, x: m.bn(y := m.conv(x)).flatten(2).reshape(y.shape), bn=bn(), conv=conv()
    ),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(6, 4, 3, 2, 1, groups=2), bn(4)),
    "same": lambda: nn.Sequential(conv(padding="same", padding_mode="circular"), bn()),
    "a mean": lambda: Forward(lambda m, x: m.fc(m.bn(x.relu()).mean((2, 3))), bn=bn(), fc=nn.Linear(6, 5)),
    "a pool": lambda: nn.Sequential(nn.ReLU(), bn(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    "in part untraceable": lambda: nn.Sequential(
        Forward(lambda m, x: m.inner(x) if x.sum() != 0 else x, inner=conv_bn(6, 6, 3, padding=1)), conv(), bn()
    ),
    "frozen": lambda: nn.Sequential(conv(), frozen_norm()),
}  # fmt: skip


def frozen_norm():
    from torchvision.ops import FrozenBatchNorm2d

    norm = FrozenBatchNorm2d(6)
    for buffer in norm.buffers():
        buffer.copy_(torch.rand(6) + 0.5)
    return norm


@pytest.mark.parametrize("name", FOLDED)
@torch.no_grad()
def test_a_norm_goes_into_its_neighbor(name):
    torch.manual_seed(0)
    model, x = ready(FOLDED[name]()), image(2, 6, 9, 8)
    plain = fuse(model)
    assert not norms_in(plain)
    assert_close(plain(x), model(x))
    report = inspect_model(model)
    assert report.ready and len(report.batch_norms) == len(norms_in(model))
    assert report.fused_parameters == sum(p.numel() for p in plain.parameters())
    assert verify(model, plain, x).ok
    for dtype in DTYPES:
        check_rounded_once(model, dtype)


def shared():
    one = conv()
    return nn.Sequential(one, bn(), nn.ReLU(), one, bn())


LEFT = {
    "called twice": lambda: Forward(lambda m, x: m.bn(m.conv(x)) + m.conv(x).relu(), bn=bn(), conv=conv()),
    "shared by two norms": shared,
    "a norm called twice": lambda: Forward(lambda m, x: m.bn(m.b(m.bn(m.a(x)).relu())), bn=bn(), a=conv(), b=conv()),
    "before what pads": lambda: nn.Sequential(nn.ReLU(), bn(), conv()),
    "before an activation": lambda: nn.Sequential(conv(), nn.ReLU(), bn(), nn.ReLU(), conv(1)),
    "before one that goes and one that pads": lambda: Forward(
        lambda m, x: m.a(y := m.bn(x.relu())) + m.b(y), bn=bn(), a=conv(1), b=conv()
    ),
    "before a linear layer of a grid": lambda: nn.Sequential(
        nn.ReLU(), bn(), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(36, 54 * 6), nn.Unflatten(1, (6, 9, 6))
    ),
    "after a linear layer of sequences": lambda: nn.Sequential(
        nn.Flatten(2), nn.Linear(54, 54), nn.BatchNorm1d(6), nn.Unflatten(2, (9, 6))
    ),
    "after a linear layer of rows": lambda: nn.Sequential(nn.Linear(6, 6), bn()),
    "after a linear layer of shorter rows": lambda: nn.Sequential(nn.Linear(6, 5), bn()),
    "before a linear layer of pixels": lambda: nn.Sequential(nn.ReLU(), bn(), nn.Linear(6, 6)),
    "untraceable": lambda: Forward(lambda m, x: m.bn(m.conv(x)) if x.sum() != 0 else x, bn=bn(), conv=conv()),
}  # fmt: skip


def overwrites(module, x):
    y = x.relu()
    z = module.bn(y)
    y.add_(1)
    return module.a(z) + y


REGIONS = {
    "looked at by two": lambda: Forward(lambda m, x: m.bn(y := m.conv(x)) + y, bn=bn(), conv=conv()),
    "its weight is read": lambda: Forward(
        lambda m, x: m.bn(m.conv(x)) + F.conv2d(x, m.conv.weight, padding=1), bn=bn(), conv=conv()
    ),
    "after a sum": lambda: Forward(lambda m, x: m.bn(m.a(x) + m.b(x)).relu(), bn=bn(), a=conv(), b=conv(1)),
    "overwritten meanwhile": lambda: Forward(overwrites, bn=bn(), a=conv(1)),
}  # fmt: skip


@pytest.mark.parametrize("name", REGIONS)
@torch.no_grad()
def test_a_region_becomes_one_convolution(name):
    model, x = ready(nn.Sequential(REGIONS[name](), nn.ReLU())), image(2, 6, 9, 6)
    plain = fuse(model)
    assert [type(part) for part in plain.modules() if list(part.parameters(recurse=False))] == [nn.Conv2d]
    assert_close(plain(x), model(x))
    for dtype in DTYPES:
        check_rounded_once(model, dtype)


@pytest.mark.parametrize("name", LEFT)
@torch.no_grad()
def test_a_norm_that_is_not_alone_stays(name):
    model = ready(nn.Sequential(LEFT[name](), nn.ReLU(), nn.Sequential(conv_bn(6, 6, 1))))
    x = image(2, 6, 9, 6)
    plain = fuse(model)
    assert norms_in(plain) == [one for one in norms_in(model) if not one.startswith("2.")]
    assert_close(plain(x), model(x))


class TestNeighbors:
    @pytest.mark.parametrize("name", ["conv", "linear", "transposed", "block"])
    @pytest.mark.parametrize("trainable", [False, True])
    @pytest.mark.parametrize("training", [False, True])
    def test_what_a_layer_that_takes_a_norm_in_keeps(self, name, trainable, training):
        model = ready(nn.Sequential(*TAKES[name]())).float()
        model[0].requires_grad_(trainable)
        freeze_bn_stats(model)
        model.train(training)
        layer = fuse(model, batch_norms=True)[0]
        assert layer.fused_from == type(model[0]).__name__ and layer.training is training
        assert [p.requires_grad for p in layer.parameters()] == [trainable] * 2
        assert fuse(model, batch_norms=True)[1].training is training

    def test_a_hook_between_the_two_keeps_them_apart(self):
        for put in ("register_forward_hook", "register_forward_pre_hook"):
            model = ready(conv_bn(6, 6, 3))
            getattr(model.conv, put)(lambda *_: None)
            with pytest.raises(FuseError, match="found no block to fuse in Sequential"):
                fuse(model)

    def test_a_hook_around_a_part_sees_what_it_saw(self):
        model = ready(nn.Sequential(nn.Sequential(conv_bn(6, 6, 1), conv()), bn()))
        seen = []
        model[0].register_forward_hook(lambda module, args, y: seen.append(y.clone()))
        plain, x = fuse(model), image(1, 6, 5, 5)
        assert seen == [] and norms_in(plain) == ["1"]
        model(x), plain(x)
        assert_close(seen[1], seen[0])

    def test_hooks_of_a_norm_go_on(self):
        model, seen = ready(conv_bn(6, 6, 3)), []
        model.bn.register_forward_hook(lambda module, args, y: seen.append(type(module)))
        fuse(model)(image(1, 6, 5, 5))
        assert seen == [nn.Identity]

    def test_a_weight_norm_is_not_overlooked(self):
        model = conv_bn(6, 6, 3)
        nn.utils.parametrizations.weight_norm(model.conv)
        with pytest.raises(FuseError, match="found no block"):
            fuse(ready(model))

    def test_a_norm_of_ones_own_is_not_taken_for_torchs(self):
        class Strange(nn.BatchNorm2d):
            def forward(self, x):
                return super().forward(x) ** 2

        with pytest.raises(FuseError, match="found no block"):
            fuse(ready(nn.Sequential(conv(), Strange(6))))

    def test_other_layers_keep_their_keys_next_to_blocks_of_ours(self):
        model, x = ready(nn.Sequential(RepSRBlock(6), bn(), conv_bn(6, 6, 3))), image(1, 6, 7, 6)
        plain = fuse(model)
        nn.Sequential(conv(), bn(), conv_bn(6, 6, 3)).load_state_dict(plain.state_dict())
        assert inspect_model(model).batch_norms == {}
        every = fuse(model, batch_norms=True)
        assert not norms_in(every) and [type(layer) for layer in every[:2]] == [nn.Conv2d, nn.Identity]
        for fused_model in (plain, every):
            assert_close(fused_model(x), model(x))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_norm_behind_a_block_of_ours_is_rounded_once(self, dtype):
        model, x = ready(nn.Sequential(RepSRBlock(6, bias=False), bn())), image(1, 6, 7, 6)
        conv = check_rounded_once(model, dtype, batch_norms=True)[0]
        assert conv.fused_from == "RepSRBlock" and conv.bias is not None
        assert_close(fuse(model, batch_norms=True)(x), model(x))

    def test_foreign_blocks_alone(self):
        model = ready(nn.Sequential(RepVGGBlock(6, 6), conv_bn(6, 6, 3)))
        plain = fuse(model, batch_norms=False)
        assert norms_in(plain) == ["1.bn"] and type(plain[0].rbr_reparam) is nn.Conv2d

    def test_in_place(self):
        model, x = ready(nn.Sequential(conv_bn(6, 6, 3), nn.ReLU())), image(1, 6, 7, 6)
        wanted = model(x)
        assert fuse(model, inplace=True) is model and not norms_in(model)
        assert_close(model(x), wanted)


class TestVerify:
    def test_a_wrong_fusion_is_seen_where_it_is(self):
        model, x = ready(nn.Sequential(RepVGGBlock(6, 6), MobileOneBlock(6, 6, 3, padding=1))), image(1, 6, 7, 6)
        plain = fuse(model)
        assert verify(model, plain, x).ok
        with torch.no_grad():
            plain[1].reparam_conv.weight[:, 2, 0, 1] += 1e-3
        report = verify(model, plain, x)
        assert [(block.name, block.ok) for block in report.blocks] == [("0", True), ("1", False)]
        assert not report.total.ok

    def test_an_unfused_partner(self):
        model = ready(nn.Sequential(RepVGGBlock(6, 6)))
        with pytest.raises(FuseError, match="nothing was fused in Sequential; pass the unfused model first"):
            verify(model, model, image(1, 6, 7, 6))

    def test_nothing_fused(self):
        model = ready(conv_bn(6, 6, 3))
        with pytest.raises(FuseError, match="found no block to verify in Sequential"):
            verify(model, model, image(1, 6, 7, 6))


def test_set_fold_knows_only_our_blocks():
    assert set_fold(nn.Sequential(RepVGGBlock(6, 6)), False) == []
