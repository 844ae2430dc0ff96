"""In eval mode a kernel is computed once, and again after any change at all that it follows from."""

import copy
import gc
import pickle
import weakref
from functools import partial

import pytest
import torch
from helpers import assert_close, image, randomise
from strategies import KINDS
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from reparam import (
    Branch,
    ConvBNBranch,
    ConvBranch,
    ConvSpec,
    Kernel,
    ReparamBlock,
    RepSRBlock,
    RepVGGBlock,
    freeze_bn_stats,
    fuse,
    recalibrate_bn_stats,
    set_fold,
    unfreeze_bn_stats,
)
from reparam.modules._inside import inside_of

SPEC = ConvSpec(3)
BLOCKS = sorted(kind for kind, make in KINDS.items() if isinstance(make(SPEC), ReparamBlock))


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """The class of each block of which the kernel was computed."""
    calls = []
    compute = ReparamBlock.kernel_with

    def counted(self, scale_shift_of):
        calls.append(type(self).__name__)
        return compute(self, scale_shift_of)

    monkeypatch.setattr(ReparamBlock, "kernel_with", counted)
    return calls


def built(kind: str = "RepSRBlock", dtype=torch.float64) -> tuple[ReparamBlock, Tensor]:
    return randomise(KINDS[kind](SPEC).to(dtype), 0).eval(), image(SPEC, 1, (6, 7), dtype=dtype)


@torch.no_grad()
def check_is_up_to_date(block: ReparamBlock, x: Tensor) -> Tensor:
    """What a block computes is, to the bit, what one does that has computed nothing before."""
    y = block(x)
    assert torch.equal(y, copy.deepcopy(block)(x))
    return y


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", BLOCKS)
def test_computed_once(kind, dtype, computed):
    block, x = built(kind, dtype)
    with torch.no_grad():
        ys = [block(x)]
        first = len(computed)
        ys += [block(x), block(x[:, :, :5]), block(x)]
    assert first and len(computed) == first
    assert torch.equal(ys[0], ys[1]) and torch.equal(ys[0], ys[3])
    check_is_up_to_date(block, x)


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_number_is_looked_at(kind):
    """Each parameter and buffer, changed in one place, in ways that move its version and in one that does not."""
    block, x = built(kind)
    before = check_is_up_to_date(block, x)
    changed = 0
    for tensor in [*block.parameters(), *block.buffers()]:
        if not tensor.numel() or not tensor.is_floating_point():
            continue
        version = tensor._version
        tensor.data.flatten()[-1:] += 0.5
        assert tensor._version == version, "a write through .data is what no version tells"
        y = check_is_up_to_date(block, x)
        changed += not torch.equal(y, before)
        with torch.no_grad():
            tensor.view(-1)[0] += 0.25
        before = check_is_up_to_date(block, x)
    assert changed, "no number mattered"


def exchange(block: ReparamBlock) -> None:
    block.branches[1].expand = randomise(nn.Conv2d(3, 6, 3), 5).double()


def assign(block: ReparamBlock) -> None:
    block.load_state_dict(randomise(copy.deepcopy(block), 6).state_dict(), assign=True)


class Halved(nn.Conv2d):
    """A convolution that shows half of its weight."""

    @property
    def weight(self):
        return self._parameters["weight"] / 2

    @weight.setter
    def weight(self, weight):
        self._parameters["weight"] = weight


def train(block: ReparamBlock) -> None:
    block.train()(image(SPEC, 3, (6, 6))).sum().backward()
    block.eval()


CHANGES = {
    "load": lambda block: block.load_state_dict(randomise(copy.deepcopy(block), 6).state_dict()),
    "load by assignment": assign,
    "a new parameter": lambda b: setattr(b.branches[1].squeeze, "weight", nn.Parameter(b.branches[2].squeeze.weight)),
    "no parameter": lambda block: setattr(block.branches[1].squeeze, "bias", None),
    "data of another tensor": lambda b: setattr(b.branches[1].expand.weight, "data", b.branches[2].expand.weight.data),
    "another module": exchange,
    "eps": lambda block: setattr(block.branches[2].norm, "eps", 0.1),
    "eps of both": lambda block: [setattr(block.branches[i].norm, "eps", 0.1) for i in (1, 2)],
    "one branch fewer": lambda block: block.branches.__delitem__(2),
    "one branch more": lambda block: block.branches.append(randomise(ConvBranch(SPEC), 7).double()),
    "a step": train,
    "statistics": lambda block: recalibrate_bn_stats(block, [image(SPEC, 4, (8, 8))]),
    "reset": lambda block: block.reset_parameters(),
    "parametrized": lambda block: parametrizations.weight_norm(block.branches[1].expand),
    "pruned": lambda block: prune.l1_unstructured(block.branches[1].expand, "weight", 0.5),
    "another class": lambda block: setattr(block.branches[1].expand, "__class__", Halved),
    "a hook": lambda block: block.branches[1].register_forward_hook(lambda module, args, y: 2 * y),
    "a forward": lambda block: setattr(block.branches[1], "forward", lambda x: x),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change):
    block, x = built()
    before = check_is_up_to_date(block, x)
    CHANGES[change](block)
    with torch.no_grad():
        y, fold = block(x), block.fold
        block.fold = False
        branches = block(x)
        block.fold = fold
    assert not torch.equal(y, before)
    torch.testing.assert_close(y, branches, rtol=1e-10, atol=1e-10)
    if change != "pruned":  # of which torch makes no copies
        check_is_up_to_date(block, x)


