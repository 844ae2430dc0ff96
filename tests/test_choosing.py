"""`fold="auto"`: what the estimate says, in which phases it is asked, and that it never changes the result."""

import copy
import pickle
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from helpers import randomise
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds
from torch import nn

import reparam.blocks
from reparam import (
    ECB,
    Branch,
    ChunkConv,
    ConvBNBranch,
    ConvBranch,
    ConvSpec,
    DiverseBranchBlock,
    ExpandSqueezeBranch,
    IdentityBranch,
    Kernel,
    ReparamBlock,
    RepSRBlock,
    RepVGGBlock,
    SequentialBranch,
    SobelBranch,
    SpecError,
    create_model,
    freeze_bn_stats,
    set_fold,
    unfreeze_bn_stats,
)
from reparam.bench._launches import launches
from reparam.blocks._block import PHASES
from reparam.bn._norm import norms
from reparam.branches import ScaledBranch
from reparam.folding import cost

DEPTHWISE = ("ChunkConv", "DilatedReparamBlock", "OmniShift", "RepDWConvM", "RepDWConvS", "RepVGGDW")
BLOCKS = {
    name: kind
    for name in reparam.blocks.__all__
    if isinstance(kind := getattr(reparam.blocks, name), type) and issubclass(kind, reparam.ConvBlock)
    if kind is not reparam.ConvBlock
}


def make(name: str, channels: int = 8) -> ReparamBlock:
    taps = 7 if name == "DilatedReparamBlock" else 3
    return BLOCKS[name](channels, kernel_size=taps, groups=channels if name in DEPTHWISE else 1)


