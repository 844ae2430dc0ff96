"""timm: models fused exactly, no batch norm left that could go; our blocks inside of them; where timm itself fails."""

import copy
import os
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from helpers import assert_close, randomise, relative_error
from test_foreign import check_rounded_once, image, norms_in, ready
from test_golden import HERE, read, regions
from timm.models import byobnet, create_model, fastvit, ghostnet, lcnetv2, levit, reparameterize_model, repghost, repvit
from torch import Tensor, nn

from reparam import (
    FrozenStatsBN,
    FuseError,
    RepVGGBlock,
    freeze_bn_stats,
    fuse,
    inspect_model,
    unfreeze_bn_stats,
    verify,
)
from reparam.bn._norm import norms

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

FAMILIES = {  # the smallest of every family that has modules with `fuse` or `reparameterize`, and its image size
    "repvgg_a0": 32,
    "mobileone_s0": 32,
    "fastvit_t8": 64,
    "repvit_m0_9": 32,
    "ghostnetv3_100": 64,
    "repghostnet_050": 32,
    "lcnetv2_base": 32,
    "levit_128s": 224,
    "levit_conv_128s": 224,
    "tiny_vit_5m_224": 64,
    "efficientvit_m0": 224,
    "shvit_s1": 64,
    "iformer_t": 64,
    "efficientvim_m1": 64,
    "nextvit_small": 32,
}
SHALLOW = {  # as few blocks as have every kind of part: repeating them finds no more, and reading a forward takes long
    "fastvit_t8": {"layers": (1, 1, 1, 1)},
    "repvit_m0_9": {"depth": (2, 1, 1, 1)},
    "lcnetv2_base": {"depths": (2, 2, 2, 2)},
    "levit_128s": {"depth": (1, 1, 1)},
    "levit_conv_128s": {"depth": (1, 1, 1)},
    "tiny_vit_5m_224": {"depths": (1, 1, 1, 1)},
    "efficientvit_m0": {"depth": (1, 1, 1)},
    "shvit_s1": {"depth": (1, 1, 1)},
    "iformer_t": {"depths": (1, 1, 5, 3), "attn_groups": (0, 0, 1, 1)},
    "efficientvim_m1": {"depths": (1, 1, 1)},
    "nextvit_small": {"depths": (1, 2, 5, 2)},
}
GHOSTS = {  # whose depth is no option
    "ghostnetv3_100": partial(ghostnet.GhostNet, version="v3"),
    "repghostnet_050": partial(repghost.RepGhostNet, width=0.5),
}
GHOST_STAGES = [  # kernel size, channels inside and at the end, share for squeeze and excitation, stride
    [[3, 16, 16, 0, 1]],
    [[3, 48, 24, 0, 2]],
    [[5, 72, 40, 0.25, 2]],  # from the third block on, GhostNetV3 has its shortcuts
    [[5, 120, 40, 0.25, 1], [3, 100, 40, 0, 1]],
]
# The others are for the nightly run: what is in them is in these as well, or in tests/zoo.
USUAL = ("repvgg_a0", "mobileone_s0", "fastvit_t8", "ghostnetv3_100", "repghostnet_050", "lcnetv2_base", "levit_128s")
# Kernels are read in one precision and rounded at the end by one function, whatever module they are read from, so the
# other precisions are tried where the results have different homes: branches of a sum with a place for their result, a
# convolution or a linear layer and its norm, and norms that are taken in across a forward.
ALL_PRECISIONS = ("repvgg_a0", "repghostnet_050", "levit_128s", "nextvit_small")


def statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics and affines at which a network of this depth still computes numbers of usual size."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(like.shape, generator=generator)).to(like)

    with torch.no_grad():
        for _, bn in norms(model):
            bn.running_mean.copy_(uniform(bn.running_mean, -0.3, 0.3))
            bn.running_var.copy_(uniform(bn.running_var, 0.3, 1.5))
            bn.num_batches_tracked.fill_(1)
            bn.weight.copy_(uniform(bn.weight, 0.5, 1.5) * uniform(bn.weight, -0.5, 1).sign())
            bn.bias.copy_(uniform(bn.bias, -0.3, 0.3))
    return model