def test_what_is_put_into_a_layer_that_held_nothing_is_seen():
    block, _ = built()
    inside = inside_of(block)
    assert inside.is_current(block)
    block.branches[1].expand.add_module("more", nn.BatchNorm2d(3))
    assert not inside.is_current(block)


@pytest.mark.parametrize("number", ["weight", "bias"])
def test_a_parametrization_that_reads_what_no_one_sees(number):
    class Times(nn.Module):
        factor = 1.0

        def forward(self, weight):
            return self.factor * weight

    block, x = built()
    times = Times()
    nn.utils.parametrize.register_parametrization(block.branches[1].expand, number, times)
    before = check_is_up_to_date(block, x)
    Times.factor = 2.0
    assert not torch.equal(check_is_up_to_date(block, x), before)


def test_a_branch_of_ones_own_is_asked_each_time():
    class Own(Branch):
        def kernel(self):
            return Kernel(self.like.new_full((3, 3, 1, 1), strength[0]), self.like.new_zeros(3))

    strength = [1.0]
    block, x = ReparamBlock(SPEC, [Own, ConvBranch]).double().eval(), image(SPEC, 0, (6, 6))
    before = check_is_up_to_date(block, x)
    strength[0] = 2.0
    assert not torch.equal(check_is_up_to_date(block, x), before)


def test_a_block_of_ones_own():
    """Designed of known branches it is kept; with a kernel of its own it is not."""

    class Designed(RepVGGBlock):
        pass

    class Scaled(RepVGGBlock):
        factor = 2.0

        def forward(self, x):
            return super().forward(x)

        def kernel(self):
            return self.kernel_with(lambda bns, *_: None)

        def kernel_with(self, scale_shift_of):
            return Kernel(*(self.factor * tensor for tensor in super().kernel_with(scale_shift_of)))

    x = image(SPEC, 0, (6, 6))
    for kind, kept in ((Designed, True), (Scaled, False)):
        block = randomise(kind(3).double(), 0).eval()
        with torch.no_grad():
            y = block(x)
            assert (block._kept.last is not None) == kept
            kind.factor = 3.0
            assert torch.equal(block(x), y if kept else 1.5 * y) or (block(x) - 1.5 * y).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_casts(dtype):
    block, x = built(dtype=torch.float32)
    check_is_up_to_date(block, x)
    y = check_is_up_to_date(block.to(dtype), x.to(dtype))
    assert y.dtype == dtype


def test_moves():
    block, x = built()
    check_is_up_to_date(block, x)
    assert block.to("meta")(x.to("meta")).is_meta
    block, x = built(dtype=torch.float32)
    check_is_up_to_date(block, x)
    block.to(memory_format=torch.channels_last)
    check_is_up_to_date(block, x.to(memory_format=torch.channels_last))


def test_frozen_and_back():
    block, x = built()
    y = check_is_up_to_date(block, x)
    freeze_bn_stats(block)
    assert torch.equal(check_is_up_to_date(block, x), y)
    unfreeze_bn_stats(block)
    block.train()
    with torch.no_grad():
        assert not torch.allclose(block(x), y)


class TestMemory:
    def bytes_of(self, block) -> int:
        return len(pickle.dumps(block))

    def test_nothing_in_training_and_in_copies(self):
        block, x = built()
        size, state = self.bytes_of(block), list(block.state_dict())
        check_is_up_to_date(block, x)
        assert block._kept.last is not None
        assert self.bytes_of(block) == size and list(block.state_dict()) == state
        assert copy.deepcopy(block)._kept.last is None
        block.train()(x)
        assert block._kept.last is None
        check_is_up_to_date(block.eval(), x)
        block(x)  # with gradients
        assert block._kept.last is None
        freeze_bn_stats(block)
        with torch.no_grad():
            block.train()(x)
        assert block._kept.last is None

    def test_a_block_goes_with_the_last_reference_to_it(self):
        block, x = built()
        check_is_up_to_date(block, x)
        gone = [
            weakref.ref(block),
            weakref.ref(block.branches[1].expand.weight),
            weakref.ref(block._kept.last.kernel[0]),
        ]
        gc.disable()
        try:
            del block
            assert [ref() for ref in gone] == [None] * 3
        finally:
            gc.enable()


