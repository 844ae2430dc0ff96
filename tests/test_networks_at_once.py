"""Which networks compute the kernels of their blocks at once by themselves, and whom that could surprise."""

import copy
import io
import pickle
from itertools import chain

import pytest
import torch
from helpers import assert_close, gradients, randomise, same
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from reparam import (
    ECB,
    ConvBlock,
    OptionError,
    ReparamBlock,
    RepSRBlock,
    create_model,
    freeze_bn_stats,
    fuse,
    set_fold,
    swap_convs,
)
from reparam.blocks._at_once import _Group
from reparam.fusing._foreign.leaves import is_leaf
from reparam.fusing._foreign.trace import graphs
from reparam.modules._guard import is_read, why_hooked
from reparam.modules._start import reset_layers
from reparam.sr import EDSR, SESR, RepSR

NETWORKS = {
    **{
        name: lambda name=name: create_model(f"{name}_m1c4_x2") for name in ("repsr", "ecbsr", "repvggsr", "qarepvggsr")
    },
    "collapsiblesr": lambda: create_model("collapsiblesr_m1c4_x2", hidden_channels=8),
    "sesr": lambda: SESR(num_blocks=2, channels=4, hidden_channels=8),
    "edsr": lambda: EDSR(num_blocks=1, channels=4, block=ECB),
    "swapped": lambda: swapped(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.PReLU(), nn.Conv2d(4, 4, 3, padding=1))),
}


def swapped(net: nn.Module, block: type[ConvBlock] = RepSRBlock) -> nn.Module:
    swap_convs(net, block)
    return net


def ready(net: nn.Module) -> nn.Module:
    """Folding, frozen, in float64, with other numbers in every block."""
    for block in blocks(net):
        block.fold = True
    randomise(net, 0)
    freeze_bn_stats(net)
    return net.double()


def blocks(net: nn.Module) -> list[ReparamBlock]:
    return [module for module in net.modules() if isinstance(module, ReparamBlock)]


def image(colors: int = 3) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(2, colors, 6, 7, dtype=torch.float64)


def hooks(net: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in net.modules())


@pytest.fixture
def computed(monkeypatch) -> list[list[ReparamBlock]]:
    """The blocks of each pass."""
    passes: list[list[ReparamBlock]] = []
    compute = _Group.compute

    def counted(group: _Group) -> None:
        passes.append(group.blocks)
        compute(group)

    monkeypatch.setattr(_Group, "compute", counted)
    return passes


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_the_kernels_of_its_blocks_at_once(name: str):
    net = ready(NETWORKS[name]())
    x = image(getattr(net, "colors", 3))
    by_branches = copy.deepcopy(net)
    set_fold(by_branches, False)
    assert hooks(by_branches) == 0
    same(gradients(net, x), gradients(by_branches, x))
    assert all(block._share._taken for block in blocks(net))
    fused = fuse(net)
    assert hooks(fused) == 0 and "_at_once" not in vars(fused)
    assert_close(fused(x), net(x))


def test_networks_without_several_blocks_have_no_hook():
    for net in (create_model("plain_m1c4_x2"), EDSR(num_blocks=1, channels=4), RepSR(num_blocks=1, plain_ends=True)):
        assert hooks(net) == 0 and "_at_once" not in vars(net)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1))
    assert hooks(swapped(net)) == 0


def test_whatever_is_made_of_a_network_computes_at_once_too():
    net = ready(create_model("repsr_m1c4_x2"))
    x, file = image(), io.BytesIO()
    expected = gradients(net, x)
    torch.save(net, file)
    file.seek(0)
    copies = {
        "copy": copy.deepcopy(net),
        "pickle": pickle.loads(pickle.dumps(net)),
        "file": torch.load(file, weights_only=False),
        "average": AveragedModel(net).module,
    }
    for name, made in copies.items():
        assert vars(made)["_at_once"] is not vars(net)["_at_once"], name
        same(gradients(made, x), expected)
        assert all(block._share._taken for block in blocks(made)), name
    assert not [key for key in net.state_dict() if "at_once" in key]


class Larger(nn.Module):
    """A network of ours as a part, called from outside too, as a training loop may do with its generator."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(RepSRBlock(3, 4), nn.PReLU(), RepSRBlock(4, 3))
        self.generator = create_model("repsr_m1c4_x2")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.generator(self.head(x))


def test_a_network_inside_of_another_computes_its_own(computed: list):
    net = ready(Larger())
    by_branches = copy.deepcopy(net)
    set_fold(by_branches, False)
    set_fold(by_branches.generator, False)
    set_fold(net, True)
    assert hooks(net) == 4
    for _ in range(2):  # each block is computed once in a step
        computed.clear()
        same(gradients(net, image()), gradients(by_branches, image()))
        assert {*chain(*computed)} == {*blocks(net)} and len([*chain(*computed)]) == len(blocks(net))
    computed.clear()
    same(gradients(net.generator, image()), gradients(by_branches.generator, image()))
    assert {*chain(*computed)} == {*blocks(net.generator)}
    fuse(net, inplace=True)
    assert hooks(net) == 0


def test_a_wrapper_of_a_network_gets_no_hook(computed: list):
    net = nn.Sequential(ready(create_model("repsr_m1c4_x2")))
    set_fold(net, True)
    assert not net._forward_pre_hooks and hooks(net) == 2
    net(image())
    assert len([*chain(*computed)]) == 3


def test_a_network_is_no_wall_to_what_fuse_understands():
    """It is read together with what is around it, and alone, as if there were no hook."""
    inner = nn.Sequential(ECB(4), nn.PReLU(4), ECB(4))
    net = nn.Sequential(inner, nn.PReLU(4)).eval()
    without = [type(graph) for _, graph in graphs(net, is_leaf)]
    set_fold(inner, True)
    assert hooks(net) == 2 and [type(graph) for _, graph in graphs(net, is_leaf)] == without
    assert why_hooked(inner) is None and is_read(inner)
    inner.register_forward_hook(lambda *_: None)
    assert len([*graphs(net, is_leaf)]) == len(without) + 1 and not is_read(inner)


def test_a_network_with_one_of_ours_inside_is_reset():
    part = swapped(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)), ECB)
    reset_layers(nn.Sequential(part, nn.Conv2d(3, 3, 3)))
    part.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(OptionError, match="cannot reset Sequential: '0', a Sequential, computes its parameters"):
        reset_layers(nn.Sequential(part))


def test_other_numbers_for_a_part_within_a_forward():
    class Adapts(nn.Sequential):
        def forward(self, x):
            other = {name: p * 1.5 for name, p in self[1].named_parameters()}
            return functional_call(self[1], other, (self[0](x),))

    net = Adapts(*(ready(ECB(3)) for _ in range(2)))
    alone = gradients(net, image())
    set_fold(net, True)
    same(gradients(net, image()), alone)


def test_numbers_that_cannot_be_stacked_for_once():
    net = ready(create_model("repsr_m1c4_x2"))
    net(image())
    net.body[2].float()
    with pytest.raises(RuntimeError, match="dtype|type"):
        net(image())
    net.double()(image())
    assert all(block._share._taken for block in blocks(net))


def test_exported():
    net = ready(create_model("ecbsr_m1c4_x2"))
    y = net(image())
    assert_close(torch.export.export(net, (image(),)).module()(image()), y)