def rest_by_night(names, usual) -> list:
    return [name if name in usual else pytest.param(name, marks=pytest.mark.nightly) for name in names]


@cache
def network(name: str) -> nn.Module:
    """A network in float32 and eval mode, not to be changed."""
    torch.manual_seed(0)
    if name in GHOSTS:
        return statistics(GHOSTS[name](GHOST_STAGES, num_classes=7)).eval()
    model = create_model(name, num_classes=7, **SHALLOW.get(name, {}))
    for stage in model.stages if isinstance(model, byobnet.ByobNet) else ():
        del stage[2:]  # all of one kind from the second on
    return statistics(model).eval()


def in_double(name: str) -> nn.Module:
    return copy.deepcopy(network(name)).double()


@pytest.mark.parametrize("name", rest_by_night(FAMILIES, USUAL))
@torch.no_grad()
def test_every_family_is_fused_exactly_and_without_a_norm(name):
    model, x = in_double(name), torch.randn(1, 3, FAMILIES[name], FAMILIES[name]).double()
    exact = fuse(model)
    assert not norms_in(exact) and norms_in(model)
    assert_close(exact(x), model(x))
    assert all(parameter.requires_grad for parameter in exact.parameters())


@pytest.mark.parametrize("name", rest_by_night(ALL_PRECISIONS, ("repvgg_a0", "levit_128s")))
@torch.no_grad()
def test_every_precision_is_that_of_the_model_rounded_once(name):
    model, x = network(name), torch.randn(1, 3, FAMILIES[name], FAMILIES[name])
    wanted = in_double(name)(x.double())
    plain = check_rounded_once(model, torch.float32)
    assert relative_error(plain(x), wanted) <= 10 * max(relative_error(model(x), wanted), 2e-7)
    check_rounded_once(model, torch.bfloat16)
    assert all(parameter.requires_grad for parameter in plain.parameters())
    again = fuse(plain)
    assert again.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    "name",
    rest_by_night(("repvgg_a0", "mobileone_s0", "tiny_vit_5m_224", "efficientvit_m0", "shvit_s1", "iformer_t"), USUAL),
)
def test_the_keys_are_those_of_timms_own_inference_form(name):
    official = reparameterize_model(network(name)).state_dict()
    ours = fuse(network(name), batch_norms=False).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in official.items()}
    for key, value in ours.items():
        assert relative_error(value, official[key]) < 1e-5 or not value.is_floating_point(), key


@pytest.mark.parametrize(
    "name",
    rest_by_night(
        ("repvgg_a0", "fastvit_t8", "ghostnetv3_100", "repvit_m0_9", "nextvit_small"), ("repvgg_a0", "fastvit_t8")
    ),
)
def test_a_report_of_a_model(name):
    model, size = network(name), FAMILIES[name]
    report, plain = inspect_model(model), fuse(model)
    assert report.ready and report.fused_parameters == sum(p.numel() for p in plain.parameters())
    checked = verify(model, plain, torch.randn(1, 3, size, size))
    assert checked.ok, checked
    blocks = {block.name for block in checked.blocks}
    assert bool(blocks) == bool(report.blocks)
    assert all(any(block.name.startswith(name) for name in blocks) for block in report.blocks)


def built(kind, *args, **kwargs):
    return lambda: nn.Sequential(kind(*args, **kwargs))


