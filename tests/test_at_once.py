"""Kernels that a network computes at once are those that each block computes alone."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from helpers import assert_close, gradients, image, randomise, same
from hypothesis import given
from strategies import KINDS, cases
from torch import nn
from torch.func import functional_call
from torch.nn.parallel import replicate
from torch.utils.checkpoint import checkpoint

from reparam import (
    ECB,
    ConvBranch,
    ConvSpec,
    DilatedReparamBlock,
    DiverseBranchBlock,
    FrozenStatsBN,
    IdentityBranch,
    MobileOneBlock,
    OREPABlock,
    ReparamBlock,
    RepSRBlock,
    RepVGGBlock,
    create_model,
    freeze_bn_stats,
    fuse,
    set_fold,
)
from reparam.bench._launches import launches
from reparam.blocks import Conv3XC, ConvBlock
from reparam.blocks._at_once import no_more_at_once

BLOCKS = [RepSRBlock, ECB, RepVGGBlock, DiverseBranchBlock, OREPABlock, MobileOneBlock, Conv3XC]


def network(*blocks: nn.Module) -> nn.Sequential:
    """Frozen, in float64, with other numbers in every block."""
    net = nn.Sequential(*blocks)
    for module in net.modules():
        if isinstance(module, ReparamBlock):
            module.fold = True if module.why_not_fold(True) is None else "auto"
    randomise(net, 0)
    freeze_bn_stats(net)
    return net.double()


def images(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(2, 4, 6, 7, dtype=dtype)


def shared(net: nn.Module) -> list[bool]:
    """Which blocks have the kernel of the last forward from the pass for all."""
    return [module._share._taken for module in net.modules() if isinstance(module, ReparamBlock)]


@pytest.mark.parametrize("block", BLOCKS)
def test_at_once_is_one_by_one(block: type[ConvBlock]):
    net = network(block(4), nn.PReLU(), block(4), block(4, 5), block(5, 4))
    alone = gradients(net, images())
    set_fold(net, True)
    same(gradients(net, images()), alone)
    assert shared(net) == [True] * 4


class TwoBlocks(nn.Module):
    """Of one input, so that any geometry will do."""

    def __init__(self, first: ReparamBlock, second: ReparamBlock) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) - 2 * self.second(x)


@given(cases())
def test_any_branch_in_any_geometry_at_once_is_one_by_one(case: tuple):
    kind, spec, seed, size = case
    net = TwoBlocks(*(ReparamBlock(spec, [KINDS[kind], ConvBranch, KINDS[kind]]) for _ in range(2))).double()
    randomise(net, seed)
    freeze_bn_stats(net)
    x = image(spec, seed, size, batch=2)
    set_fold(net, {name: {"no batch statistics": True} for name in ("first", "second")})
    at_once = gradients(net, x)
    taken = net.first._share._taken and net.second._share._taken
    no_more_at_once(net)
    same(at_once, gradients(net, x))
    assert taken


@pytest.mark.parametrize("block", [block for block in ConvBlock.__subclasses__() if block is not DilatedReparamBlock])
def test_each_gradient_has_memory_of_its_own(block: type[ConvBlock]):
    """A sum hands the same gradient to all that it is of; whoever accumulates or clips them writes into each."""
    for net in (
        network(block(4), block(4)),
        network(block(4), ReparamBlock(ConvSpec(4), [ConvBranch, IdentityBranch])),
    ):
        set_fold(net, True)
        gradients(net, images())
        assert all(module._share._taken for module in net)
        addresses = [p.grad.data_ptr() for p in net.parameters()]
        assert len({*addresses}) == len(addresses)


def test_gradients_are_accumulated_and_clipped():
    net = network(ECB(4), ECB(4), ECB(4, 5), ECB(5, 4))
    set_fold(net, True)
    once = [gradient.clone() for gradient in gradients(net, images())]
    nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    scale = 0.5 / torch.cat([gradient.flatten() for gradient in once[1:]]).norm()
    clipped = [scale * gradient for gradient in once[1:]]
    assert all(
        (p.grad - c).abs().max() <= 1e-6 * scale * c.abs().max() + 1e-9 for p, c in zip(net.parameters(), clipped)
    )
    before = [p.grad.clone() for p in net.parameters()]
    y = net(images())
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    same([p.grad for p in net.parameters()], [a + b for a, b in zip(before, once[1:])])


def test_a_batch_of_gradients():
    net = network(ECB(4), ECB(4))

    def rows() -> list[torch.Tensor]:
        y, parameters = net(images()), list(net.parameters())
        directions = torch.stack([torch.ones_like(y), y.detach()])
        return list(torch.autograd.grad(y, parameters, directions, is_grads_batched=True))

    alone = rows()
    set_fold(net, True)
    same(rows(), alone)


def test_a_step_launches_a_fraction():
    net = create_model("repsr_m16c64_x2")
    x = torch.rand(1, 3, 8, 8)
    net(x)
    freeze_bn_stats(net)
    for module in net.modules():
        if isinstance(module, ReparamBlock):
            module.fold = True
    no_more_at_once(net)

    def count() -> int:
        net.zero_grad()
        return sum(launches(lambda: net(x).sum().backward()).values())

    alone = count()
    set_fold(net, True)
    count()
    at_once = count()
    assert at_once < alone / 3, (at_once, alone)


def test_a_block_that_does_not_run_gets_no_gradient():
    class Skips(nn.Sequential):
        def forward(self, x):
            return self[2](self[0](x))

    net = Skips(*network(RepSRBlock(4), RepSRBlock(4), RepSRBlock(4)))
    set_fold(net, True)
    net(images()).sum().backward()
    assert shared(net) == [True, False, True]
    assert all(p.grad is None for p in net[1].parameters())
    assert all(p.grad is not None for index in (0, 2) for p in net[index].parameters())


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_checkpoints(reentrant: bool):
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            for module in self:
                x = checkpoint(module, x, use_reentrant=reentrant)
            return x

    plain = network(RepSRBlock(4), RepSRBlock(4), RepSRBlock(4))
    net = Checkpointed(*plain)
    x = images().requires_grad_()
    alone = gradients(plain, x)
    set_fold(net, True)
    same(gradients(net, x), alone)
    same(gradients(net, x), alone)


def test_a_part_of_the_network_with_checkpoints_of_its_own():
    net = network(RepSRBlock(4), RepSRBlock(4))
    set_fold(net, True)
    net(images())
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)
    twin = copy.deepcopy(net[0])
    twin.fold = False
    for reentrant in (False, True):
        net.zero_grad()
        twin.zero_grad()
        checkpoint(net[0], images().requires_grad_(), use_reentrant=reentrant).square().sum().backward()
        twin(images()).square().sum().backward()
        same([p.grad for p in net[0].parameters()], [p.grad for p in twin.parameters()])


class Checkpointed(nn.Module):
    def __init__(self, net: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.net, self.reentrant = net, reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.net, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_network_that_is_one_checkpoint(reentrant: bool):
    """It is run again as a whole, hook and all, and saves what it saved."""
    net = network(RepSRBlock(4), nn.PReLU(), RepSRBlock(4), ECB(4))
    alone = gradients(net, images().requires_grad_())
    set_fold(net, True)
    same(gradients(Checkpointed(net, reentrant), images().requires_grad_()), alone)


def test_a_forward_without_gradients_between_a_forward_and_its_checkpoints():
    net = network(RepSRBlock(4), RepSRBlock(4))
    set_fold(net, True)
    net.forward = lambda x: net[1](checkpoint(net[0], x, use_reentrant=False))
    alone = gradients(copy.deepcopy(nn.Sequential(*net)), images())
    net.zero_grad()
    y = net(images().requires_grad_())
    with torch.no_grad():
        net(images())
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    same([p.grad for p in net.parameters()], alone[1:])


def test_weights_that_change_within_a_forward():
    class Changes(nn.Sequential):
        def forward(self, x):
            x = self[0](x)
            with torch.no_grad():
                for p in self[1].parameters():
                    p.mul_(2)
            return self[1](x)

    net = Changes(*network(RepSRBlock(4), RepSRBlock(4)))
    set_fold(net, True)
    twin = copy.deepcopy(net)
    set_fold(twin, False)
    assert_close(net(images()), twin(images()))
    assert shared(net) == [True, False]


def test_weights_that_change_between_forwards_whatever_counts_them():
    net = network(RepSRBlock(4), RepSRBlock(4))
    set_fold(net, True)
    net(images())
    for p in net.parameters():
        p.data.mul_(0.5)
    twin = copy.deepcopy(net)
    set_fold(twin, False)
    assert_close(net[1](net[0](images())), twin(images()))
    assert_close(net(images()), twin(images()))


def test_a_shared_block_and_shared_weights():
    block = RepSRBlock(4)
    other = RepSRBlock(4)
    net = network(block, other, block)
    other.branches[1].expand.weight = block.branches[1].expand.weight
    alone = gradients(net, images())
    set_fold(net, True)
    same(gradients(net, images()), alone)


def test_other_numbers_for_one_call():
    net = network(ECB(4), ECB(4))
    weights = {name: (tensor * 1.5).requires_grad_() for name, tensor in net.named_parameters()}
    alone = functional_call(net, weights, (images(),))
    before = torch.autograd.grad(alone.square().sum(), list(weights.values()))
    set_fold(net, True)
    y = functional_call(net, weights, (images(),))
    assert_close(y, alone)
    same(list(torch.autograd.grad(y.square().sum(), list(weights.values()))), list(before))


def test_under_functional_transforms():
    net = network(RepSRBlock(4), RepSRBlock(4))
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def loss(weights):
        return functional_call(net, weights, (images(),)).square().sum()

    before = torch.func.grad(loss)(weights)
    set_fold(net, True)
    after = torch.func.grad(loss)(weights)
    same([after[name] for name in weights], [before[name] for name in weights])


def replicas(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Two, as DataParallel makes them in every forward, except that nothing is sent to another device."""

    def send(tensors: list[torch.Tensor], devices: list[int], detach: bool = False) -> list[list[torch.Tensor]]:
        return [[tensor.detach().clone() if detach else tensor.clone() for tensor in tensors] for _ in devices]

    monkeypatch.setitem(replicate.__globals__, "_broadcast_coalesced_reshape", send)
    return replicate(net, [0, 1])


