"""Our blocks against outputs of the papers' own code: the files in golden/, and those in the folder $REPARAM_GOLDEN."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from golden_nets import KINDS as BLOCKS
from golden_nets import load, rename
from golden_sr import KINDS as SUPER_RESOLUTION
from golden_vision import KINDS as VISION
from golden_vision import of_orepa
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reparam import IdentityBranch, OREPABlock, PlainSR, fuse, set_fold
from reparam.bn._norm import norms
from reparam.models import SRNet

KINDS = BLOCKS | SUPER_RESOLUTION | VISION
HERE = Path(__file__).parent / "golden"
FAMILIES = ("ecb_", "ecbsr_", "repvgg_", "repvggplus_", "repsr_", "srvgg_")
FAMILIES += ("acb_", "mobileone_", "span_")
FAMILIES += ("dbb_", "fmen_", "edbb_", "unirep_", "orepa_", "qarepvgg_", "plainusr_", "sesr_")
ROUNDING = 1e-12  # float64, relative
ROUNDING_F32 = 1e-6  # of a kernel that the official code computes in float32, relative


class Golden(NamedTuple):
    """One file: its metadata, the official state dict, the other tensors, and `fill.py` if it was needed."""

    meta: dict
    official: dict[str, Tensor]
    tensors: dict[str, Tensor]
    fill: ModuleType | None

    def fresh(self) -> nn.Module:
        """Our network for this file, as it is built, in eval mode."""
        return KINDS[self.meta["block"]].build(self.meta["config"]).eval()

    def net(self) -> nn.Module:
        """Our network with the official weights, in float32."""
        return load(self.fresh(), KINDS[self.meta["block"]].ours(self.official, self.meta["config"]))

    def fused(self, prefix: str) -> dict[str, Tensor]:
        """The official fused tensors ("fused." or "fused64.") under our names."""
        tensors = {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}
        return rename(tensors, KINDS[self.meta["block"]].fused_rules)

    @property
    def wanted(self) -> Tensor:
        """The output of the official unfused module, in float64 if it is there."""
        return self.tensors.get("y_train_f64", self.tensors["y_train_f32"])

    @property
    def noise(self) -> float:
        """Largest error of the official unfused module in float32; where only float32 is there, two ulp of it."""
        ulp = torch.finfo(torch.float32).eps * float(self.wanted.abs().max())
        return self.meta.get("f32_noise_train", 2 * ulp)

    @property
    def rounding(self) -> float:
        """How far from it a right network may be in float64, relative."""
        return ROUNDING if self.wanted.dtype == torch.float64 else ROUNDING_F32


@cache
def read(path: Path) -> Golden:
    """Reads a file, or makes its weights by the recipe in it, and checks the weights against their checksum."""
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["meta"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # safe_open is no mapping
    fill = None
    if meta["sd_stored"]:
        official = {key[3:]: value for key, value in tensors.items() if key.startswith("sd.")}
        if "sd_sha256" not in meta:
            return Golden(meta, in_torch_layout(official, tensors), tensors, fill)
    else:
        fill = load_fill(path.parent)
        prefix = meta["fill_prefix"]
        official = {
            key: torch.from_numpy(fill.value(prefix + key, tuple(shape), spec).reshape(shape))
            for key, (spec, shape) in meta["fill"].items()
        }
    checksum = hashlib.sha256()
    for key in sorted(official):
        checksum.update(key.encode() + official[key].numpy().tobytes())
    assert checksum.hexdigest() == meta["sd_sha256"], f"{path.name}: not the weights that the official code ran with"
    return Golden(meta, official, tensors, fill)


def in_torch_layout(official: dict[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a TensorFlow module in torch's layout, which the file holds next to TensorFlow's own."""
    in_torch = {key: tensors[f"sd_torch.{key}"] for key in official}
    for key, value in official.items():
        same = value.permute(3, 2, 0, 1) if key.endswith("kernel") else value.flatten()
        assert torch.equal(in_torch[key], same), f"{key} in torch's layout is not what it is in TensorFlow's"
    return in_torch