BLOCKS = {
    "timm_repvgg_s2_6to8": built(byobnet.RepVggBlock, 6, 8, 3, 2),
    "timm_repvgg_g4_8": built(byobnet.RepVggBlock, 8, 8, 3, group_size=2),
    "timm_repvgg_k5_dil2_6": built(byobnet.RepVggBlock, 6, 6, 5, dilation=(2, 2)),
    "timm_mobileone_dw_b3_8": built(byobnet.MobileOneBlock, 8, 8, 3, group_size=1, num_conv_branches=3),
    "timm_mobileone_pw_b4_8to12": built(byobnet.MobileOneBlock, 8, 12, 1, num_conv_branches=4),
    "timm_fastvit_mobileone_s2_6": built(fastvit.MobileOneBlock, 6, 6, 3, 2, group_size=1),
    "timm_fastvit_repmixer_6": built(fastvit.RepMixer, 6),
    "timm_fastvit_largek_4to8_s2": built(fastvit.ReparamLargeKernelConv, 4, 8, 7, 2, 1, small_kernel=3),
    "timm_fastvit_cpe_6": built(fastvit.RepConditionalPosEnc, 6),
    "timm_repvit_vggdw_6": built(repvit.RepVggDw, 6, 3),
    "timm_repvit_convnorm_6to8": built(repvit.ConvNorm, 6, 8, 3, 2, 1),
    "timm_repvit_normlinear_6to5": built(repvit.NormLinear, 6, 5),
    "timm_ghostv3_shortcut_8to12": built(ghostnet.GhostModuleV3, 8, 12, mode="shortcut"),
    "timm_repghost_6to6": built(repghost.RepGhostModule, 6, 6),
    "timm_lcnetv2_rep_s1_6": built(lcnetv2.RepDepthwiseSeparable, 6, 6, dw_kernel_size=5, use_rep=True),
}


FOLDERS = [HERE, *(Path(folder) for folder in [os.environ.get("REPARAM_GOLDEN")] if folder)]
PATHS = {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("timm_*.safetensors"))}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@torch.no_grad()
def test_golden_files(path):
    golden = read(path)
    config = golden.meta["config"]
    known = path.stem in BLOCKS
    model = BLOCKS[path.stem]() if known else create_model(config["model"], num_classes=config["num_classes"])
    prefix = "" if not known or next(iter(golden.official)).startswith("0.") else "0."
    model.load_state_dict({prefix + key: value for key, value in golden.official.items()})
    x, wanted = golden.tensors["input"], golden.wanted
    plain = fuse(model.eval())
    assert float((plain(x).double() - wanted).abs().max()) <= 3 * max(golden.noise, golden.meta["fuse_err_f32"])
    y = fuse(model.double())(x.double())
    for region, mask in regions(wanted, x).items():
        assert relative_error(y[mask], wanted[mask]) <= 1e-12, region
    ours = fuse(model.float(), batch_norms=False).state_dict()
    official = {key.removeprefix("fused."): value for key, value in golden.tensors.items() if key.startswith("fused.")}
    assert not official or {prefix + key for key in official} == ours.keys()
    for key, value in official.items():
        assert relative_error(ours[prefix + key], value) <= 1e-6, key


class TestWhereTimmFails:
    def test_the_norms_that_it_leaves_in_fastvit(self):
        left = norms_in(reparameterize_model(network("fastvit_t8")))
        assert left == [f"stages.{stage}.blocks.0.mlp.conv.bn" for stage in range(4)]  # one of each block
        assert not set(left) & set(norms_in(fuse(network("fastvit_t8"))))

    def test_a_block_on_its_own(self):
        block, x = ready(byobnet.RepVggBlock(6, 6)), image(1, 6, 7, 8)
        assert reparameterize_model(block).reparam_conv is None
        assert type(fuse(block).reparam_conv) is nn.Conv2d
        assert_close(fuse(block)(x), block(x))

    @pytest.mark.parametrize(
        "kind", [repvit.ConvNorm, repvit.NormLinear, repvit.RepVggDw, levit.ConvNorm, levit.LinearNorm]
    )
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_dtypes(self, kind, dtype):
        args = (6, 3) if kind is repvit.RepVggDw else (6, 6)
        model = ready(nn.Sequential(kind(*args))).to(dtype)
        assert {parameter.dtype for parameter in fuse(model).parameters()} == {dtype}
        with pytest.raises(AssertionError):
            assert {parameter.dtype for parameter in reparameterize_model(model).parameters()} == {dtype}

    def test_another_kernel_size(self):
        model, x = ready(nn.Sequential(repvit.RepVggDw(6, 5))), image(1, 6, 9, 8)
        with pytest.raises(RuntimeError, match="must match the size"):
            reparameterize_model(model)
        assert_close(fuse(model)(x), model(x))

    def test_levits_groups(self):
        model, x = ready(nn.Sequential(levit.ConvNorm(6, 6, 3, padding=1, groups=3))), image(1, 6, 9, 8)
        with pytest.raises(ValueError, match="divisible by groups"):
            reparameterize_model(model)
        assert_close(fuse(model)(x), model(x))

    @pytest.mark.parametrize("block", [byobnet.RepVggBlock, byobnet.MobileOneBlock])
    def test_sync_batch_norm(self, block):
        model, x = ready(nn.Sequential(block(6, 6))), image(1, 6, 7, 8)
        wanted = model(x)
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        with pytest.raises(AssertionError):
            reparameterize_model(model)
        assert_close(fuse(model)(x), wanted)

    def test_the_padding_that_its_inference_mode_forgets(self):
        model, x = ready(nn.Sequential(byobnet.MobileOneBlock(6, 6, dilation=(1, 1)))), image(1, 6, 7, 8)
        assert byobnet.MobileOneBlock(6, 6, inference_mode=True)(x.float()).shape == (1, 6, 5, 6)
        assert fuse(model)[0].reparam_conv.padding == (1, 1)

    def test_train_mode_is_refused(self):
        model = statistics(create_model("repvgg_a0", num_classes=7)).train()
        reparameterize_model(model)  # in silence, and to another function
        with pytest.raises(FuseError, match=r"stem\.conv_kxk\.bn: it uses batch statistics"):
            fuse(model)

    def test_a_distilled_head_in_double(self):
        model, x = ready(nn.Sequential(repvit.RepVitClassifier(6, 5, distillation=True))), image(4, 6)
        plain = fuse(model)
        assert type(plain[0]) is nn.Linear
        assert_close(plain(x), model(x))