@pytest.mark.parametrize("block", [RepSRBlock, ECB, DiverseBranchBlock])
@pytest.mark.parametrize("beside", ["another", "the network"])
def test_replicas_that_run_at_a_time(block: type[ConvBlock], beside: str, monkeypatch: pytest.MonkeyPatch):
    """Each with copies of the parameters that lead back to these, and with all other attributes in common."""
    net = network(block(4), nn.PReLU(), block(4))
    set_fold(net, True)
    whole = gradients(net, images())
    meet = Barrier(2)

    def wait(*_: object) -> None:
        meet.wait(60)

    for module in (net, net[1]):  # when both have begun, and before the second block of either
        module.register_forward_pre_hook(wait)
    both = replicas(net, monkeypatch)
    ran = both if beside == "another" else [net, both[1]]
    with ThreadPoolExecutor(2) as threads:
        parts = list(threads.map(lambda one, x: one(x), ran, images().split(1)))
    copies = [tensor for module in both[1].modules() for tensor in module._former_parameters.values()]
    torch.autograd.grad(parts[1].sum(), copies, retain_graph=True)  # an error where they are not what it ran with
    net.zero_grad()
    y = torch.cat(parts)
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    same([y.detach(), *(p.grad for p in net.parameters())], whole)
    assert [net[index]._share.among for index in (0, 2)] == [2, 2]  # which "auto" asks for: no replica changed it


