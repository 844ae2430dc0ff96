"""What runs is what a kernel is read from; where it is not, branches are run themselves, or it is refused by name."""

import copy
import re

import pytest
import torch
from helpers import assert_close, image, randomise
from strategies import KINDS, WITH_SUM_BN
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from reparam import (
    ECB,
    AvgPoolBranch,
    Branch,
    ConvBNBranch,
    ConvBranch,
    ConvSpec,
    ExpandSqueezeBranch,
    FuseError,
    IdentityBranch,
    Kernel,
    NotLinearError,
    ReparamBlock,
    RepSRBlock,
    RepVGGBlock,
    SequentialBranch,
    SpecError,
    freeze_bn_stats,
    fuse,
    inspect_model,
    kernel_of,
    set_fold,
)
from reparam.bn._norm import is_norm
from reparam.branches._stages import ChannelScale, FixedFilter

SPEC = ConvSpec(3, 3, 3)


def doubled(layer: nn.Module) -> list[torch.Tensor]:
    """The parameters that, times two, double what a layer makes."""
    names = ("scale", "bias") if isinstance(layer, (FixedFilter, ChannelScale)) else ("weight", "bias")
    return [p for name in names if (p := getattr(layer, name, None)) is not None]


def layers_of(module: nn.Module) -> list[str]:
    """Names of the layers that the algebra reads."""
    kinds = (_ConvNd, FixedFilter, ChannelScale)
    return [name for name, m in module.named_modules() if isinstance(m, kinds) or is_norm(m)]


def why_refused(branch: Branch, name: str) -> str | None:
    """Why a branch cannot run with this layer altered: what is taken off, or left out, would have to be read."""
    names = ["", *(name[:at] for at, letter in enumerate(name) if letter == ".")]
    around = [m for m in map(branch.get_submodule, names) if isinstance(m, Branch)]
    if not all(m.spec.bias for m in around):
        return f"has no kernel now: .*{name.rpartition('.')[2]}"
    layer, chain = branch.get_submodule(name), around[-1]
    if not (is_norm(layer) and layer.training and hasattr(chain, "stages")):
        return None
    index = [id(stage) for stage in chain.stages()].index(id(layer))
    return "its statistics leave out the ring of the padding" if any(map(any, chain._rings[index])) else None


def by_object(layer: nn.Module) -> None:
    own = layer.forward
    layer.forward = lambda *args: 2 * own(*args)


def by_hook(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda module, args, y: 2 * y)


def by_class(layer: nn.Module) -> None:
    kind = type(layer)

    def forward(self, *args):
        return 2 * kind.forward(self, *args)

    layer.__class__ = type(f"Own{kind.__name__}", (kind,), {"forward": forward})


ALTERATIONS = {"object": by_object, "hook": by_hook, "class": by_class}


def built(kind: str, mode: str) -> tuple[Branch, torch.Tensor]:
    branch = randomise(KINDS[kind](SPEC).double(), 3)
    x = image(SPEC, 4, (6, 7))
    return branch.train(mode == "batch"), x


@pytest.mark.parametrize("mode", ["eval", "batch"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_altered_layer_runs_or_is_refused(kind, mode):
    """A layer whose output somebody doubles is one with doubled parameters: in the outputs and in the gradients."""
    for index, name in enumerate(layers_of(built(kind, mode)[0])):
        (branch, x), (twin, _) = built(kind, mode), built(kind, mode)
        layer = branch.get_submodule(name)
        list(ALTERATIONS.values())[index % 3](layer)
        with torch.no_grad():
            for parameter in doubled(twin.get_submodule(name)):
                parameter.mul_(2)
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        if why := why_refused(branch, name):
            with pytest.raises(NotLinearError, match=why):
                branch(leaf)
        else:
            y = branch(leaf)
            expected = twin(other)
            assert_close(y, expected, 1e-11, name)
            weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
            (y * weights).sum().backward(), (expected * weights).sum().backward()
            assert_close(leaf.grad, other.grad, 1e-10, name)
        branch.eval()
        with pytest.raises(NotLinearError, match=re.escape(f"'{name}': ")):
            branch.kernel()
        with pytest.raises(FuseError, match=re.escape(f"'{name}': ")):
            branch.to_conv()
        assert name in branch.problems()
        if isinstance(branch, ReparamBlock):
            branch.fold = True
            with pytest.raises(SpecError, match=re.escape(f"fold=True is not possible for {name!r}: ")):
                branch(x)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(WITH_SUM_BN)))
