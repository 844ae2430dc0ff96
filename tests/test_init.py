"""The start of blocks: drawn anew, and code of others that initialises all that it finds."""

import copy
import pickle
from functools import partial

import pytest
import torch
from contract import check_reset
from helpers import PAPERS, randomise
from strategies import KINDS
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization

from reparam import (
    ECB,
    Branch,
    Conv3XC,
    ConvBlock,
    ConvBNBranch,
    ConvBranch,
    ConvSpec,
    Kernel,
    MBRConvBlock,
    OptionError,
    OREPABlock,
    ReparamBlock,
    RepMBConvBlock,
    RepSRBlock,
    RepVGGBlock,
    SequentialBranch,
    StatisticsError,
    create_model,
    freeze_bn_stats,
    reset_parameters,
    unfreeze_bn_stats,
)
from reparam.models import SRNet

SPEC = ConvSpec(4)
BLOCKS = {kind: make for kind, make in KINDS.items() if isinstance(make(SPEC), ConvBlock)}
FAMILIES = ["plain", "repsr", "ecbsr", "repvggsr", "qarepvggsr", "collapsiblesr", "sesr", "edsr"]


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}  # those that no state dict holds, too


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


class TestReset:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_network_draws_what_its_constructor_draws(self, family):
        name = f"{family}_{'m3' if family == 'sesr' else 'm1c4'}_x2"
        torch.manual_seed(3)
        start = state_of(create_model(name))
        with torch.device("meta"):
            on_meta = create_model(name)
        for net in (randomise(create_model(name), 0), on_meta.to_empty(device="cpu")):
            torch.manual_seed(3)
            net.reset_parameters()
            assert_same(state_of(net), start)

    def test_layers_around_the_blocks_stay(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), RepSRBlock(4), nn.Sequential(ECB(4), nn.PReLU()), ConvBranch(SPEC))
        randomise(net, 0)
        before = state_of(net)
        assert reset_parameters(net) == ["1", "2.0", "3"]
        same = {name for name, tensor in state_of(net).items() if torch.equal(tensor, before[name])}
        assert {"0.weight", "0.bias", "2.1.weight"} == {name for name in same if not name.endswith(("mask", "like"))}

    def test_a_model_that_is_a_block_and_one_without(self):
        assert reset_parameters(RepSRBlock(4)) == [""]
        assert reset_parameters(nn.Sequential(nn.Conv2d(3, 4, 3))) == []

    def test_an_optimizer_goes_on_and_statistics_are_forgotten(self):
        block = RepSRBlock(4)
        optimizer = torch.optim.SGD(block.parameters(), 1.0)
        block(torch.rand(2, 4, 9, 9)).sum().backward()
        optimizer.step()
        block.reset_parameters()
        assert int(block.branches[1].norm.num_batches_tracked) == 0
        before = state_of(block)
        block(torch.rand(2, 4, 9, 9)).sum().backward()
        optimizer.step()
        assert not torch.equal(block.branches[1].expand.weight, before["branches.1.expand.weight"])

    def test_what_callables_make_starts_as_they_made_it(self):
        def gentle(channels):
            norm = nn.BatchNorm2d(channels)
            nn.init.constant_(norm.weight, 0.25)
            return norm

        for branch in (
            ConvBNBranch(SPEC, bn=gentle),
            RepVGGBlock(4, bn=gentle),
            ReparamBlock(SPEC, (partial(ConvBNBranch, bn=gentle) for _ in range(2)), bn=gentle),
        ):
            randomise(branch, 0).reset_parameters()
            found = [m for m in branch.modules() if isinstance(m, nn.BatchNorm2d)]
            assert found and all(bool(norm.weight.eq(0.25).all()) for norm in found)

    @pytest.mark.parametrize("device", ["meta", None])
    def test_built_on_meta(self, device):
        with torch.device("cpu" if device else "meta"):
            block = OREPABlock(4, device=device)
        block.reset_parameters()  # nothing is there yet, and nothing happens
        check_reset(block.to_empty(device="cpu"), lambda: OREPABlock(4), 5)

    def test_a_class_of_ones_own(self):
        class Own(ReparamBlock):
            def __init__(self, channels, start=3.0, *, device=None):
                super().__init__(ConvSpec(channels), [ConvBranch])
                self.scale = nn.Parameter(torch.full((1,), start, device=device))
                nn.init.zeros_(self.branches[0].conv.weight)

        block = randomise(Own(4, 5.0), 0)
        check_reset(block, lambda: Own(4, 5.0), 1)
        assert block.scale.item() == 5.0 and not block.branches[0].conv.weight.any()

    def test_a_reset_of_ones_own_is_used(self):
        class Own(SequentialBranch):
            def reset_parameters(self):
                nn.init.constant_(self.layers[0].weight, 7.0)

        net = nn.Sequential(Own(SPEC, nn.Conv2d(4, 4, 3)))
        assert reset_parameters(net) == ["0"]
        assert bool(net[0].layers[0].weight.eq(7).all())

    def test_a_norm_of_another_class_has_the_same_tensors(self):
        block = nn.SyncBatchNorm.convert_sync_batchnorm(randomise(RepSRBlock(4), 0))
        check_reset(block, lambda: RepSRBlock(4), 2)
        assert isinstance(block.branches[1].norm, nn.SyncBatchNorm)