def test_second_derivatives():
    net = network(RepSRBlock(4), RepSRBlock(4))

    def second() -> list[torch.Tensor]:
        first = torch.autograd.grad(net(images()).square().sum(), list(net.parameters()), create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), list(net.parameters())))

    alone = second()
    set_fold(net, True)
    same(second(), alone)


def test_blocks_that_look_alike_and_are_not():
    first, second = (
        network(RepSRBlock(4, bn=lambda channels, eps=eps: FrozenStatsBN(channels, eps=eps)))[0] for eps in (1e-5, 0.1)
    )
    net = nn.Sequential(first, second)
    alone = gradients(net, images())
    set_fold(net, True)
    same(gradients(net, images()), alone)


def test_blocks_that_cease_to_look_alike():
    net = network(RepSRBlock(4), RepSRBlock(4))
    set_fold(net, True)
    net(images())
    for module in net[1].modules():
        if isinstance(module, FrozenStatsBN):
            module.eps = 0.5
    twin = copy.deepcopy(net)
    set_fold(twin, False)
    assert_close(net(images()), twin(images()))


def test_a_kernel_that_takes_no_batches():
    class Odd(ConvBranch):
        def kernel_with(self, scale_shift_of):
            kernel = super().kernel_with(scale_shift_of)
            return kernel if kernel.weight.sum().item() > -1e9 else None

        forward = ConvBranch.forward

        def kernel(self):
            return super().kernel()

    net = network(*(ReparamBlock(ConvSpec(4), [Odd, IdentityBranch]) for _ in range(2)))
    alone = gradients(net, images())
    set_fold(net, True)
    same(gradients(net, images()), alone)
    assert shared(net) == [False, False]