def test_a_bias_that_would_have_to_be_read_is_refused(kind):
    branch, x = KINDS[kind](SPEC.replace(bias=False)), torch.rand(2, 3, 5, 5)
    for name in layers_of(branch)[:1]:
        by_object(branch.get_submodule(name))
        with pytest.raises(NotLinearError, match="the forward of this .* was replaced on the object"):
            branch(x)


def test_hooks_that_look_on_see_every_layer_in_training():
    block, seen = RepSRBlock(3), []
    for name in layers_of(block):
        block.get_submodule(name).register_forward_hook(lambda module, args, y, name=name: seen.append(name))
    block(torch.rand(4, 3, 48, 48))
    assert seen == layers_of(block)


@pytest.mark.parametrize("fold", [False, "auto"])
@pytest.mark.parametrize("mode", ["eval", "batch"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_hook_on_whatever_is_inside_fires_or_is_refused(kind, mode, fold):
    """What counts operations, or looks at activations, sees branches and layers; none is passed over in silence."""
    branch, x = built(kind, mode)
    set_fold(branch, fold)
    for name, module in branch.named_modules():
        if name and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            seen = []
            handle = module.register_forward_hook(lambda module, args, y, seen=seen: seen.append(module))
            refusal = ""
            try:
                branch(x)
            except NotLinearError as error:
                refusal = str(error)
            handle.remove()
            if refusal:
                assert re.search(why_refused(branch, name) or "is never refused", refusal), name
            else:
                assert seen == [module], name


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_run(register):
    block, seen = ECB(3), []
    handle = getattr(
        block.branches[1].conv if hasattr(block.branches[1], "conv") else block.branches[0].conv, register
    )(lambda *_: seen.append(1))
    x = torch.rand(1, 3, 9, 9, requires_grad=True)
    block(x).sum().backward()
    assert seen == [1]
    assert block.to_conv() is not None  # they change no kernel
    block.fold = True
    with pytest.raises(SpecError, match="fold=True is not possible for 'a backward hook'"):
        block(torch.rand(1, 3, 9, 9))
    handle.remove()
    assert block(torch.rand(1, 3, 9, 9)).shape == (1, 3, 9, 9)


def test_hooks_of_the_block_itself_go_on_and_stop_nothing():
    block, seen = ECB(3).eval(), []
    block.register_forward_hook(lambda module, args, y: seen.append(type(module)))
    net = nn.Sequential(block)
    net(torch.rand(1, 3, 9, 9)), fuse(net)(torch.rand(1, 3, 9, 9))
    assert seen == [ECB, nn.Conv2d]


class TestComputedWeights:
    """Pruning, weight norm and spectral norm, old and new."""

    x = torch.rand(4, 3, 12, 12)

    def trained(self, block: nn.Module, name: str) -> list[torch.Tensor]:
        """What a parameter is over three steps."""
        optimizer = torch.optim.SGD(block.parameters(), 0.5)
        seen = []
        for _ in range(3):
            optimizer.zero_grad()
            block(self.x).square().mean().backward()
            optimizer.step()
            seen.append(dict(block.named_parameters())[name].detach().clone())
        return seen

    @pytest.mark.parametrize("fold", ["auto", False])
    @pytest.mark.parametrize("mode", ["batch", "frozen", "eval"])
    @pytest.mark.parametrize(
        ("how", "parameter"),
        [
            (lambda conv: prune.l1_unstructured(conv, "weight", 0.5), "weight_orig"),
            (weight_norm, "weight_g"),
            (spectral_norm, "weight_orig"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*spectral_norm.*:FutureWarning")
    def test_it_trains(self, how, parameter, mode, fold):
        block = randomise(RepSRBlock(3, fold=fold), 0).train(mode != "eval")
        if mode == "frozen":
            freeze_bn_stats(block)
        conv = block.branches[1].expand
        how(conv)
        one, two, three = self.trained(block, f"branches.1.expand.{parameter}")
        assert not torch.equal(one, two) and not torch.equal(two, three)
        with pytest.raises(FuseError, match=r"'branches\.1\.expand': a hook of this Conv2d computes its weight in"):
            block.eval().to_conv()

    def test_the_remedy_is_named_and_works(self):
        block = randomise(RepSRBlock(3), 0).eval()
        conv = block.branches[1].expand
        prune.l1_unstructured(conv, "weight", 0.5)
        with torch.no_grad():
            y = block(self.x)
        with pytest.raises(NotLinearError, match=r"plain by torch\.nn\.utils\.prune\.remove\(layer, 'weight'\)"):
            block.kernel()
        prune.remove(conv, "weight")
        assert_close(block.to_conv()(self.x), y)

    @pytest.mark.parametrize("how", [parametrizations.weight_norm, parametrizations.spectral_norm])
    def test_parametrizations_are_read(self, how):
        """They answer when the weight is asked for, so that folding and fusing know them."""
        block = randomise(RepSRBlock(3).double(), 0).eval()
        conv = block.branches[1].expand
        how(conv)
        conv.eval()
        x = self.x.double()
        folded, gradient = block(x), torch.autograd.grad(block(x).square().sum(), list(conv.parameters()))
        block.fold = False
        assert_close(folded, block(x))
        for ours, theirs in zip(gradient, torch.autograd.grad(block(x).square().sum(), list(conv.parameters()))):
            assert_close(ours, theirs, 1e-11)
        assert_close(block.to_conv()(x), folded)
        block.fold = True
        assert_close(block(x), folded)


class TestExchangedLayers:
    """A layer of another class in the place of one, as quantization and adapters put it there."""

    @pytest.mark.filterwarnings("ignore:Please use quant_min:UserWarning")
    def test_quantization_aware_training_sees_the_layers(self):
        from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

        net = nn.Sequential(RepSRBlock(3))
        net.qconfig = get_default_qat_qconfig("fbgemm")
        with pytest.warns(DeprecationWarning, match="torch.ao.quantization is deprecated"):
            prepare_qat(net.train(), inplace=True)
        net(torch.rand(4, 3, 40, 40))
        conv = net[0].branches[1].expand
        assert conv.weight_fake_quant.activation_post_process.min_val.numel() == conv.out_channels
        with pytest.raises(FuseError, match=r"branches\.1\.expand: .* has forward hooks|fuse first and quantize"):
            fuse(net.eval())
        assert not inspect_model(net).ready

    @pytest.mark.parametrize("wrapped", [True, False])
    @pytest.mark.parametrize("mode", ["eval", "batch"])
    def test_an_adapter(self, wrapped, mode):
        """As a subclass, and as a module around the convolution, of which nothing is known."""

        class Adapted(nn.Conv2d):
            def forward(self, x):
                return super().forward(x) + x.mean(1, keepdim=True)[..., 1:-1, 1:-1]

        class Around(nn.Module):
            def __init__(self, base):
                super().__init__()
                self.base_layer = base

            def forward(self, x):
                return self.base_layer(x) + x.mean(1, keepdim=True)[..., 1:-1, 1:-1]

        block = randomise(RepSRBlock(3).double(), 0).train(mode == "batch")
        twin, x = copy.deepcopy(block), image(SPEC, 1, (9, 8))
        conv = block.branches[1].expand
        if wrapped:
            block.branches[1].expand = Around(conv)
        else:
            conv.__class__ = Adapted
        with torch.no_grad():  # the mean of the channels at the center tap, written into the weight
            twin.branches[1].expand.weight[:, :, 1, 1] += 1 / 3
        assert_close(block(x), twin(x), 1e-11)
        with pytest.raises(FuseError, match="Around is not known to be linear|Adapted has a forward of its own"):
            block.eval().to_conv()
        with pytest.raises(NotLinearError, match="fuse first and quantize or adapt the fused network"):
            block.kernel()


class TestBranchesOfOnesOwn:
    def test_a_block_with_an_activation_in_it_is_refused(self):
        class Active(RepSRBlock):
            def forward(self, x):
                return super().forward(x).relu()

        block, x = randomise(Active(3).double(), 0).eval(), image(SPEC, 0, (6, 6))
        with pytest.raises(
            FuseError, match="'itself': Active has forward, kernel and kernel_with from different classes"
        ):
            block.to_conv()
        with pytest.raises(FuseError, match="Active has forward, kernel and kernel_with from different classes"):
            fuse(nn.Sequential(block))
        outer = ReparamBlock(SPEC, [lambda spec: block, ConvBranch]).double()
        assert_close(outer(x), block(x) + outer.branches[1](x))

    def test_a_later_kernel_alone_is_refused(self):
        class Scaled(ConvBranch):
            def kernel(self):
                weight, bias = super().kernel()
                return Kernel(2 * weight, bias)

        with pytest.raises(
            NotLinearError, match="'itself': Scaled has forward, kernel and kernel_with from different classes"
        ):
            Scaled(SPEC).kernel()

    def test_one_with_kernel_and_forward_is_taken(self):
        class Half(Branch):
            def __init__(self, spec):
                super().__init__(spec)
                self.inner = ConvBranch(spec)

            def kernel(self):
                return Kernel(*(tensor / 2 for tensor in self.inner.kernel()))

            def forward(self, x):
                return self.inner(x) / 2

        block, x = ReparamBlock(SPEC, [Half, ConvBranch]).double(), image(SPEC, 0, (6, 6))
        assert not block.problems()
        assert_close(block.to_conv()(x), block(x))


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_what_is_built_of_altered_layers_is_refused(alter):
    conv = nn.Conv2d(3, 3, 3)
    ALTERATIONS[alter](conv)
    with pytest.raises(NotLinearError, match="SequentialBranch, stage 0: "):
        SequentialBranch(SPEC, conv)


@pytest.mark.parametrize("make", [ConvBNBranch, ExpandSqueezeBranch, IdentityBranch, AvgPoolBranch, RepVGGBlock])
def test_a_batch_norm_of_ones_own_is_refused(make):
    class Strange(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) ** 2

    with pytest.raises(SpecError, match="Strange has a forward of its own and may compute something other"):
        make(3 if make is RepVGGBlock else SPEC, bn=Strange)


class Pair(nn.Module):
    """A linear module of nobody's."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.a(x) + self.b(x)


class TestForeignModules:
    def test_a_replaced_forward(self):
        """Of a layer it is read as it is, of the module itself it is refused."""
        pair = Pair()
        pair.a.forward = lambda x: 2 * x
        x = torch.rand(1, 3, 6, 6)
        assert_close(nn.functional.conv2d(x, *kernel_of(pair)), pair(x))
        pair.forward = lambda x: x
        with pytest.raises(NotLinearError, match="the forward of this Pair was replaced on the object"):
            kernel_of(pair)

    def test_a_hook(self):
        pair = Pair()
        by_hook(pair.b)
        with pytest.raises(NotLinearError, match=r"'b': Conv2d has forward hooks \(by_hook"):
            kernel_of(pair)
        by_hook(pair)
        nested = nn.Sequential(pair)
        with pytest.raises(NotLinearError, match="Pair has forward hooks"):
            kernel_of(nested)

    def test_pruning(self):
        pair = Pair()
        prune.l1_unstructured(pair.a, "weight", 0.5)
        with pytest.raises(NotLinearError, match=r"prune\.remove\(layer, 'weight'\)"):
            kernel_of(pair)

    @pytest.mark.filterwarnings("ignore:Please use quant_min:UserWarning")
    def test_a_quantizing_layer_is_not_torchs_convolution(self):
        from torch.ao.nn.qat import Conv2d
        from torch.ao.quantization import disable_observer, get_default_qat_qconfig

        pair, x = Pair(), torch.rand(1, 3, 6, 6)
        pair.a = Conv2d(3, 3, 3, padding=1, qconfig=get_default_qat_qconfig("fbgemm"))
        pair(x)
        y = pair.eval().apply(disable_observer)(x)
        assert_close(nn.functional.conv2d(x, *kernel_of(pair), padding=1), y)

    def test_a_replaced_forward_keeps_a_norm_apart(self):
        net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
        net(torch.rand(2, 3, 9, 9))
        net.eval()
        by_object(net[0])
        with pytest.raises(FuseError, match="found no block"):
            fuse(net)