def load_fill(folder: Path) -> ModuleType:
    """The module that makes weights from their names, for files that are too large to hold them."""
    spec = importlib.util.spec_from_file_location("golden_fill", folder / "fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find(folder: Path) -> list[Path]:
    """The files of our families in a folder; a folder without any is a mistake, which must not pass in silence."""
    paths = sorted(path for path in folder.glob("*.safetensors") if path.name.startswith(FAMILIES))
    if not paths:
        raise FileNotFoundError(f"no golden files of {FAMILIES} in {folder}")
    return paths


PATHS = find(HERE)
CASES = {path.stem: path for path in PATHS}
if "REPARAM_GOLDEN" in os.environ:
    CASES |= {f"folder-{path.stem}": path for path in find(Path(os.environ["REPARAM_GOLDEN"]))}


def files(wanted: Callable[[str], bool]) -> pytest.MarkDecorator:
    """Parametrises over the files whose name is wanted."""
    cases = {case: path for case, path in CASES.items() if wanted(path.stem)}
    return pytest.mark.parametrize("path", cases.values(), ids=cases.keys())


every_file = files(lambda name: True)
# SESR's networks hold no kernels, and its block with biases is not its collapsed block; see the test of it below.
files_with_kernels = files(lambda name: not name.startswith("sesr_tiny") and name != "sesr_block_k3_4_bias")


def regions(golden: Tensor, image: Tensor) -> dict[str, Tensor]:
    """Masks of the border ring, one pixel of the input image wide, and of the interior; all of it if not spatial."""
    if golden.dim() != 4:
        return {"all": torch.ones(golden.shape, dtype=torch.bool)}
    ring = max(1, golden.shape[-1] // image.shape[-1])
    interior = torch.zeros(golden.shape, dtype=torch.bool)
    interior[..., ring:-ring, ring:-ring] = True
    return {"border": ~interior, "interior": interior}


def relative(ours: Tensor, golden: Tensor) -> float:
    """max |ours - golden| / max |golden|, in float64."""
    assert ours.shape == golden.shape, f"shape {tuple(ours.shape)}, golden {tuple(golden.shape)}"
    return float((ours.double() - golden.double()).abs().max() / golden.double().abs().max())


@torch.no_grad()
def errors(net: nn.Module, golden: Golden) -> dict[str, float]:
    """Relative errors of a network in float64, by region of the output."""
    image, wanted = golden.tensors["input"], golden.wanted
    ours = net.double()(image.double())
    assert ours.shape == wanted.shape, f"shape {tuple(ours.shape)}, golden {tuple(wanted.shape)}"
    return {name: relative(ours[mask], wanted[mask]) for name, mask in regions(wanted, image).items()}


@every_file
def test_the_branches_compute_the_official_graph(path: Path):
    golden, found = read(path), {}
    for fold in (False, "auto"):  # branch by branch, and as one convolution
        net = golden.net()
        set_fold(net, fold)
        found |= {(region, fold): error for region, error in errors(net, golden).items()}
    assert max(found.values()) <= golden.rounding, found


@every_file
def test_the_fused_convolutions_compute_the_official_graph(path: Path):
    golden = read(path)
    for region, error in errors(fuse(golden.net().double()), golden).items():
        assert error <= golden.rounding, region


@every_file
@torch.no_grad()
def test_fusing_in_float32_is_as_exact_as_the_official_one(path: Path):
    golden = read(path)
    net, image = golden.net(), golden.tensors["input"]
    error = float((net(image) - fuse(net)(image)).abs().max())
    # Both errors are the rounding of two float32 sums at one pixel, so which of them is smaller is luck and changes
    # with the instruction set. Where the official one is lower, three times the noise of the official unfused output,
    # the tolerance that the collection recommends, is allowed; the next but one test compares what luck cannot touch.
    assert error <= max(golden.meta["fuse_err_f32"], 3 * golden.noise)


@files_with_kernels
def test_the_fused_kernels_are_the_official_ones(path: Path):
    golden = read(path)
    net = golden.net()
    if not golden.meta["exact"]:
        use_the_official_eps(net)
    if golden.fill is not None:
        check_sums(fuse(net), golden, golden.fill)
    else:
        check_kernels(fuse(net), golden.fused("fused."), ROUNDING_F32)
    if exact := golden.fused("fused64."):
        # Some official conversions go through float32 also when they are asked for float64; the outputs say so.
        is_exact = golden.meta.get("fuse_err_f64_rel", 0.0) < ROUNDING
        check_kernels(fuse(net.double()), exact, ROUNDING if is_exact else ROUNDING_F32)


@files_with_kernels
def test_no_number_of_a_float32_kernel_is_less_exact_than_the_official_one(path: Path):
    # What luck cannot touch: an output may be nearer or farther, a kernel that is rounded once cannot be beaten.
    golden = read(path)
    net = golden.net()
    if not golden.meta["exact"]:
        use_the_official_eps(net)
    ours, exact = fuse(net).state_dict(), fuse(net.double()).state_dict()
    for key, official in golden.fused("fused.").items():
        slack = ROUNDING * float(exact[key].abs().max())
        assert bool(((ours[key] - exact[key]).abs() <= (official - exact[key]).abs() + slack).all()), key


@files(lambda name: name.startswith(("ecbsr_", "srvgg_compact_prelu")))
def test_a_fused_network_loads_into_the_plain_one(path: Path):
    golden = read(path)
    net = golden.net().double()
    assert isinstance(net, SRNet)
    plain = PlainSR(scale=net.scale, num_blocks=net.num_blocks, channels=net.channels, colors=net.colors).double()
    plain.load_state_dict(fuse(net).state_dict())
    assert max(errors(plain.eval(), golden).values()) <= ROUNDING


@files(lambda name: name.startswith(("ecb", "orepa_k3", "orepa_repvgg")) and "maskrand" not in name)
def test_our_own_constants_are_the_official_ones(path: Path):
    # Loading overwrites ours, so that nothing else here looks at them.
    golden = read(path)
    fresh = golden.fresh().state_dict()
    official = KINDS[golden.meta["block"]].ours(golden.official, golden.meta["config"])
    constants = {key: value for key, value in official.items() if key.endswith(("mask", "unit"))}
    assert constants
    for key, value in constants.items():
        torch.testing.assert_close(fresh[key], value, rtol=1e-6, atol=1e-6)


# What the documentation of SESR says of the authors' collapsed form, where it is another function.


@files(lambda name: name == "sesr_block_k3_4_bias")
@torch.no_grad()
def test_sesr_collapses_biases_into_every_tap(path: Path):
    golden = read(path)
    weight, bias = golden.net().double().kernel()
    assert relative(golden.tensors["fused.weight"], weight + bias.view(-1, 1, 1, 1)) <= ROUNDING_F32


@files(lambda name: name == "sesr_tiny_m2_f4_x2")
@torch.no_grad()
def test_sesr_collapsed_has_an_identity_in_its_last_block(path: Path):
    golden = read(path)
    net, image = golden.net().double(), golden.tensors["input"].double()
    assert relative(net(image), golden.tensors["y_fused_f32"]) > 0.1
    net.conv_last.branches.append(IdentityBranch(net.conv_last.spec))
    assert relative(net(image), golden.tensors["y_fused_f32"]) <= ROUNDING_F32


def use_the_official_eps(net: nn.Module) -> None:
    """Where the official fusing is not exact, it is so because it takes an eps that is not that of its batch norms."""
    for _, bn in norms(net):
        bn.eps = 1e-7


def fused_keys(fused: nn.Module) -> set[str]:
    """The keys of all convolutions that were blocks."""
    names = [name for name, module in fused.named_modules() if "fused_from" in vars(module)]
    return {
        f"{name}.{tensor}".lstrip(".") for name in names for tensor, _ in fused.get_submodule(name).named_parameters()
    }


def check_kernels(fused: nn.Module, official: dict[str, Tensor], tolerance: float) -> None:
    """Compares every tensor of the official fused state, among which every kernel of ours must be."""
    ours = fused.state_dict()
    assert fused_keys(fused) <= official.keys() <= ours.keys()
    for key, value in official.items():
        assert relative(ours[key], value) <= tolerance, key


def check_sums(fused: nn.Module, golden: Golden, fill: ModuleType) -> None:
    """Compares the sums that are stored in place of large tensors: of w, |w|, w² and w times known numbers."""
    ours, shapes = fused.state_dict(), golden.meta["fused_shapes"]
    names = list(rename(dict.fromkeys(shapes, torch.empty(0)), KINDS[golden.meta["block"]].fused_rules))
    assert fused_keys(fused) <= set(names) <= ours.keys()
    for key, name, official in zip(shapes, names, golden.tensors["fused_stats"]):
        w = ours[name].double().flatten()
        known = torch.from_numpy(2 * fill.u01("proj:" + key, w.numel()) - 1)
        sums = torch.stack([w.sum(), w.abs().sum(), w.square().sum(), w @ known])
        size = official[[1, 1, 2, 1]]  # a sum is compared with the sum of absolute values
        assert float(((sums - official).abs() / size).max()) <= ROUNDING_F32, key


def test_the_files_here_are_of_every_kind():
    kinds = {read(path).meta["block"] for path in PATHS}
    # Left to $REPARAM_GOLDEN: what is large, and networks of blocks that are here.
    large = {"RepVGG-A0", "RepSR_Net", "RepVGG(OREPA_VGG)", "MobileOne-s0", "SPAN", "SPAN-48", "span"}
    large |= {"ERB", "HFAB", "TRAIN_FMEN -> TEST_FMEN"}
    large |= {kind for kind in KINDS if kind.startswith(("Blockv", "PlainUSR_"))}
    assert kinds == set(KINDS) - large


@torch.no_grad()
def test_the_rows_of_a_grouped_pointwise_convolution_of_orepa():
    # The official code counts its rows o * groups + g for output channel o of group g; no file here shows it.
    groups, expansion, inputs, outputs = 2, 8, 3, 2  # the last two per group
    block = OREPABlock(inputs * groups, outputs * groups, groups=groups).double()
    depthwise, pointwise, scale = block.branches[5].layers
    official = {"gconv_dw": torch.rand_like(depthwise.weight), "gconv_pw": torch.rand_like(pointwise.weight)}
    ours = of_orepa(official, {"groups": groups})
    depthwise.weight.copy_(ours["gconv_dw"])
    pointwise.weight.copy_(ours["gconv_pw"])
    scale.scale.fill_(1.0)
    weight = block.branches[5].kernel().weight
    for g, o, i in itertools.product(range(groups), range(outputs), range(inputs)):
        row = official["gconv_pw"][o * groups + g, i * expansion : (i + 1) * expansion, 0, 0]
        first = (g * inputs + i) * expansion
        expected = (row.reshape(-1, 1, 1) * official["gconv_dw"][first : first + expansion, 0]).sum(0)
        torch.testing.assert_close(weight[g * outputs + o, i], expected)


# That the checks above can fail --------------------------------------------------------------------------------------


def change_a_weight(net: nn.Module) -> None:
    net.get_parameter("block.branches.0.conv.weight").mul_(1 + 1e-9)


def flip_a_mask(net: nn.Module) -> None:
    mask = net.get_buffer("block.branches.2.filter.mask")
    mask.copy_(mask.flip(-1))


def change_eps(net: nn.Module) -> None:
    for _, bn in norms(net):
        bn.eps = 1.0001e-5


@pytest.mark.parametrize(
    ("name", "mutate"),
    [
        ("ecb_8to8_prelu_idt", change_a_weight),
        ("ecb_6to6_linear_maskrand", flip_a_mask),
        ("ecb_8to8_prelu_idt", flip_a_mask),
        ("repvgg_s1_id_g2_8", change_eps),
    ],
)
@torch.no_grad()
def test_a_wrong_network_is_seen(name: str, mutate: Callable[[nn.Module], None]):
    golden = read(HERE / f"{name}.safetensors")
    net = golden.net().double()
    mutate(net)
    assert min(errors(net, golden).values()) > 10 * ROUNDING
    with pytest.raises(AssertionError, match="relative"):
        check_kernels(fuse(net), golden.fused("fused64."), ROUNDING)


@pytest.mark.parametrize(("row", "seen"), [(0, "border"), (5, "interior")])
def test_a_single_wrong_pixel_is_seen_in_its_region(row: int, seen: str):
    golden = read(HERE / "ecb_8to8_prelu_idt.safetensors")

    class Spoilt(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = golden.tensors["y_train_f64"].clone()
            y[1, 3, row, 9] += 1e-8
            return y

    assert [name for name, error in errors(Spoilt(), golden).items() if error > ROUNDING] == [seen]


def test_the_loader_refuses_what_does_not_fit():
    conv, official = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1).state_dict()
    with pytest.raises(KeyError, match=r"left over: \['scale'\]"):
        load(conv, {**official, "scale": torch.ones(1)})
    with pytest.raises(KeyError, match=r"not filled: \['bias'\]"):
        load(conv, {"weight": official["weight"]})
    with pytest.raises(KeyError, match="'bias' becomes 'weight'"):
        rename(official, [("bias", "weight")])
    with pytest.raises(RuntimeError, match="size mismatch"):
        load(conv, {**official, "bias": torch.ones(1)})


def test_a_changed_file_and_an_empty_folder_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no golden files"):
        find(tmp_path)
    changes = {
        "repvgg_s2_3to8": ("sd.rbr_1x1.bn.bias", "not the weights"),
        "sesr_tiny_m2_f4_x2": ("sd_torch.block1.conv_kxk.kernel", "block1.conv_kxk.kernel in torch's layout"),
    }
    for name, (key, message) in changes.items():
        path = HERE / f"{name}.safetensors"
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # likewise
        tensors[key].view(-1)[0] += 1
        save_file(tensors, tmp_path / path.name, metadata)
        with pytest.raises(AssertionError, match=message):
            read(tmp_path / path.name)