class TestOthersWatch:
    """Gradients, transforms, tracers and counters see the kernel computed."""

    def kept(self) -> tuple[ReparamBlock, Tensor]:
        block, x = built(dtype=torch.float32)
        check_is_up_to_date(block, x)
        return block, x

    def test_gradients(self):
        block, x = self.kept()
        block(x).sum().backward()
        assert all(p.grad is not None for p in block.branches[1].parameters())

    @pytest.mark.parametrize("modes", [(torch.inference_mode, torch.no_grad), (torch.no_grad, torch.inference_mode)])
    def test_inference_mode(self, modes):
        block, x = built()
        ys = []
        for mode in modes:
            with mode():
                ys.append(block(x))
        assert torch.equal(*ys)
        block(x).sum().backward()
        assert block.branches[1].expand.weight.grad is not None

    def test_autocast(self):
        block, x = self.kept()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            y = block(x)
            assert y.dtype == torch.bfloat16 and torch.equal(y, copy.deepcopy(block)(x))
        check_is_up_to_date(block, x)

    def test_many_networks_at_once(self):
        blocks = [randomise(RepSRBlock(3), seed).eval() for seed in range(3)]
        x = image(SPEC, 1, (6, 7), dtype=torch.float32)
        with torch.no_grad():
            for block in blocks:
                block(x)
            params, buffers = stack_module_state(blocks)
            together = vmap(lambda p, b: functional_call(blocks[0], (p, b), (x,)))(params, buffers)
            for y, block in zip(together, blocks):
                torch.testing.assert_close(y, block(x), rtol=1e-5, atol=1e-5)
            check_is_up_to_date(blocks[0], x)
            of_images = vmap(lambda image: blocks[0](image[None])[0])(x)
            torch.testing.assert_close(of_images, blocks[0](x), rtol=1e-5, atol=1e-5)

    def test_other_parameters_for_a_call(self):
        block, x = self.kept()
        other = randomise(copy.deepcopy(block), 9)
        with torch.no_grad():
            y = functional_call(block, dict(other.named_parameters()) | dict(other.named_buffers()), (x,))
            assert torch.equal(y, other(x))
        check_is_up_to_date(block, x)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*:FutureWarning")
    @pytest.mark.parametrize("how", ["trace", "export", "compile", "make_fx"])
    def test_what_is_recorded_follows_the_parameters(self, how):
        block, x = self.kept()
        with torch.no_grad():
            if how == "trace":
                recorded = torch.jit.trace(block, x)
            elif how == "export":
                recorded = torch.export.export(block, (x,)).module()
            elif how == "compile":
                recorded = torch.compile(block, fullgraph=True, backend="eager")
                recorded(x)
            else:
                names = dict(block.named_parameters())
                traced = make_fx(lambda p, x: functional_call(block, p, (x,)))(names, x)
                recorded = partial(lambda x: traced(dict(recorded_block.named_parameters()), x))
            recorded_block = block if how != "export" else recorded
            before = recorded(x)
            assert_close(before, block(x), 1e-6)
            for parameter in recorded_block.parameters():
                parameter.mul_(1.5)
            if how == "export":
                block.load_state_dict(recorded.state_dict())
            assert not torch.allclose(recorded(x), before)
            assert_close(recorded(x), block(x), 1e-6)  # of the largest: a sum of large terms may be small

    def test_a_counter_counts_the_same_each_time(self):
        block, x = built("RRRB")
        counts = []
        for _ in range(2):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                block(x)
            counts.append(counter.get_total_flops())
            check_is_up_to_date(block, x)
        assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("fold", ["auto", True])
def test_fold_of_a_network(fold, computed):
    net = nn.Sequential(randomise(RepSRBlock(3), 0), nn.PReLU(3), randomise(ConvBNBranch(SPEC), 1)).eval()
    set_fold(net, fold)
    x = image(SPEC, 1, (6, 7), dtype=torch.float32)
    with torch.no_grad():
        y = net(x)
        assert torch.equal(net(x), y) and computed == ["RepSRBlock"]
        torch.testing.assert_close(fuse(net)(x), y, rtol=1e-4, atol=1e-4)