def test_half_precision_parameters_and_autocast():
    net = network(RepSRBlock(4), RepSRBlock(4)).float()
    with torch.autocast("cpu", torch.bfloat16):
        alone = net(images(torch.float32))
        set_fold(net, True)
        y = net(images(torch.float32))
    assert y.dtype == torch.bfloat16 and shared(net) == [True, True]
    assert torch.equal(y, alone) or (y - alone).abs().max() <= 2**-7 * alone.abs().max()


def test_dtypes_that_differ_are_not_mixed():
    net = network(RepSRBlock(4), RepSRBlock(4))
    set_fold(net, True)
    net(images())
    net[1].float()
    assert net[1](images(torch.float32)).dtype == torch.float32
    with pytest.raises(RuntimeError, match="dtype|type"):
        net(images())


def test_copies_pickles_and_the_fused():
    net = network(RepSRBlock(4), RepSRBlock(4))
    set_fold(net, True)
    y = net(images())
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_close(twin(images()), y)
        assert shared(twin) == [True, True]
    fused = fuse(net)
    assert_close(fused(images()), y)
    assert not fused._forward_pre_hooks and not fused._forward_hooks and "_at_once" not in vars(fused)
    fuse(net, inplace=True)
    assert not net._forward_pre_hooks and not net._forward_hooks and not net._forward_hooks_always_called


def test_compiled_it_is_one_graph():
    net = network(RepSRBlock(4), RepSRBlock(4))
    alone = gradients(net, images())
    set_fold(net, True)
    net(images())  # which leaves kernels behind that are not of the graph
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    net.zero_grad()
    y = compiled(images())
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    same([y.detach(), *(p.grad for p in net.parameters())], alone)


def test_without_folding_there_is_no_hook():
    net = network(RepSRBlock(4), RepSRBlock(4))
    set_fold(net, True)
    set_fold(net, False)
    assert not net._forward_pre_hooks and not net._forward_hooks
    net(images())
    assert shared(net) == [False, False]


def test_a_network_without_blocks_to_share_gets_no_hook():
    for net in (nn.Sequential(nn.Conv2d(4, 4, 3)), network(RepSRBlock(4)), RepSRBlock(4)):
        set_fold(net, True)
        assert not net._forward_pre_hooks and "_at_once" not in vars(net)


def test_an_error_in_a_forward_leaves_nothing_behind():
    net = network(RepSRBlock(4), RepSRBlock(4))
    set_fold(net, True)
    with pytest.raises(RuntimeError):
        net(torch.rand(2, 3, 5, 5, dtype=torch.float64))
    assert all(module._share._thread is None for module in net.modules() if isinstance(module, ReparamBlock))