class TestOurBlocksInTimm:
    def model(self) -> nn.Module:
        model = create_model("resnet10t", num_classes=7)
        model.layer1[0].conv1 = RepVGGBlock(64, 64, bias=False)
        return statistics(randomise(model.double(), 0)).eval()

    @torch.no_grad()
    def test_fuse_gives_back_the_old_class_and_its_keys(self):
        model, x = self.model(), image(1, 3, 32, 32)
        plain = fuse(model)
        create_model("resnet10t", num_classes=7).load_state_dict(plain.state_dict())
        assert_close(plain(x), model(x))
        every = fuse(model, batch_norms=True)
        assert not norms_in(every)
        assert_close(every(x), model(x))

    @torch.no_grad()
    def test_timm_fuses_ours(self):
        model, x = self.model(), image(1, 3, 32, 32)
        plain = reparameterize_model(model)
        assert type(plain.layer1[0].conv1) is nn.Conv2d
        assert_close(plain(x), model(x))


class TestFrozen:
    """`freeze_bn_stats` on timm's batch norms, which hold their activation."""

    @pytest.mark.parametrize("name", ["repvgg_a0", "lcnetv2_base"])
    def test_training_on_frozen_statistics(self, name):
        model = statistics(create_model(name, num_classes=7))
        kinds = [type(module) for module in model.modules()]
        x = torch.randn(2, 3, 32, 32)
        wanted = model.eval()(x)
        assert len(freeze_bn_stats(model)) == len(norms_in(model))
        assert_close(model.train()(x), wanted)
        assert sum(isinstance(module, FrozenStatsBN) for module in model.modules()) == len(norms_in(model))
        before = {key: value.clone() for key, value in model.named_buffers()}
        model(x).square().sum().backward()
        assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
        assert all(bn.weight.grad is not None for _, bn in norms(model))
        plain = fuse(model)
        assert not norms_in(plain)
        assert_close(plain(x), wanted, 2e-5)
        unfreeze_bn_stats(model)
        assert [type(module) for module in model.modules()] == kinds

    def test_timms_own_freezing(self):
        from timm.layers import freeze_batch_norm_2d

        model, x = statistics(create_model("lcnetv2_base", num_classes=7)).double().eval(), image(1, 3, 32, 32)
        wanted = model(x)
        frozen = freeze_batch_norm_2d(model)
        plain = fuse(frozen.train().eval())
        assert not norms_in(plain)
        assert_close(plain(x), wanted)