def step(block: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    leaf = x.clone().requires_grad_()
    y = block(leaf)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    inputs = [leaf, *block.parameters()]
    found = torch.autograd.grad((y * weights).sum(), inputs, allow_unused=True, materialize_grads=True)
    return [y.detach(), *found]


def always(block: nn.Module, choice: bool) -> nn.Module:
    """A copy in which "auto" does so in every phase in which it can."""
    block = copy.deepcopy(block)
    set_fold(block, "auto")
    set_fold(block, {"": dict.fromkeys(PHASES, choice)})
    return block


def count(block: nn.Module, x: torch.Tensor) -> int:
    """Launches of a step, after one that may work out what later ones remember."""
    step(block, x)
    return sum(launches(partial(step, block, x)).values())


def folds(block: ReparamBlock, x: torch.Tensor) -> bool:
    """Whether "auto" took the folded way, told by what it launches."""
    counts = [count(way, x) for way in (block, always(block, True), always(block, False))]
    assert counts[1] != counts[2] and counts[0] in counts[1:]
    return counts[0] == counts[1]


@given(st.sampled_from(sorted(BLOCKS)), st.sampled_from(["train", "frozen", "eval"]), seeds)
def test_the_choice_never_changes_the_function(name, phase, seed):
    torch.manual_seed(seed)
    block = randomise(make(name, 4).double(), seed).train()
    if phase == "frozen":
        freeze_bn_stats(block)
    block.train(phase != "eval")
    x = torch.rand(2, 4, 9, 11).double()
    auto, folded, branches = copy.deepcopy(block), always(block, True), always(block, False)
    expected, *others = (step(way, x) for way in (branches, folded, auto))
    largest = max(float(value.abs().max()) for value in expected)
    for found in others:
        for ours, theirs in zip(found, expected, strict=True):
            assert float((ours - theirs).abs().max()) <= 1e-12 * max(largest, 1)
    for way in (folded, auto):
        for ours, theirs in zip(way.buffers(), branches.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


class TestEachPhaseAsks:
    """Work on parameters, cubic in the channels, pays on large images and not on small ones, in every phase."""

    small, large = torch.rand(1, 48, 3, 3), torch.rand(2, 48, 40, 40)

    def check(self, block):
        assert not folds(block, self.small) and folds(block, self.large)

    def test_without_norms(self):
        self.check(ECB(48))

    def test_frozen(self):
        block = DiverseBranchBlock(48)
        block(torch.rand(2, 48, 8, 8))
        freeze_bn_stats(block)
        self.check(block)

    def test_in_eval_mode_with_gradients(self):
        self.check(DiverseBranchBlock(48).eval())

    def test_a_batch_norm_after_the_sum_on_its_batch(self):
        self.check(ECB(48, sum_bn=True))

    def test_batch_statistics(self):
        assert not folds(RepSRBlock(8), torch.rand(2, 8, 5, 5)) and folds(RepSRBlock(8), torch.rand(16, 8, 96, 96))

    @torch.no_grad()
    def test_in_eval_mode_without_gradients_the_kernel_is_kept(self):
        block = ECB(48).eval()
        y = block(self.small)
        assert block._kept.last is not None and block._kept.last.kernel.weight.shape == (48, 48, 3, 3)
        torch.testing.assert_close(y, always(block, False).train()(self.small), rtol=1e-4, atol=1e-5)

    def test_a_large_filter_per_channel_runs_as_its_parts(self):
        assert not folds(ChunkConv(16, groups=16), torch.rand(4, 16, 32, 32))


@given(st.sampled_from(sorted(BLOCKS)), st.sampled_from([4, 16, 64]), st.sampled_from(["cpu", "cuda", "mps"]))
def test_more_pixels_never_turn_folding_off_but_for_large_filters(name, channels, device):
    block = make(name, channels)
    ways = [block._folded[False], block._of_run._replace(each=block.cost)]
    chosen = [ways[0].step(pixels, device) < ways[1].step(pixels, device) for pixels in 2 ** torch.arange(2, 24)]
    assert chosen == sorted(chosen) or name == "ChunkConv"


def of_step(fold: bool, *branches: Callable[[ConvSpec], Branch], batch: bool = False) -> int:
    """Launches of a block of these branches, on batch statistics or frozen."""
    block, x = ReparamBlock(ConvSpec(8), branches), torch.rand(2, 8, 12, 12)
    block(x)
    if not batch:
        freeze_bn_stats(block)
    return count(always(block, fold), x)


@cache
def counted() -> dict[str, int]:
    """What `cost.COUNTED` holds: what each operation adds to the launches of a block."""
    folded, point, normed = partial(of_step, True), partial(ConvBranch, kernel_size=1), ConvBNBranch
    of_moments = [folded(*[normed] * n, batch=True) - folded(*[normed] * n) for n in (1, 2)]
    one = folded(ConvBranch)
    return {
        "a layer that runs": of_step(False, ConvBranch, ConvBranch) - of_step(False, ConvBranch) - 1,
        "a kernel that is added": folded(ConvBranch, ConvBranch) - one,
        "an identity that is added": folded(ConvBranch, IdentityBranch) - one,
        "a kernel among zeros": folded(point) - one,
        "a kernel that is made": folded(SobelBranch) - folded(in_two(True)),
        "a composition": folded(in_two(False)) - one,
        "a bias that is composed": folded(in_two(True)) - folded(in_two(False)),
        "a scale": folded(partial(ScaledBranch, branch=ConvBranch)) - one,
        "a scale and shift": folded(normed) - one,
        "kernels side by side": folded(ExpandSqueezeBranch, ExpandSqueezeBranch) - folded(ExpandSqueezeBranch),
        "patch moments": 2 * of_moments[0] - of_moments[1],
        "a scale and shift of moments": of_moments[1] - of_moments[0],
    }


def in_two(bias: bool) -> Callable[[ConvSpec], Branch]:
    return lambda spec: SequentialBranch(spec, nn.Conv2d(8, 8, 1, bias=bias), nn.Conv2d(8, 8, 3))


@pytest.mark.parametrize("what", cost.COUNTED)
def test_every_constant_is_what_is_counted(what):
    """Where the algebra has changed, `python tests/calibrate.py --launches` prints them all."""
    assert abs(cost.COUNTED[what] - counted()[what]) <= max(1, counted()[what] / 10)
    assert list(counted()) == list(cost.COUNTED)


class TestLaunches:
    """Estimates are near what is counted, less what the counting adds itself."""

    x = torch.rand(2, 8, 12, 12)

    def check(self, estimate: float, block: nn.Module, choice: bool) -> None:
        aside = of_step(True, ConvBranch) - cost.COUNTED["a layer that runs"]
        found = count(always(block, choice), self.x) - aside
        assert abs(estimate - found) <= 4 + found / 4, (estimate, found)

    @pytest.mark.parametrize("name", sorted(BLOCKS))
    def test_of_a_block(self, name):
        block = make(name)
        block(self.x)
        if any(norms(block.branches)) and not block._no_moments:
            self.check(block._folded[True].launches, block, True)
        freeze_bn_stats(block)
        self.check(block._folded[False].launches, block, True)
        self.check(block._of_run.launches, block, False)

    @pytest.mark.parametrize("name", ["RepSRBlock", "ECB", "OREPABlock", "RepVGGBlock"])
    def test_of_blocks_whose_kernels_are_computed_at_once(self, name):
        net = nn.Sequential(*(make(name) for _ in range(8)))
        net(self.x)
        freeze_bn_stats(net)
        set_fold(net, True)
        folded, found = net[0]._folded[False], count(net, self.x) / 8
        assert abs(folded.launches - folded.shared * 7 / 8 - found) <= 2 + found / 4, found


class TestAmongItsKind:
    """Blocks whose kernels one pass computes share its launches, so that all fold where one alone would not."""

    x = torch.rand(2, 8, 6, 6)

    @pytest.fixture(autouse=True)
    def accelerator(self, monkeypatch):
        monkeypatch.setitem(cost.LAUNCHES, "cpu", cost.OF_ACCELERATORS)

    def net(self, *kinds):
        net = nn.Sequential(*(kind(8) for kind in kinds or [RepSRBlock] * 16))
        net(self.x)
        freeze_bn_stats(net)
        set_fold(net, "auto")
        return net

    def ran_folded(self, net, x=x):
        """Which of the blocks did, in one step."""
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            folds = ReparamBlock._folds
            patch.setattr(ReparamBlock, "_folds", lambda *given: (seen.append(folds(*given)), seen[-1])[1])
            step(net, x)
        return seen

    @pytest.mark.parametrize("kind", [RepSRBlock, ECB, RepVGGBlock])
    def test_a_network_folds_and_one_block_does_not(self, kind):
        net = self.net(*[kind] * 16)
        assert self.ran_folded(copy.deepcopy(net[0])) == [False]
        assert self.ran_folded(net) == [True] * 16

    def test_what_was_done_last_is_not_asked(self):
        net = self.net()
        for block in net:
            block._share.wanted = False
        for computed in (False, True):
            assert self.ran_folded(net) == [True] * 16
            assert [block._share._kernel is not None for block in net] == [computed] * 16

    def test_without_gradients_and_on_batch_statistics_each_is_alone(self):
        net = self.net()
        self.ran_folded(net)
        alone, images = copy.deepcopy(net[0]), [torch.empty(4, 8, s, s, device="meta") for s in range(1, 1600, 4)]

        def chosen(block):
            live = block._norms_on_batch()
            return [block._pays(x, live) for x in images]

        assert chosen(net[0]) != chosen(alone)
        with torch.no_grad():
            assert chosen(net[0]) == chosen(alone)
        for block in (net[0], alone):
            unfreeze_bn_stats(block)
        assert chosen(net[0]) == chosen(alone) and {*chosen(alone)} == {False, True}

    def test_each_kind_counts_for_itself(self):
        assert self.ran_folded(self.net(ECB, *[RepSRBlock] * 8)) == [False] + [True] * 8

    def test_one_that_no_longer_takes_part_does_not_count(self):
        net = self.net()
        self.ran_folded(net)
        for block in net[1:]:
            block.fold = False
        assert self.ran_folded(net) == [False] * 16
        assert [block._share.among for block in net] == [1] * 16

    def test_set_free_each_is_alone(self):
        net = self.net()
        self.ran_folded(net)
        set_fold(net, False)
        net[0].fold = "auto"
        assert self.ran_folded(net[0]) == [False]

    def test_kernels_that_no_batch_takes_are_made_one_by_one(self):
        class Own(Branch):
            def __init__(self, spec):
                super().__init__(spec)
                self.weight = nn.Parameter(torch.rand(8, 8, 3, 3))

            def kernel(self):
                return Kernel(self.weight * float(self.weight[0, 0, 0, 0] != 7), self.like.new_zeros(8))

        net = self.net(*[lambda c: ReparamBlock(ConvSpec(c), [Own, IdentityBranch])] * 4)
        self.ran_folded(net)
        assert [block._share.among for block in net] == [1] * 4


def test_a_device_of_slow_launches_runs_small_images_by_branches():
    block = RepVGGBlock(64)
    run, folded = block._of_run._replace(each=block.cost), block._folded[False]
    assert folded.step(16 * 32 * 32, "cpu") < run.step(16 * 32 * 32, "cpu")
    assert folded.step(16 * 32 * 32, "cuda") > run.step(16 * 32 * 32, "cuda")


def test_a_branch_of_ones_own_says_what_it_costs():
    class Cheap(Branch):
        def __init__(self, spec, price):
            super().__init__(spec)
            self.cost = price

        def kernel(self):
            return Kernel(self.like.new_zeros(8, 8, 3, 3), self.like.new_zeros(8))

        def forward(self, x):
            return torch.zeros_like(x)

    cheap, dear = (ReparamBlock(ConvSpec(8), [ConvBranch, partial(Cheap, price=p)]) for p in (1.0, 1e6))
    x = torch.rand(2, 8, 16, 16)
    assert dear.cost - cheap.cost == 1e6 - 1
    assert launches(partial(dear, x))["convolution"] == launches(partial(cheap, x))["convolution"] == 1
    assert launches(partial(cheap, x))["zeros_like"] == 1 and not launches(partial(dear, x))["zeros_like"]


class TestChoices:
    """What `tune_fold` found, set again."""

    def net(self):
        return nn.Sequential(RepVGGBlock(8), nn.PReLU(), RepVGGBlock(8, stride=2))

    def test_each_phase_does_as_chosen(self):
        net, x = self.net(), torch.rand(4, 8, 16, 16)
        assert set_fold(net, {"0": {PHASES[0]: True, PHASES[1]: False}}) == ["0"]
        assert folds(net[0], x)
        freeze_bn_stats(net[0])
        assert not folds(net[0], x)

    def test_a_choice_that_a_phase_does_not_have_is_no_error(self):
        net, x = self.net(), torch.rand(4, 8, 16, 16)
        set_fold(net, {"2": dict.fromkeys(PHASES, True)})
        assert net(x).shape == (4, 8, 8, 8)
        freeze_bn_stats(net)
        assert launches(partial(net[2], x))["convolution"] == 1

    def test_they_are_an_option_of_a_network(self):
        choices = {"body.0": {PHASES[1]: False}, "body.2": dict.fromkeys(PHASES, True)}
        net = create_model("repsr_m1c8_x2", fold=choices)
        assert net.options["fold"] == choices
        assert [net.body[index]._chosen for index in (0, 2, 4)] == [*choices.values(), {}]
        with pytest.raises(SpecError, match=r"block 'body.9', but the model has the blocks \['body.0'"):
            create_model("repsr_m1c8_x2", fold={"body.9": {}})

    def test_copies_and_pickles_do_the_same_and_setting_fold_forgets_it(self):
        net = self.net()
        set_fold(net, {"0": {PHASES[1]: False}})
        for same in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert same[0]._chosen == {PHASES[1]: False} and same[0].fold == "auto"
        set_fold(net, "auto")
        assert not net[0]._chosen

    @pytest.mark.parametrize(
        ("choices", "message"),
        [
            ({"1": {}}, r"block '1', but the model has the blocks \['0', '2'\]"),
            ({"0": {"frozen": True}}, r"block '0'.*no batch statistics.*got \{'frozen': True\}"),
            ({"0": {PHASES[1]: 1}}, r"block '0'.*got \{'no batch statistics': 1\}"),
        ],
    )
    def test_choices_that_make_no_sense(self, choices, message):
        net = self.net()
        with pytest.raises(SpecError, match=message):
            set_fold(net, {"2": {PHASES[1]: True}, **choices})
        assert not net[2]._chosen


def test_the_decision_is_traced():
    net = create_model("repsr_m4c16_x2")
    compiled = torch.compile(net, fullgraph=True, backend="eager", dynamic=True)
    for size in ((17, 19), (21, 18)):
        x = torch.rand(2, 3, *size)
        torch.testing.assert_close(compiled(x), copy.deepcopy(net)(x), rtol=1e-4, atol=1e-5)
