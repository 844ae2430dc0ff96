"""Folding: one convolution in place of the branches is the same function, with the same gradients and statistics."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, image, randomise, relative_error
from hypothesis import given
from hypothesis import strategies as st
from strategies import half, of_spec, seeds
from torch import nn
from torch.utils.checkpoint import checkpoint

from reparam import (
    ECB,
    AvgPoolBranch,
    Branch,
    ConvBNBranch,
    ConvBranch,
    ConvSpec,
    ExpandSqueezeBranch,
    IdentityBranch,
    Kernel,
    MBRConvBlock,
    OREPABlock,
    OREPARepVGGBlock,
    ReparamBlock,
    RepMBConvBlock,
    RepSRBlock,
    RepVGGBlock,
    ScaledBranch,
    SequentialBranch,
    SpecError,
    create_model,
    freeze_bn_stats,
    recalibrate_bn_stats,
    set_fold,
)
from reparam.bench._launches import launches
from reparam.bn._norm import norms
from reparam.folding import cost
from reparam.folding.moments import patch_moments


def nested_norms(spec: ConvSpec) -> Branch:
    """A batch norm at the start, before a k x k, and at the end."""
    stages = [
        nn.BatchNorm2d(spec.in_channels),
        nn.Conv2d(spec.in_channels, 5, 1),
        nn.BatchNorm2d(5),
        nn.Conv2d(5, spec.out_channels, spec.kernel_size),
        nn.BatchNorm2d(spec.out_channels, momentum=None),
    ]
    return SequentialBranch(spec, *stages)


def depthwise(spec: ConvSpec) -> Branch:
    """A convolution of each channel, a batch norm, and a convolution that mixes them."""
    inside = spec.in_channels
    stages = [
        nn.Conv2d(inside, inside, spec.kernel_size, groups=inside),
        nn.BatchNorm2d(inside),
        nn.Conv2d(inside, spec.out_channels, 1),
    ]
    return SequentialBranch(spec, *stages)


BRANCHES = {
    "conv": ConvBranch,
    "point": partial(ConvBNBranch, kernel_size=1),
    "conv bn": ConvBNBranch,
    "repsr": partial(ExpandSqueezeBranch, bn=True),
    "dbb": partial(ExpandSqueezeBranch, order="1x1-kxk", bn=True),
    "pool": partial(AvgPoolBranch, bn=True),
    "nested": nested_norms,
    "identity": partial(IdentityBranch, bn=True),
    "frozen": partial(ConvBNBranch, bn=lambda channels: frozen_norm(channels)),
    "block": lambda spec: ReparamBlock(spec, [ConvBNBranch, ConvBranch], bn=spec.bias),
    "scaled": partial(ScaledBranch, branch=partial(ExpandSqueezeBranch, bn=True)),
    "slice": partial(half, branch=nested_norms),
    "slice of a block": partial(half, branch=lambda spec: ReparamBlock(spec, [depthwise, ConvBNBranch])),
    "mbrconv": partial(of_spec, MBRConvBlock, expansion=1),
    "mbrconv own": partial(of_spec, MBRConvBlock, expansion=1, shared=False),
    "repmbconv": partial(of_spec, RepMBConvBlock),
    "orepa": lambda spec: of_spec(OREPARepVGGBlock, spec, expansion=2, identity=False),
}


def frozen_norm(channels):
    bn = nn.BatchNorm2d(channels)
    bn.num_batches_tracked.fill_(1)
    freeze_bn_stats(bn)
    return bn


@st.composite
def blocks(draw):
    """A block of several branches on batch statistics, dense and of odd kernel size, where patch moments exist."""
    size = draw(st.sampled_from([(3, 3), (3, 3), (1, 1), (1, 3), (3, 5), (5, 5)]))
    inside, outside = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    names = draw(st.lists(st.sampled_from(sorted(BRANCHES)), min_size=1, max_size=4))
    names = [name for name in names if name != "identity" or inside == outside] or ["repsr", "repsr"]
    spec = ConvSpec(inside, outside, size, bias=draw(st.booleans()))
    post = draw(st.booleans()) and spec.bias
    block = ReparamBlock(spec, [BRANCHES[name] for name in names], bn=post)
    shape = tuple(k // 2 + draw(st.integers(1, 6)) for k in size)
    seed = draw(seeds)
    return randomise(block.double(), seed).train(), image(spec, seed, shape, batch=draw(st.integers(2, 3)))


def run(block: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    leaf = x.clone().requires_grad_()
    y = block(leaf)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    inputs = [leaf, *block.parameters()]
    loss = (y * weights).sum() + y.square().mean()
    return y, list(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))


def check_same(block: nn.Module, x: torch.Tensor, tolerance: float = 1e-12) -> None:
    """Folded and branch by branch from the same state: outputs, gradients, buffers; conditioned as the branches are."""
    folded, branches = copy.deepcopy(block), copy.deepcopy(block)
    set_fold(folded, True)
    set_fold(branches, False)
    y, gradients = run(folded, x)
    expected, expected_gradients = run(branches, x)
    # One value per channel and image makes a variance near zero, and 1 / sqrt(variance) magnifies what is rounding.
    smallest = min([float(scale) for scale in smallest_deviation(branches, x)] or [1.0])
    tolerance *= max(1.0, 0.03 / smallest) ** 3
    assert_close(y, expected, tolerance, "output")
    size = max(float(g.abs().max()) for g in expected_gradients)
    for ours, theirs in zip(gradients, expected_gradients):
        assert float((ours - theirs).abs().max()) <= 20 * tolerance * size, "a gradient differs"
    for (name, ours), theirs in zip(folded.named_buffers(), branches.buffers()):
        if ours.numel():
            assert float((ours - theirs).abs().max()) <= tolerance * (1 + float(theirs.abs().max())), name


def smallest_deviation(block, x):
    """The smallest standard deviation that a batch norm of the block met, relative to its input."""
    found = []
    hooked = copy.deepcopy(block)
    for _, bn in norms(hooked):
        if isinstance(bn, nn.BatchNorm2d):
            bn.momentum = 1.0
    hooked(x)
    for _, bn in norms(hooked):
        if isinstance(bn, nn.BatchNorm2d):
            found.append(((bn.running_var + bn.eps).sqrt() / (1 + bn.running_mean.abs())).min())
    return found


@given(blocks())
def test_folded_is_branch_by_branch(case):
    check_same(*case)


@given(blocks())
def test_frozen_and_folded_is_branch_by_branch(case):
    block, x = case
    freeze_bn_stats(block)
    check_same(block, x)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "groups": 2}, {"kernel_size": 1}, {"padding": 0, "dilation": 2}])
def test_a_norm_after_the_sum_alone(options):
    block = randomise(OREPABlock(4, 6, **options).double(), 0).train()
    check_same(block, image(block.spec, 1, (7, 8)))


LAYOUTS = [torch.contiguous_format, torch.channels_last]  # each is correlated in a way of its own


@given(
    st.sampled_from([(1, 1), (3, 3), (1, 3), (5, 3), (3, 7), (5, 5)]),
    st.integers(0, 4),
    st.integers(0, 4),
    seeds,
    st.sampled_from(LAYOUTS),
)
def test_moments_are_those_of_unfolded_patches(size, more_rows, more_columns, seed, layout):
    """Against im2col, with a mean ten times the deviation; also their gradient."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, max(size[0] // 2, 1) + more_rows, max(size[1] // 2, 1) + more_columns)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) + 10
    x = x.to(memory_format=layout).requires_grad_()
    kernel = Kernel(torch.randn(4, 3, *size, generator=generator, dtype=torch.float64), torch.ones(4).double())
    patches = F.unfold(x, size, padding=(size[0] // 2, size[1] // 2)).transpose(0, 1).flatten(1)
    z = kernel.weight.flatten(1) @ patches + 1.0
    mean, var = patch_moments(x, size).of(kernel)
    assert_close(mean, z.mean(1))
    assert (var - z.var(1, correction=0)).abs().max().item() <= 1e-10 * z.square().mean().item()
    ours, theirs = (torch.autograd.grad((v * v).sum(), x)[0] for v in (var, z.var(1, correction=0)))
    assert (ours - theirs).abs().max().item() <= 1e-9 * (theirs.abs().max().item() + 1)


def launched(block: nn.Module, x: torch.Tensor) -> dict[str, int]:
    """Of a step, when what depends on sizes alone is remembered."""

    def step():
        block(x).sum().backward()
        block.zero_grad()
        x.grad = None

    step()
    return launches(step)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_launches_do_not_grow_with_the_images(layout):
    """Where channels are together, all distances of one row are one launch."""
    block = RepSRBlock(8, fold=True)
    xs = (torch.rand(shape).to(memory_format=layout) for shape in ((2, 8, 8, 9), (4, 8, 48, 40)))
    small, large = (launched(block, x.requires_grad_()) for x in xs)
    assert small == large
    assert sum(small.values()) <= (147 if layout == torch.channels_last else 164)


def test_launches_on_an_accelerator():
    """Counted on the meta device, where the same code runs; docs/folding.md has the number."""
    x = torch.rand(16, 64, 64, 64, device="meta", requires_grad=True)
    assert sum(launched(RepSRBlock(64, fold=True).to("meta"), x).values()) <= 130


def test_a_large_mean_and_a_tiny_variance_in_float32():
    """E[z²] - E[z]² would lose everything here; the input is centered, so that it does not.

    Without the identity, which the branches pass on unrounded, so that it would hide what the statistics lose.
    """
    torch.manual_seed(0)
    x = 100 + 0.01 * torch.randn(4, 8, 16, 16)
    block = RepSRBlock(8, identity=False, gain=1.0, bn_weight=1.0)
    exact = copy.deepcopy(block).double()
    set_fold(exact, False)
    expected = exact(x.double())
    errors = {}
    for fold in (True, False):
        ours = copy.deepcopy(block)
        ours.fold = fold
        errors[fold] = relative_error(ours(x), expected)
    assert errors[True] <= 10 * errors[False], errors


def test_200_steps_of_training_give_the_same_weights():
    nets = {fold: create_model("repsr_m1c4_x2").double() for fold in (True, False)}
    nets[False].load_state_dict(nets[True].state_dict())
    optimizers = {}
    for fold, net in nets.items():
        set_fold(net, fold)
        optimizers[fold] = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for step in range(200):
        x = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(step)).double()
        for fold, net in nets.items():
            if step == 180:
                freeze_bn_stats(net)
            optimizers[fold].zero_grad()
            (net(x) - x.mean()).square().mean().backward()
            optimizers[fold].step()
    for (name, ours), theirs in zip(nets[True].state_dict().items(), nets[False].state_dict().values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)


def count_convolutions(block, x) -> int:
    """Convolutions of the size of the input that a forward runs."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.convolution.default and args[0].shape[0] == x.shape[0]:
                self.seen += 1
            return function(*args, **(kwargs or {}))

    with Counter() as counter:
        block(x)
    return counter.seen


class TestAuto:
    """What runs, by the number of convolutions."""

    x = torch.rand(4, 8, 48, 48)

    def test_repsr_folds_and_repvgg_runs_its_branches(self):
        x = torch.rand(16, 8, 48, 48)
        assert count_convolutions(RepSRBlock(8), x) == 1
        assert count_convolutions(RepVGGBlock(8), x) == 2

    def test_without_batch_statistics_everything_folds(self):
        for block in (RepVGGBlock(8), RepSRBlock(8, stride=2, groups=2), ECB(8)):
            randomise(block, 0).eval()
            assert count_convolutions(block, self.x) == 1
            freeze_bn_stats(block.train())
            assert count_convolutions(block, self.x) == 1

    def test_where_only_the_sum_is_normalized_one_convolution_runs_before_it(self):
        for block in (OREPABlock(8), OREPABlock(8, stride=2, groups=2, fold=True), OREPARepVGGBlock(8, identity=False)):
            expected = 2 if isinstance(block, OREPARepVGGBlock) else 1
            assert count_convolutions(block, self.x) == expected
            set_fold(block, False)
            assert count_convolutions(block, self.x) >= 2

    def test_small_images_run_branches(self):
        assert count_convolutions(RepSRBlock(8), torch.rand(2, 8, 4, 4)) == 2

    def test_geometry_without_moments_runs_branches(self):
        assert count_convolutions(RepSRBlock(8, stride=2), self.x) == 2
        assert count_convolutions(RepSRBlock(8, groups=2), self.x) == 4

    def test_equal_paths_are_stacked(self):
        block = RepSRBlock(8, fold=False, paths=3)
        assert count_convolutions(block, self.x) == 2
        literal = copy.deepcopy(block)
        expected = sum(branch(self.x) for branch in literal.branches)
        assert_close(block(self.x), expected)
        for ours, theirs in zip(block.buffers(), literal.buffers()):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("order", ["kxk-1x1", "1x1-kxk"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
def test_stacked_paths_are_the_sum_of_the_paths(order, bias, mode):
    """Also where the shapes differ in the middle, and an eps that is another keeps a path out of the stack."""
    spec = ConvSpec(4, 6, 3, stride=2, bias=bias)
    path = partial(ExpandSqueezeBranch, order=order, bn=True)
    odd = partial(ExpandSqueezeBranch, order=order, bn=partial(nn.BatchNorm2d, eps=1e-2))
    block = ReparamBlock(spec, [path, odd, partial(path, expansion=3)], fold=False)
    randomise(block.double(), 0).train(mode != "eval")
    if mode == "frozen":
        freeze_bn_stats(block)
    x = image(spec, 1, (7, 8))
    literal = copy.deepcopy(block)
    assert_close(block(x), sum(branch(x) for branch in literal.branches), 1e-12)
    for ours, theirs in zip(block.buffers(), literal.buffers()):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"stride": 2}, r"stride=\(2, 2\) \(1 is needed\)"),
            ({"groups": 2}, r"groups=2 \(1 is needed\)"),
            ({"dilation": 2}, r"dilation=\(2, 2\) \(1 is needed\)"),
            ({"kernel_size": 4}, r"kernel_size=\(4, 4\) \(odd numbers are needed\)"),
            ({"padding": 0}, r"padding=\(0, 0\) \(the size must be kept\)"),
            ({"padding_mode": "reflect"}, r"padding_mode='reflect' \('zeros' is needed\)"),
            ({"ndim": 1}, r"ndim=1 \(2 is needed\)"),
        ],
    )
    def test_fold_true_names_what_is_in_the_way(self, options, match):
        with pytest.raises(SpecError, match=f"fold=True is not possible on batch statistics for {match}"):
            RepSRBlock(4, fold=True, **options)

    def test_without_batch_norms_nothing_is_in_the_way(self):
        assert RepSRBlock(4, stride=2, bn=False, fold=True).fold is True

    def test_another_value(self):
        with pytest.raises(SpecError, match="fold='yes'"):
            RepSRBlock(4, fold="yes")

    def test_set_fold_names_the_block_and_changes_nothing(self):
        net = nn.Sequential(RepSRBlock(4), RepSRBlock(4, stride=2))
        with pytest.raises(SpecError, match="block '1': fold=True is not possible"):
            set_fold(net, True)
        assert net[0].fold == "auto"
        assert set_fold(net, False) == ["0", "1"]

    def test_an_image_that_patches_reach_across(self):
        block = RepSRBlock(4, kernel_size=5, fold=True)
        with pytest.raises(SpecError, match=r"at least half the kernel, but got \(1, 7\)"):
            block(torch.rand(4, 4, 1, 7))
        block.fold = "auto"
        assert block(torch.rand(4, 4, 1, 7)).shape == (4, 4, 1, 7)

    def test_norms_that_only_their_branch_knows(self):
        class Closed(Branch):
            def __init__(self, spec):
                super().__init__(spec)
                self.inner = ConvBNBranch(spec)

            def kernel(self):
                return self.inner.kernel()

            def forward(self, x):
                return self.inner(x)

        scaled = partial(ScaledBranch, branch=Closed)
        block = partial(ReparamBlock, branches=[ConvBranch, Closed])
        for kind, name in ((Closed, "0"), (scaled, "0.branch"), (block, "0.branches.1")):
            with pytest.raises(SpecError, match=f"branch {name}, a Closed with batch norms and no kernel_with"):
                ReparamBlock(ConvSpec(4), [kind], fold=True)
            assert ReparamBlock(ConvSpec(4), [kind, ConvBranch])(torch.rand(2, 4, 40, 40)).shape == (2, 4, 40, 40)


def test_the_estimate_is_that_of_the_docs():
    assert cost.plain(ConvSpec(16)).each == 27 * 16**2  # docs/folding.md
    assert cost.moments(ConvSpec(16), 0, 0).each == (13 + 25) * 16**2
    assert cost.convolution(8, 16, 9) == 3 * 8 * 16 * 9


class TestSurroundings:
    """Where people run it."""

    def net(self):
        torch.manual_seed(0)
        net = nn.Sequential(RepSRBlock(4), nn.PReLU(4), ECB(4))
        set_fold(net, True)
        return net

    @pytest.mark.parametrize("fold", [True, False, "auto"])
    @pytest.mark.parametrize("size", [4, 16])  # on small images "auto" runs the branches
    def test_autocast_keeps_the_kernels_in_float32(self, fold, size):
        net, x = self.net(), torch.rand(4, 4, size, size)
        set_fold(net, fold)
        twin = copy.deepcopy(net)
        expected = twin(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = net(x)
        for (_, bn), (_, other) in zip(norms(net), norms(twin)):
            assert bn.running_mean.dtype == torch.float32
            torch.testing.assert_close(bn.running_mean, other.running_mean, rtol=0, atol=2e-3)
            torch.testing.assert_close(bn.running_var, other.running_var, rtol=0, atol=2e-3)
        assert y.dtype == torch.bfloat16
        assert relative_error(y, expected) < 0.02
        y.float().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("norms_in_float", [True, False])
    def test_half_precision_parameters(self, dtype, norms_in_float):
        net, x = self.net(), torch.rand(4, 4, 16, 16)
        expected = copy.deepcopy(net)(x)
        net.to(dtype)
        for _, bn in norms(net):
            bn.to(torch.float32 if norms_in_float else dtype)
        y = net(x.to(dtype))
        assert y.dtype == dtype
        assert relative_error(y, expected) < 0.05
        freeze_bn_stats(net)
        assert net(x.to(dtype)).dtype == dtype

    def test_channels_last(self):
        net, x = self.net(), torch.rand(4, 4, 16, 12)
        expected, gradients = run(copy.deepcopy(net), x)
        last = x.to(memory_format=torch.channels_last)
        y, ours = run(net.to(memory_format=torch.channels_last), last)
        assert_close(y.contiguous(), expected)
        for a, b in zip(ours, gradients):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    def test_gradient_accumulation(self):
        net, x = self.net().double(), torch.rand(2, 4, 8, 8).double()
        net(x).sum().backward()
        net(x).sum().backward()
        twice = [p.grad.clone() for p in net.parameters()]
        net.zero_grad()
        net(x).sum().backward()
        for a, p in zip(twice, net.parameters()):
            torch.testing.assert_close(a, 2 * p.grad, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_activation_checkpointing(self, reentrant):
        net, x = self.net().double(), torch.rand(2, 4, 8, 8).double()
        expected = [p.clone() for p in run(copy.deepcopy(net), x)[1]]
        leaf = x.clone().requires_grad_()
        y = checkpoint(net, leaf, use_reentrant=reentrant)
        weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
        ((y * weights).sum() + y.square().mean()).backward()
        for gradient, p in zip(expected[1:], net.parameters()):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-10, atol=1e-12)

    def test_compiled_for_images_of_several_sizes(self):
        block = RepSRBlock(4, fold=True)
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        for batch, height, width in ((2, 8, 8), (3, 8, 8), (2, 12, 9)):
            x = torch.rand(batch, 4, height, width)
            assert_close(compiled(x), block(x), 1e-6)

    def test_functional_call(self):
        net, x = self.net().double(), torch.rand(2, 4, 8, 8).double()
        halved = {name: p.detach() / 2 for name, p in net.named_parameters()}
        twin = copy.deepcopy(net)
        twin.load_state_dict(halved, strict=False)
        assert_close(torch.func.functional_call(net, halved, x), twin(x))

    def test_the_meta_device(self):
        y = self.net().to("meta")(torch.rand(4, 4, 16, 16, device="meta", requires_grad=True))
        assert y.is_meta and y.shape == (4, 4, 16, 16)
        y.sum().backward()

    def test_second_derivatives(self):
        block = RepSRBlock(2, fold=True).double()
        x = torch.rand(2, 2, 4, 5).double().requires_grad_()
        found = []
        for fold in (True, False):
            twin = copy.deepcopy(block)
            twin.fold = fold
            (first,) = torch.autograd.grad(twin(x).pow(3).sum(), x, create_graph=True)
            found.append(torch.autograd.grad(first.square().sum(), x)[0])
        assert_close(*found, 1e-9)

    @pytest.mark.parametrize("phase", ["batch", pytest.param("auto", marks=pytest.mark.nightly), "frozen"])
    def test_compile_in_one_graph(self, phase):
        net, x = self.net(), torch.rand(4, 4, 16, 16)
        set_fold(net, "auto" if phase == "auto" else True)
        if phase == "frozen":
            net(x)
            freeze_bn_stats(net)
        expected, gradients = run(copy.deepcopy(net), x)
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        y, ours = run(compiled, x)
        assert_close(y, expected)
        for a, b in zip(ours, gradients):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        assert bool(torch.isfinite(net(x)).all())  # nothing of the compiler's is left behind

    @pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor that is not a leaf"
    )  # torch's own look at inputs
    @pytest.mark.parametrize("phase", ["batch", "frozen"])
    def test_blocks_that_are_alike_share_what_is_compiled(self, phase):
        """One graph for the first, one for those in the middle, one for the last; and no kernels at once beside it."""
        torch.compiler.reset()
        net, x = create_model("repsr_m4c4_x2"), torch.rand(2, 3, 8, 9)
        net(x)
        if phase == "frozen":
            freeze_bn_stats(net)
        set_fold(net, True)
        expected, gradients = run(copy.deepcopy(net), x)
        graphs = []

        def counted(graph, inputs):
            graphs.append(graph)
            return graph.forward

        blocks = [block for block in net.modules() if isinstance(block, ReparamBlock)]
        for block in blocks:
            block.compile(fullgraph=True, backend=counted, dynamic=False)
        y, ours = run(net, x)
        assert (len(blocks), len(graphs)) == (6, 3)
        assert phase == "batch" or not any(block._share.wanted for block in blocks)
        assert_close(y, expected)
        for a, b in zip(ours, gradients):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        torch.compiler.reset()

    def test_recalibration_of_a_folded_block(self):
        block = RepSRBlock(3, fold=True).double()
        batches = [torch.rand(n, 3, 6, 7).double() + n for n in (1, 3)]
        twin = copy.deepcopy(block)
        twin.fold = False
        for model in (block, twin):
            recalibrate_bn_stats(model, batches)
        for ours, theirs in zip(block.buffers(), twin.buffers()):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def saved_bytes(module: nn.Module, x: torch.Tensor) -> int:
    """Bytes kept for the backward pass, every storage once, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sum(storages.values())


@pytest.mark.parametrize("channels", [16, 64])
def test_what_is_saved_for_backward_is_the_input(channels):
    x = torch.rand(16, channels, 64, 64, requires_grad=True)
    plain = saved_bytes(nn.Conv2d(channels, channels, 3, padding=1), x)
    for block in (RepSRBlock(channels, fold=True), ECB(channels)):
        assert saved_bytes(block, x) <= 1.15 * plain
    assert saved_bytes(RepSRBlock(channels, fold=False), x) > 4 * plain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_input_is_saved_in_half_precision_only(dtype):
    x = torch.rand(16, 16, 64, 64, requires_grad=True)
    with torch.autocast("cpu", dtype):
        plain = saved_bytes(nn.Conv2d(16, 16, 3, padding=1), x)
        assert saved_bytes(RepSRBlock(16, fold=True), x) <= 1.15 * plain


@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moments_of_half_precision_are_those_of_the_same_numbers_in_float32(dtype, channels):
    smooth = F.interpolate(torch.rand(2, channels, 4, 5), size=(12, 15), mode="bicubic")
    came = smooth.to(dtype).requires_grad_()
    raised = came.detach().float().requires_grad_()
    found = []
    for x in (came, raised):
        moments = patch_moments(x, (3, 3))
        weights = torch.linspace(-1, 2, moments.covariance.numel(), dtype=torch.float64)
        total = (moments.covariance.flatten() * weights).sum() + moments.mean.square().sum()
        found.append((moments, *torch.autograd.grad(total, x)))
    (ours, gradient), (theirs, expected) = found
    assert torch.equal(ours.covariance, theirs.covariance) and torch.equal(ours.mean, theirs.mean)
    assert torch.equal(ours.center, theirs.center) and torch.equal(ours.rounded, theirs.rounded)
    assert gradient.dtype == dtype and torch.equal(gradient, expected.to(dtype))