class TestRefused:
    """By name, and nothing is changed."""

    def refused(self, net: nn.Module, why: str, error: type[Exception] = OptionError) -> None:
        before = state_of(net)
        with pytest.raises(error, match=why):
            reset_parameters(net)
        assert_same(state_of(net), before)

    def net(self) -> nn.Module:
        return randomise(nn.Sequential(ECB(4), RepSRBlock(4)), 0)

    def test_frozen_statistics(self):
        net = self.net()
        freeze_bn_stats(net)
        self.refused(
            net, "block '1': cannot reset RepSRBlock: .* batch norm 'branches.1.norm' are froz", StatisticsError
        )
        unfreeze_bn_stats(net)
        assert reset_parameters(net) == ["0", "1"]

    @pytest.mark.parametrize(
        ("change", "names"),
        [
            (
                partial(prune.l1_unstructured, name="weight", amount=0.5),
                "expand.weight_mask', 'branches.1.expand.weight_o",
            ),
            (parametrizations.weight_norm, "parametrizations.weight.original0"),
            (lambda conv: setattr(conv, "bias", None), "expand.bias"),
            (lambda conv: setattr(conv, "weight", nn.Parameter(conv.weight[:1])), "expand.weight"),
        ],
    )
    def test_changed_layers(self, change, names):
        net = self.net()
        change(net[1].branches[1].expand)
        self.refused(net, f"block '1': cannot reset RepSRBlock: it was changed after it was built, at .*{names}")

    def test_layers_handed_in(self):
        def stack(conv):
            return nn.Sequential(ECB(4), SequentialBranch(SPEC, conv))

        conv = nn.Conv2d(4, 4, 3)
        prune.l1_unstructured(conv, "weight", 0.5)
        # built first, as a branch refuses such a layer
        net = stack(nn.Conv2d(4, 4, 3))
        net[1].layers[0] = conv
        self.refused(net, "block '1': cannot reset ModuleList: '0', a Conv2d, computes its parameters")
        net[1].layers[0] = parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
        self.refused(net, "'0', a ParametrizedConv2d, computes its parameters")
        from reparam import ChannelScale

        net = nn.Sequential(ECB(4), SequentialBranch(SPEC, nn.Conv2d(4, 4, 3), ChannelScale(4, 2)))
        self.refused(net, "'1', a ChannelScale, has parameters and no reset_parameters; give it a reset_parameters")

    def test_a_branch_of_ones_own_that_was_handed_a_module(self):
        class Own(Branch):
            def __init__(self, spec, conv):
                super().__init__(spec)
                self.conv, self.scale = conv, nn.Parameter(torch.ones(1))

            def kernel(self):
                return Kernel(self.scale * self.conv.weight, self.conv.bias)

        net = nn.Sequential(ECB(4), Own(SPEC, nn.Conv2d(4, 4, 3)))
        self.refused(net, "block '1': cannot reset Own: the start of 'scale' is unknown; give it a reset_parameters")

    @pytest.mark.parametrize("through", [lambda net: net, copy.deepcopy])
    def test_a_factory_that_hands_out_what_exists(self, through):
        there = ConvBranch(SPEC)
        net = nn.Sequential(ECB(4), ReparamBlock(SPEC, [lambda spec: there, ConvBranch]))
        why = "block '1': cannot reset ReparamBlock: a callable that makes its branches uses .* ChainBranch|Conv"
        self.refused(through(net), why)

    def test_a_pickle_of_what_was_built_of_a_lambda(self):
        net = nn.Sequential(ECB(4), ReparamBlock(SPEC, [lambda spec: ConvBranch(spec)]))
        assert reset_parameters(net) == ["0", "1"]
        net = pickle.loads(pickle.dumps(net))
        self.refused(net, "block '1': cannot reset ReparamBlock: it came out of a pickle")

    def test_a_network_with_a_layer_of_unknown_start(self):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(1))

            def forward(self, x):
                return x * self.scale

        net = SRNet(scale=1, num_blocks=0, channels=3, colors=3, block=lambda inside, outside: Odd())
        with pytest.raises(OptionError, match="cannot reset Sequential: '0', a Odd, has parameters and no reset_param"):
            net.reset_parameters()


def by_class(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def scaled_down(module: nn.Module, scale: float = 0.1) -> None:
    """As the codes of ESRGAN and its kin start."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight)
        module.weight.data *= scale
        if module.bias is not None:
            module.bias.data.fill_(0)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        nn.init.constant_(module.weight, 1)
        module.bias.data.fill_(0)


def by_name(module: nn.Module, *, guarded: bool = True) -> None:
    """As the codes of DCGAN start; guarded as those of CycleGAN."""
    name = type(module).__name__
    if name.find("Conv") != -1 and (not guarded or hasattr(module, "weight")):
        nn.init.normal_(module.weight.data, 0.0, 0.02)
    elif name.find("BatchNorm") != -1:
        nn.init.normal_(module.weight.data, 1.0, 0.02)
        nn.init.constant_(module.bias.data, 0)


def by_shape(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def by_attribute(module: nn.Module) -> None:
    if hasattr(module, "weight") and isinstance(module.weight, nn.Parameter) and module.weight.dim() > 1:
        nn.init.kaiming_normal_(module.weight)
    if hasattr(module, "bias") and module.bias is not None:
        nn.init.constant_(module.bias, 0)


class TestWalks:
    """What others initialise a network with: it runs, and the last line gives the blocks their start."""

    @pytest.mark.parametrize("init", [by_class, scaled_down, by_name, by_shape, by_attribute])
    @pytest.mark.parametrize("kind", sorted(BLOCKS))
    def test_the_last_line_restores_the_start(self, kind, init):
        def build():
            return nn.Sequential(nn.Conv2d(3, 4, 3), KINDS[kind](SPEC), nn.PReLU(4))

        net = build()
        before = state_of(net)
        net.apply(init)
        changed = [name for name, tensor in state_of(net).items() if not torch.equal(tensor, before[name])]
        assert any(name.startswith("1.") for name in changed), "the walk did not reach the block"
        outside = {name: tensor for name, tensor in state_of(net).items() if not name.startswith("1.")}
        torch.manual_seed(9)
        expected = state_of(KINDS[kind](SPEC))
        torch.manual_seed(9)
        assert reset_parameters(net) == ["1"]
        assert_same({name[2:]: tensor for name, tensor in state_of(net).items() if name.startswith("1.")}, expected)
        assert_same({name: tensor for name, tensor in state_of(net).items() if not name.startswith("1.")}, outside)

    @pytest.mark.parametrize("block", [RepVGGBlock, Conv3XC, MBRConvBlock, RepMBConvBlock])
    def test_a_walk_by_names_without_a_guard_is_told(self, block):
        with pytest.raises(
            AttributeError, match=r"(Conv.*Branch|.*Conv.*) has no weight: .*hasattr\(module, 'weight'\)"
        ):
            block(4).apply(partial(by_name, guarded=False))

    def test_the_start_of_a_network_matters(self):
        """Near nearest-neighbor enlarging at first; a walk makes noise of it."""
        torch.manual_seed(0)
        net, x = create_model("repsr_m4c16_x2_y").eval(), torch.rand(2, 1, 24, 24)
        with torch.no_grad():
            start = net(x).std()
            far = net.apply(scaled_down)(x).std(), net.apply(by_class)(x).std()
            assert net.body[0].branches[0].norm.weight.mean() == 1
            assert reset_parameters(net) == [f"body.{index}" for index in range(0, 11, 2)]
            assert torch.allclose(net.body[0].branches[0].norm.weight, torch.tensor(0.1))
            again = net(x).std()
        assert abs(again - start) < 0.1 * start < abs(far[1] - start)


class TestNoWeight:
    """A block has no weight and no bias: it says so, and says what there is."""

    @pytest.mark.parametrize("name", ["weight", "bias"])
    @pytest.mark.parametrize("kind", sorted(KINDS))
    def test_reading(self, kind, name):
        branch = KINDS[kind](SPEC)
        assert not hasattr(branch, name) and getattr(branch, name, None) is None
        said = f"{type(branch).__name__} has no {name}: .* to_conv\\(\\)\\.{name} is that of the convolution"
        with pytest.raises(AttributeError, match=said):
            getattr(branch, name)
        with pytest.raises(AttributeError, match="object has no attribute 'wieght'"):
            branch.wieght  # noqa: B018  # reading is what fails

    @pytest.mark.parametrize("value", [None, nn.Parameter(torch.zeros(4)), torch.zeros(4)])
    @pytest.mark.parametrize("name", ["weight", "bias"])
    def test_setting(self, name, value):
        block = RepSRBlock(4)
        keys = block.state_dict().keys()
        said = f"cannot set {name} to {type(value).__name__}: RepSRBlock has no {name}: it is computed"
        with pytest.raises(AttributeError, match=said):
            setattr(block, name, value)
        assert block.state_dict().keys() == keys and name not in vars(block)

    def test_writing(self):
        block = RepSRBlock(4)
        for write in (
            lambda: nn.init.kaiming_normal_(block.weight),
            lambda: block.weight.data.normal_(),
            lambda: nn.init.zeros_(block.bias),
        ):
            with pytest.raises(AttributeError, match="RepSRBlock has no (weight|bias): .*reset_parameters"):
                write()

    @pytest.mark.parametrize(
        ("how", "error"),
        [
            (partial(prune.l1_unstructured, name="weight", amount=0.5), AttributeError),
            (weight_norm, AttributeError),
            (spectral_norm, KeyError),
            (parametrizations.weight_norm, ValueError),
            (parametrizations.spectral_norm, ValueError),
            (partial(register_parametrization, tensor_name="weight", parametrization=nn.Identity()), ValueError),
        ],
    )
    @pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*spectral_norm.*:FutureWarning")
    def test_computed_weights_are_refused(self, how, error):
        block, x = RepSRBlock(4).eval(), torch.rand(1, 4, 9, 9)
        y, keys = block(x), block.state_dict().keys()
        with pytest.raises(error, match="weight"):
            how(block)
        assert torch.equal(block(x), y) and block.state_dict().keys() == keys

    def test_groups_of_an_optimizer_hold_every_parameter_once(self):
        """As YOLO sorts them: biases, weights of norms, other weights."""
        net = nn.Sequential(nn.Conv2d(3, 4, 3), RepSRBlock(4), RepVGGBlock(4), Conv3XC(4))
        groups = [], [], []
        for module in net.modules():
            if hasattr(module, "bias") and isinstance(module.bias, nn.Parameter):
                groups[0].append(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                groups[1].append(module.weight)
            elif hasattr(module, "weight") and isinstance(module.weight, nn.Parameter):
                groups[2].append(module.weight)
        found = [id(p) for group in groups for p in group]
        assert sorted(found) == sorted(map(id, net.parameters()))

    def test_a_branch_of_ones_own_may_have_them(self):
        class Own(Branch):
            def __init__(self, spec):
                super().__init__(spec)
                self.weight, self.bias = nn.Parameter(torch.ones(4, 4, 3, 3)), nn.Parameter(torch.zeros(4))

            def kernel(self):
                return Kernel(self.weight, self.bias)

        branch = Own(SPEC)
        assert torch.equal(branch.to_conv().weight, branch.weight) and "weight" in branch.state_dict()

    def test_copies_and_pickles(self):
        for kind in ("RepSRBlock", "ConvBNBranch"):
            block = KINDS[kind](SPEC)
            for copied in (copy.copy(block), copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
                assert not hasattr(copied, "weight") and copied.state_dict().keys() == block.state_dict().keys()


def test_all_blocks_of_papers_are_walked():
    assert {type(make(SPEC)).__name__ for make in BLOCKS.values()} == {*PAPERS, "VGGBlock"}
