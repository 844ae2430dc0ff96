"""Files become networks, and networks files: of every layout, in every format, and from none that is broken."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.nn.functional as F
from broken_files import MAKERS, armed, broken_files, zipped
from golden_nets import IN_JLDY, JldyNet, rename
from golden_sr import IN_SPAN_NET, SPAN
from helpers import assert_close, randomise
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from spandrel import ModelLoader
from test_golden import HERE, ROUNDING, Golden, errors, files, read
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from reparam import (
    EDSR,
    CheckpointError,
    PlainSR,
    ReparamError,
    RepSRBlock,
    create_model,
    freeze_bn_stats,
    fuse,
    fuse_file,
    fuse_state_dict,
    inspect_file,
    list_models,
    load_checkpoint,
    save_checkpoint,
)
from reparam.files._finder import read_file

StateDict = dict[str, Tensor]


def ready(name: str, **options) -> nn.Module:
    """A network of ours with numbers at which mistakes show, in eval mode."""
    return randomise(create_model(name, **options), 0).eval()


def image(net, size: tuple[int, int] = (7, 9), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(1, net.colors, *size, dtype=dtype)


# Other people's files ------------------------------------------------------------------------------------------------

WRITERS: dict[str, Callable[[StateDict, Path], object]] = {
    "x.pth": torch.save,
    "x.pt": partial(torch.save, _use_new_zipfile_serialization=False),
    "x.safetensors": save_file,
    "x.ckpt": save_file,
    "wrong.safetensors": torch.save,
    "legacy.safetensors": partial(torch.save, _use_new_zipfile_serialization=False),
    "x": lambda sd, path: torch.save({"params": sd}, path),
}

NETS = ("ecbsr_", "srvgg_", "sesr_tiny", "repsr_jldy_m")


def options_of(golden: Golden) -> dict:
    """What the keys leave open, as the official configuration has it."""
    config = golden.meta["config"]
    act = {} if config.get("act_type", "prelu") == "prelu" else {"act": config["act_type"]}
    img_range = {"img_range": 1} if golden.meta["block"].startswith("ECBSR") else {}
    return act | img_range | ({"identity": None} if config.get("with_idt") else {})


def check_official(path: Path, file: Path) -> None:
    golden = read(path)
    WRITERS[file.name]({key: value.contiguous() for key, value in golden.official.items()}, file)
    net = load_checkpoint(file, **options_of(golden))
    assert not net.training and next(net.parameters()).dtype == torch.float32
    assert max(errors(net, golden).values()) <= golden.rounding


@files(lambda name: name.startswith(NETS))
def test_official_files(path, tmp_path):
    check_official(path, tmp_path / "x.pth")


@pytest.mark.parametrize("name", WRITERS)
@files(lambda name: name.startswith("sesr_tiny"))  # a file is read before anyone asks what network it holds
def test_official_files_in_every_format(path, name, tmp_path):
    check_official(path, tmp_path / name)


@files(lambda name: name.startswith(NETS) and not name.startswith("srvgg"))
def test_official_files_after_fuse_state_dict(path, tmp_path):
    golden = read(path)
    identity = {"identity": golden.meta["config"]["with_idt"]} if "with_idt" in golden.meta["config"] else {}
    exact = {key: value.double() if value.is_floating_point() else value for key, value in golden.official.items()}
    torch.save(fuse_state_dict(exact, **identity), tmp_path / "fused.pth")
    net = load_checkpoint(tmp_path / "fused.pth", **{key: 1 for key in options_of(golden) if key == "img_range"})
    assert not [module for module in net.modules() if hasattr(module, "branches")]
    assert next(net.parameters()).dtype == torch.float64
    assert max(errors(net, golden).values()) <= golden.rounding


def test_ecbsr_fused_into_the_names_of_its_convolutions(tmp_path):
    golden = read(HERE / "ecbsr_basicsr_m4c8_x2_c3_idt.safetensors")
    sd = {key[8:]: value for key, value in golden.tensors.items() if key.startswith("fused64.")}
    sd |= {key: value.double() for key, value in golden.official.items() if ".act." in key}
    torch.save(sd, tmp_path / "x.pth")
    assert max(errors(load_checkpoint(tmp_path / "x.pth", img_range=1), golden).values()) <= ROUNDING


def jldy(colors: int = 1, channels: int = 4) -> tuple[nn.Module, StateDict]:
    """The network of JL-DY with their keys."""
    net = randomise(JldyNet({"scale": 2, "c_channel": channels, "colors": colors, "m_block": 2}), 0).double().eval()
    back = [(rf"branches\.(\d)\.{name}", rf"branch\1.{i}") for i, name in enumerate(("expand", "norm", "squeeze"))]
    sd = rename(net.state_dict(), back)
    assert rename(sd, IN_JLDY).keys() == net.state_dict().keys()
    return net, sd


@pytest.mark.parametrize(("colors", "channels"), [(1, 4), (3, 12)])
def test_repsr_of_jldy(colors, channels, tmp_path):
    net, sd = jldy(colors, channels)
    x = torch.rand(1, colors, 6, 5).double()
    for given in (sd, fuse_state_dict(sd)):
        torch.save(given, tmp_path / "x.pth")
        ours = load_checkpoint(tmp_path / "x.pth")
        assert (ours.base, ours.scale) == ("bilinear", 2)
        assert_close(ours(x), net(x))


def conv(sd: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = sd[f"{name}.weight"]
    return F.conv2d(x, weight, sd[f"{name}.bias"], padding=weight.shape[-1] // 2)


def original_edsr(scale: int, colors: int = 3, blocks: int = 2, channels: int = 6) -> StateDict:
    """A state dict with the keys of EDSR's authors, who keep the mean as convolutions."""
    sizes = {"head.0": (channels, colors), f"body.{blocks}.body": (0, 0), "tail.1": (colors, channels)}
    del sizes[f"body.{blocks}.body"]
    sizes |= {f"body.{i}.body.{j}": (channels, channels) for i in range(blocks) for j in (0, 2)}
    sizes |= {f"body.{blocks}": (channels, channels)}
    factors = (2, 2) if scale == 4 else (scale,)
    sizes |= {f"tail.0.{2 * i}": (channels * factor**2, channels) for i, factor in enumerate(factors)}
    sd = {f"{name}.weight": torch.randn(*shape, 3, 3).double() / 5 for name, shape in sizes.items()}
    sd |= {f"{name}.bias": torch.randn(shape[0]).double() for name, shape in sizes.items()}
    return sd


def run_original(sd: StateDict, x: Tensor, scale: int, res_scale: float = 1.0, blocks: int = 2) -> Tensor:
    """The forward of EDSR's authors, on images of their range."""
    first = conv(sd, "head.0", conv(sd, "sub_mean", x))
    y = first
    for i in range(blocks):
        y = y + res_scale * conv(sd, f"body.{i}.body.2", conv(sd, f"body.{i}.body.0", y).relu())
    y = conv(sd, f"body.{blocks}", y) + first
    for i, factor in enumerate((2, 2) if scale == 4 else (scale,)):
        y = F.pixel_shuffle(conv(sd, f"tail.0.{2 * i}", y), factor)
    return conv(sd, "add_mean", conv(sd, "tail.1", y))


def mean_shift(mean: Tensor, sign: int) -> StateDict:
    name = "sub_mean" if sign < 0 else "add_mean"
    return {f"{name}.weight": torch.eye(len(mean)).double()[:, :, None, None], f"{name}.bias": sign * mean}


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("img_range", [1.0, 255.0])
def test_edsr_of_its_authors(scale, img_range, tmp_path):
    mean = torch.tensor([0.45, 0.3, 0.6]).double() * img_range
    sd = original_edsr(scale) | mean_shift(mean, -1) | mean_shift(mean, 1)
    torch.save(sd, tmp_path / "x.pt")
    net = load_checkpoint(tmp_path / "x.pt")
    assert isinstance(net, EDSR) and net.img_range == img_range
    x = torch.rand(1, 3, 5, 6).double()
    # Their images have the range of the file, ours 0 to 1; our mean is kept in float32 and rounded.
    assert_close(net(x), run_original(sd, x * img_range, scale) / img_range, 1e-6)
    torch.testing.assert_close(net.mean.flatten(), mean / img_range, atol=1e-7, rtol=0)
    other = load_checkpoint(tmp_path / "x.pt", res_scale=0.3)
    assert_close(other(x), run_original(sd, x * img_range, scale, res_scale=0.3) / img_range, 1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_of_basicsr_is_the_original_under_other_keys(scale, tmp_path):
    sd = original_edsr(scale)
    names = [
        (r"head\.0", "conv_first"),
        (r"tail\.1", "conv_last"),
        (r"tail\.0", "upsample"),
        (r"^body\.2\.", "conv_after_body."),
    ]
    names += [(rf"(body\.\d)\.body\.{2 * index}", rf"\1.conv{index + 1}") for index in (0, 1)]
    torch.save(sd, tmp_path / "original.pth")
    torch.save({"params": rename(sd, names)}, tmp_path / "basicsr.pth")
    original, basicsr = (load_checkpoint(tmp_path / f"{name}.pth") for name in ("original", "basicsr"))
    x = torch.rand(1, 3, 5, 4).double()
    assert torch.equal(original(x), basicsr(x))
    assert (basicsr.img_range, basicsr.scale) == (255.0, scale)
    # BasicSR's forward; its mean is that of DIV2K.
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).double()
    sd |= mean_shift(mean * 255, -1) | mean_shift(mean * 255, 1)
    assert_close(basicsr(x), run_original(sd, x * 255, scale) / 255, 1e-6)


def test_the_large_edsr_scales_its_residuals(tmp_path):
    torch.save(original_edsr(2, channels=256, blocks=1), tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth").body[0].res_scale == 0.1


def test_odd_parts_of_edsr(tmp_path):
    sd = original_edsr(2)
    torch.save({**sd, "sub_mean.bias": torch.rand(2)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"'sub_mean.bias' has shape \(2,\), but \(3,\) was expected"):
        load_checkpoint(tmp_path / "x.pth")
    sd["tail.0.0.weight"] = torch.rand(6 * 5, 6, 3, 3)
    torch.save(sd, tmp_path / "x.pth")
    with pytest.raises(
        CheckpointError, match="'tail.0.0.weight' has 30 output channels, but expected 6 times a square"
    ):
        load_checkpoint(tmp_path / "x.pth")


# Wrappers and prefixes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["params", "params_ema", "state_dict", "model", "generator"])
@pytest.mark.parametrize("legacy", [False, True])
def test_wrappers(wrapper, legacy, tmp_path):
    net = ready("plain_m1c4_x2")
    content = {wrapper: net.state_dict(), "iteration": 7}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    same = load_checkpoint(tmp_path / "x.pth", wrapper=wrapper if wrapper == "generator" else None)
    assert torch.equal(same(x := image(net)), net(x))


def test_which_of_several_wrappers(tmp_path):
    ema, raw = ready("plain_m1c4_x2"), randomise(create_model("plain_m1c4_x2"), 1).eval()
    torch.save({"params": raw.state_dict(), "params_ema": ema.state_dict()}, tmp_path / "x.pth")
    x = image(ema)
    assert torch.equal(load_checkpoint(tmp_path / "x.pth")(x), ema(x))
    assert torch.equal(load_checkpoint(tmp_path / "x.pth", wrapper="params")(x), raw(x))
    assert inspect_file(tmp_path / "x.pth").wrapper == "params_ema"
    with pytest.raises(
        CheckpointError, match=r"no state dict under 'params_best'; its keys are 'params', 'params_ema'"
    ):
        load_checkpoint(tmp_path / "x.pth", wrapper="params_best")


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module.", "module." * 2000]
)
def test_prefixes(prefix, tmp_path):
    net = ready("plain_m1c4_x2")
    torch.save({prefix + key: value for key, value in net.state_dict().items()}, tmp_path / "x.pth")
    assert torch.equal(load_checkpoint(tmp_path / "x.pth")(x := image(net)), net(x))


def test_an_averaged_model(tmp_path):
    net = ready("plain_m1c4_x2")
    averaged = AveragedModel(net)
    torch.save(averaged.state_dict(), tmp_path / "x.pth")
    assert torch.equal(load_checkpoint(tmp_path / "x.pth")(x := image(net)), net(x))
    save_checkpoint(averaged, tmp_path / "y.safetensors")
    assert load_file(tmp_path / "y.safetensors").keys() == net.state_dict().keys()


# There and back ------------------------------------------------------------------------------------------------------

SMALL = {re.sub(r"m\d+c\d+", "m1c6", name) for name in list_models() if not name.startswith("sesr")}
SMALL |= {"sesr_m3_x2", "sesr_m3_x4"}
# Scale and colors are read by one function for all networks of blocks, and by others for the rest; so RepSR and the
# rest come in all sizes, and every other family of blocks in two that differ in both. Fused networks are plain ones.
TWO_SIZES = {name for name in SMALL if name.startswith("sesr") or name.endswith(("_x2", "_x3_y"))}
UNFUSED = TWO_SIZES | {name for name in SMALL if name.startswith(("plain", "edsr", "repsr"))}
FUSED = {name for name in TWO_SIZES if not name.startswith(("plain", "edsr"))}


@pytest.mark.parametrize("file", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize(
    ("name", "fused"), [*((name, False) for name in sorted(UNFUSED)), *((name, True) for name in sorted(FUSED))]
)
def test_every_family_there_and_back(name, file, fused, tmp_path):
    net = ready(name, **({"hidden_channels": 8} if "sesr" in name else {}))
    net = fuse(net) if fused else net
    save_checkpoint(net, tmp_path / file)
    same = load_checkpoint(tmp_path / file)
    assert torch.equal(same(x := image(net)), net(x))
    assert type(same) is type(net) or (fused and file == "x.pth" and type(same) is PlainSR)
    assert same.state_dict().keys() == net.state_dict().keys() and not same.training
    if fused and type(same) is type(net):  # which remembers that it was
        assert torch.equal(fuse(same)(x), same(x))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("repsr_m1c6_x2", {"act": "relu"}),
        ("repsr_m1c6_x2", {"expansion": 3, "identity": False}),
        ("repsr_m1c6_x2", {"paths": 1, "base": "bilinear"}),
        ("repsr_m1c6_x2", {"plain_ends": True, "bn": False}),
        ("repsr_m1c6_x2", {"bias": False, "act": "linear"}),
        ("ecbsr_m1c6_x2_y", {"identity": None, "act": "softplus"}),
        ("ecbsr_m1c6_x2", {"expansion": 61 / 6, "act": "leakyrelu"}),
        ("repvggsr_m1c6_x3", {"plain_ends": True, "identity": False}),
        ("qarepvggsr_m1c6_x3", {"point_bias": True, "pool": True}),
        ("collapsiblesr_m1c6_x2_y", {"hidden_channels": 24}),
        ("plain_m1c6_x1", {"base": "bilinear", "act": "leakyrelu"}),
        ("edsr_m1c6_x4_y", {"res_scale": 0.2, "img_range": 1.0, "mean": (0.4,)}),
    ],
)
@pytest.mark.parametrize(  # both formats hold one note, see `test_wrapper_and_note`
    ("fused", "file", "wrapper"), [(False, "x.safetensors", None), (True, "x.pth", "params")]
)
def test_options_there_and_back(name, options, fused, file, wrapper, tmp_path):
    net = ready(name, **options)
    net = fuse(net) if fused and not name.startswith(("plain", "edsr")) else net
    save_checkpoint(net, tmp_path / file, wrapper=wrapper)
    same = load_checkpoint(tmp_path / file)
    assert type(same) is type(net)
    assert torch.equal(same(x := image(net)), net(x))


@pytest.mark.parametrize("name", ["repsr_m1c6_x2", "ecbsr_m1c6_x2_y"])
def test_the_expansion_is_read_off_a_bare_file(name, tmp_path):
    net = ready(name, expansion=61 / 6)
    save_checkpoint(net, tmp_path / "x.pth")
    assert torch.equal(load_checkpoint(tmp_path / "x.pth")(x := image(net)), net(x))


def test_the_hidden_channels_are_read_off_a_bare_file(tmp_path):
    net = ready("collapsiblesr_m2c6_x3", hidden_channels=20)
    save_checkpoint(net, tmp_path / "x.pth")
    assert torch.equal(load_checkpoint(tmp_path / "x.pth")(x := image(net)), net(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_dtype_is_that_of_the_file(dtype, tmp_path):
    net = ready("repsr_m1c4_x2").to(dtype)
    save_checkpoint(net, tmp_path / "x.safetensors")
    same = load_checkpoint(tmp_path / "x.safetensors")
    assert {tensor.dtype for tensor in same.parameters()} == {dtype}
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in net.state_dict().items())


def test_a_file_of_two_dtypes_loses_nothing(tmp_path):
    sd = {
        key: value.half() if value.dim() == 4 else value for key, value in ready("repsr_m1c4_x2").state_dict().items()
    }
    torch.save(sd, tmp_path / "x.pth")
    same = load_checkpoint(tmp_path / "x.pth").state_dict()
    assert all(torch.equal(same[key].to(value.dtype), value) for key, value in sd.items())
    assert same["body.0.branches.0.norm.running_var"].dtype == torch.float32


def test_frozen_statistics_are_batch_norms_again(tmp_path):
    net = ready("repsr_m1c4_x2")
    freeze_bn_stats(net)
    save_checkpoint(net, tmp_path / "x.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "x.safetensors")(x := image(net)), net(x))


@pytest.mark.parametrize(("file", "wrapper"), [("x.safetensors", None), ("x.pth", "params")])
@pytest.mark.parametrize("given", ["later", "as an option"])
def test_an_unusual_eps_is_kept(given, file, wrapper, tmp_path):
    options = {} if given == "later" else {"bn": partial(nn.BatchNorm2d, eps=1e-2)}
    net = ready("repsr_m1c4_x2", base="bilinear", **options).double()
    net.body[2].branches[1].norm.eps = 0.5
    save_checkpoint(net, tmp_path / file, wrapper=wrapper)
    same, x = load_checkpoint(tmp_path / file), image(net, dtype=torch.float64)
    assert torch.equal(same(x), net(x))
    assert same.body[2].branches[1].norm.eps == 0.5
    fuse_file(tmp_path / file, tmp_path / "plain.safetensors")
    assert_close(load_checkpoint(tmp_path / "plain.safetensors")(x), net(x))


@pytest.mark.parametrize(("eps", "match"), [(-1, "eps=-1"), ("a", "convert string"), (float("nan"), "eps=nan")])
def test_an_eps_that_is_none(eps, match, tmp_path):
    sd, note = ready("repsr_m1c4_x2").state_dict(), {"eps": {"body.0.branches.0.norm": eps}}
    torch.save({"params": sd, "reparam": note}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(tmp_path / "x.pth")


def test_wrapper_and_note(tmp_path):
    net = ready("repsr_m1c4_x2", act="relu", device="cpu")
    save_checkpoint(net, tmp_path / "x.pth", wrapper="params")
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    assert content.keys() == {"params", "reparam"} and content["params"].keys() == net.state_dict().keys()
    assert content["reparam"]["model"] == "RepSR" and "device" not in content["reparam"]["options"]
    save_checkpoint(net, tmp_path / "bare.pth")
    assert torch.load(tmp_path / "bare.pth", weights_only=True).keys() == net.state_dict().keys()
    with pytest.raises(CheckpointError, match=r"RepSR of reparam \(num_blocks=1.*pass act='relu'"):
        load_checkpoint(tmp_path / "bare.pth")
    assert torch.equal(load_checkpoint(tmp_path / "bare.pth", act="relu")(x := image(net)), net(x))
    save_checkpoint(net, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert json.loads(file.metadata()["reparam"]) == content["reparam"]


def test_other_modules_are_saved_without_a_note(tmp_path):
    edsr = EDSR(scale=2, num_blocks=1, channels=4, block=RepSRBlock)
    tied = nn.Sequential(shared := nn.Conv2d(3, 3, 1), nn.ReLU(), shared)
    changed, swapped = ready("plain_m1c4_x2"), ready("plain_m1c4_x2")
    changed.body[0], swapped.body[2] = nn.Conv2d(3, 4, 1), RepSRBlock(4)
    for module in (edsr, tied, changed, swapped, nn.Linear(2, 3).to(memory_format=torch.channels_last)):
        save_checkpoint(module, tmp_path / "x.safetensors")
        with safe_open(tmp_path / "x.safetensors", "pt") as file:
            assert file.metadata() is None
        saved = load_file(tmp_path / "x.safetensors")
        assert all(torch.equal(saved[key], value) for key, value in module.state_dict().items())
    save_checkpoint(edsr, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="no known network"):
        load_checkpoint(tmp_path / "x.safetensors")


# Atomic --------------------------------------------------------------------------------------------------------------


class DiskFullError(OSError):
    pass


@pytest.mark.parametrize("file", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize("error", [DiskFullError("full"), RuntimeError("full"), KeyboardInterrupt("full")])
def test_a_write_that_fails_leaves_the_old_file(file, error, tmp_path, monkeypatch):
    net = ready("plain_m1c4_x2")
    save_checkpoint(net, tmp_path / file)
    before = (tmp_path / file).read_bytes()

    def fail(content, path, *_):
        Path(path).write_text("half of it")
        raise error

    monkeypatch.setattr("reparam.files._tensor_files.save_file", fail)
    monkeypatch.setattr("reparam.files._tensor_files.torch.save", fail)
    expected = CheckpointError if isinstance(error, RuntimeError) else type(error)
    with pytest.raises(expected, match="cannot write .*full" if expected is CheckpointError else "full"):
        save_checkpoint(net, tmp_path / file)
    assert (tmp_path / file).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file]


@pytest.mark.parametrize(("file", "wrapper"), [("x.safetensors", None), ("x.pth", None), ("x.pth", "params")])
def test_two_keys_for_one_tensor(file, wrapper, tmp_path):
    tied = nn.ModuleDict({"first": nn.Conv2d(4, 4, 3), "again": nn.Conv2d(4, 4, 3)})
    tied["again"].weight = tied["first"].weight
    tied.register_buffer("part", torch.arange(1_000_000.0)[:3])  # of a larger one, which is not to come along
    tied.register_buffer("turned", tied.part.view(1, 3).expand(2, 3).T)
    save_checkpoint(tied, tmp_path / file, wrapper=wrapper)
    wanted, found = tied.state_dict(), read_file(tmp_path / file).state_dict
    assert found.keys() == wanted.keys() and (tmp_path / file).stat().st_size < 20_000
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == len(wanted)


@pytest.mark.parametrize("file", ["x.safetensors", "x.pth"])
def test_a_file_may_be_read_by_whom_any_new_file_may(file, tmp_path):
    (tmp_path / "any").touch()
    save_checkpoint(ready("plain_m1c4_x2"), tmp_path / file)
    assert (tmp_path / file).stat().st_mode == (tmp_path / "any").stat().st_mode


def test_where_nothing_can_be_written(tmp_path):
    net = ready("plain_m1c4_x2")
    for file in ("x.safetensors", "x.pth"):
        with pytest.raises(FileNotFoundError, match="there is no directory .*nowhere"):
            save_checkpoint(net, tmp_path / "nowhere" / file)
        (tmp_path / "folder" / file).mkdir(parents=True)
        with pytest.raises(OSError, match="irectory"):
            save_checkpoint(net, tmp_path / "folder" / file)
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["x.pth", "x.safetensors"]
    with pytest.raises(CheckpointError, match=r"got wrapper='params' for x.safetensors"):
        save_checkpoint(net, tmp_path / "x.safetensors", wrapper="params")
    assert not (tmp_path / "x.safetensors").exists()


# Files in other programs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "wrapper"), [("x.safetensors", None), ("x.pth", None), ("x.pth", "params")])
def test_a_saved_fused_repsr_loads_in_spandrel(file, wrapper, tmp_path):
    plain = fuse(ready("repsr_m2c8_x2"))
    save_checkpoint(plain, tmp_path / file, wrapper=wrapper)
    loaded = ModelLoader().load_from_file(tmp_path / file)
    assert (loaded.architecture.id, loaded.scale) == ("Compact", 2)
    assert_close(loaded.model(x := image(plain)), plain(x))


def test_a_span_with_its_eval_conv_computed_anew_loads_in_spandrel(tmp_path):
    # spandrel knows SPAN by 48 channels; the branches are the trained ones, the cache is junk as it is in a file.
    net = randomise(SPAN({"num_in_ch": 3, "feature_channels": 48, "num_out_ch": 3, "upscale": 2}), 0).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.05)
    back = [(r"branches\.1\.layers\.(\d)", r"conv.\1"), (r"branches\.0\.conv\.", "sk.")]
    sd = rename(net.state_dict(), back)
    assert rename(sd, IN_SPAN_NET).keys() == net.state_dict().keys()
    for key in [key for key in sd if key.endswith("sk.weight")]:
        shape = (*sd[key].shape[:2], 3, 3)
        sd |= {key.replace("sk.weight", "eval_conv.weight"): torch.rand(shape)}
        sd |= {key.replace("sk.weight", "eval_conv.bias"): torch.rand(shape[0])}
    fused = fuse_state_dict(sd)
    loaded = ModelLoader().load_from_state_dict(dict(fused))
    assert loaded.architecture.id == "SPAN"
    x = torch.rand(1, 3, 12, 10)
    assert_close(loaded.model.eval()(x), net(x), 1e-5)
    for key, value in loaded.model.state_dict().items():  # spandrel computes them too, in float32
        assert_close(fused[key], value, 1e-5, key)


SOURCES: dict[str, tuple[Callable[[], StateDict], dict]] = {
    "ECBSR": (lambda: of("ecbsr_m4c8_x2_c1"), {"img_range": 1}),
    "ECBSR of 0 to 255": (lambda: of("ecbsr_m4c8_x2_c1"), {"img_range": 255}),
    "ECBSR with identity": (lambda: of("ecbsr_basicsr_m4c8_x2_c3_idt"), {"identity": True, "img_range": 1}),
    "JL-DY": (lambda: {key: value.float() for key, value in jldy()[1].items()}, {}),
    "SESR": (lambda: of("sesr_tiny_m2_f4_x2"), {}),
    "RepSR": (lambda: ready("repsr_m1c4_x2").state_dict(), {}),
    "RepSR, ReLU": (lambda: ready("repsr_m1c4_x2", act="relu").state_dict(), {"act": "relu"}),
    "RepSR, bilinear": (lambda: ready("repsr_m1c4_x2", base="bilinear").state_dict(), {"base": "bilinear"}),
    "ECBSR of ours": (lambda: ready("ecbsr_m1c4_x2", identity=None).state_dict(), {"identity": True}),
    "QARepVGGSR": (lambda: ready("qarepvggsr_m1c4_x2").state_dict(), {}),
}


def of(name: str) -> StateDict:
    """The official keys of a golden file; of ECBSR's six convolutions the first, the second and the last."""
    kept = {"0": "0", "1": "1", "5": "2"}
    parts = ((key.split("."), value) for key, value in read(HERE / f"{name}.safetensors").official.items())
    if not name.startswith("ecbsr"):
        return {".".join(words): value for words, value in parts}
    return {".".join([words[0], kept[words[1]], *words[2:]]): value for words, value in parts if words[1] in kept}


@cache
def source_of(source: str) -> tuple[StateDict, nn.Module]:
    """What a file holds, and the network that it is, neither to be changed."""
    make, told = SOURCES[source]
    with TemporaryDirectory() as folder:
        torch.save(sd := make(), path := Path(folder) / "in.pth")
        return sd, load_checkpoint(path, **{**told, **({"identity": None} if "identity" in told else {})})


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("keys", "target", "wrapper"),
    [
        ("source", "x.safetensors", None),
        ("source", "x.pth", "params"),
        ("reparam", "x.safetensors", None),
        ("reparam", "x.pth", None),
    ],
)
def test_a_fused_file_is_read_as_the_network_that_it_was_or_refused(source, keys, target, wrapper, tmp_path):
    _, told = SOURCES[source]
    sd, net = source_of(source)
    torch.save({wrapper: sd} if wrapper else sd, tmp_path / "in.pth")
    x, refused = image(net), None
    try:
        fuse_file(tmp_path / "in.pth", tmp_path / target, keys=keys, **told)
    except CheckpointError as error:
        refused = str(error)
    if refused is not None:
        assert "bilinear" in refused and not (tmp_path / target).exists()
        return
    reading = {"img_range": told["img_range"]} if keys == "source" and "img_range" in told else {}
    if "act" in told and target == "x.pth" and not wrapper:
        with pytest.raises(CheckpointError, match="pass act='relu'"):
            load_checkpoint(tmp_path / target)
        reading = {"act": told["act"]}
    assert_close(load_checkpoint(tmp_path / target, **reading)(x), net(x))
    if keys == "reparam" and source != "SESR" and "act" not in told:
        assert_close(ModelLoader().load_from_file(tmp_path / target).model(x), net(x))


def test_a_network_of_another_range(tmp_path):
    torch.save(of("ecbsr_m4c8_x2_c1"), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="the keys do not say the range of its images: pass img_range=255"):
        load_checkpoint(tmp_path / "x.pth")
    assert "ECBSR" in inspect_file(tmp_path / "x.pth").network
    wide, unit = (load_checkpoint(tmp_path / "x.pth", img_range=r).double() for r in (1, 255))
    x = image(wide, dtype=torch.float64)
    assert_close(unit(x), wide(255 * x) / 255, 1e-6)
    with pytest.raises(CheckpointError, match="img_range must be a positive number, but got -1"):
        load_checkpoint(tmp_path / "x.pth", img_range=-1)
    save_checkpoint(ready("ecbsr_m1c4_x2", act="softplus"), tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match="Softplus cannot be converted from another range.*img_range=255"):
        load_checkpoint(tmp_path / "y.safetensors", img_range=255)


def test_pixels_unshuffled_before_the_network(tmp_path):
    torch.save(PlainSR(colors=12, scale=1, num_blocks=1, channels=8).state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="takes 12 channels, and an image has 1 or 3.*pass colors=12"):
        load_checkpoint(tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth", colors=12).colors == 12


@pytest.mark.parametrize(
    ("name", "options", "lost"),
    [
        ("repsr_m1c4_x2", {"base": "bilinear"}, "base='bilinear'"),
        ("ecbsr_m1c4_x2", {"identity": None}, "the branches of"),
        ("repvggsr_m1c4_x2", {"bn": partial(nn.BatchNorm2d, eps=1e-2)}, "eps=0.01 of body.0"),
        ("edsr_m1c4_x2", {"res_scale": 0.3}, "res_scale=0.3"),
    ],
)
def test_what_a_bare_file_has_no_room_for(name, options, lost, tmp_path):
    net = ready(name, **options)
    with pytest.raises(CheckpointError, match=f"no room for {lost}.*wrapper='params'"):
        save_checkpoint(net, tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()
    save_checkpoint(net, tmp_path / "x.pth", wrapper="params")
    assert_close(load_checkpoint(tmp_path / "x.pth")(x := image(net)), net(x))


# Nearly fitting, and not at all --------------------------------------------------------------------------------------


def spoilt(name: str, key: str, value: Tensor | None) -> StateDict:
    sd = dict(read(HERE / f"{name}.safetensors").official)
    if value is None:
        del sd[key]
    else:
        sd[key] = value
    return sd


@pytest.mark.parametrize(
    ("name", "key", "value", "match"),
    [
        (
            "ecbsr_m4c8_x2_c1",
            "backbone.2.conv1x1_sbx.k0",
            torch.rand(8, 9, 1, 1),
            r"like ECBSR \(num_blocks=4.*'backbone.2.conv1x1_sbx.k0' has shape \(8, 9, 1, 1\), but \(8, 8, 1, 1\)",
        ),
        (
            "ecbsr_m4c8_x2_c1",
            "backbone.3.conv1x1_lpl.mask",
            None,
            r"'backbone.3.conv1x1_lpl.mask' of shape \(8, 1, 3, 3\) is missing",
        ),
        (
            "ecbsr_m4c8_x2_c1",
            "backbone.3.conv3x3.weight",
            None,
            r"'backbone.3.conv1x1_3x3.b0' of shape .* is unexpected",
        ),
        (
            "ecbsr_m4c8_x2_c1",
            "backbone.5.conv3x3.weight",
            None,
            "looks like ECBSR, but.*'backbone.5.conv3x3.weight' is missing",
        ),
        (
            "ecbsr_m4c8_x2_c1",
            "backbone.5.conv3x3.weight",
            torch.rand(5, 8, 3, 3),
            "5 output channels, but expected 1 times a square",
        ),
        ("ecbsr_m4c8_x2_c1", "tail.weight", torch.rand(2), r"'tail.weight' of shape \(2,\) is unexpected"),
        ("srvgg_compact_prelu", "body.3.weight", None, r"'body.3.weight' of shape \(8,\) is missing"),
        (
            "srvgg_compact_prelu",
            "body.0.weight",
            torch.rand(8),
            r"'body.0.weight' must be the weight of a 2d conv.*\(8,\)",
        ),
        (
            "srvgg_compact_prelu",
            "body.2.bias",
            torch.ones(8, dtype=torch.int64),
            "'body.2.bias' has dtype torch.int64, but",
        ),
        (
            "sesr_tiny_m2_f4_x2",
            "block1.conv_kxk.kernel",
            torch.rand(3, 3, 4, 8),
            r"'block1.conv_kxk.kernel' has shape \(3, 3, 4, 8\), but \(8, 4, 3, 3\)",
        ),
    ],
)
def test_nearly_fitting_files_name_the_first_difference(name, key, value, match, tmp_path):
    torch.save(spoilt(name, key, value), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"cannot load .*x.pth.*{match}"):
        load_checkpoint(tmp_path / "x.pth")


def test_blocks_in_strange_places(tmp_path):
    sd = spoilt("ecbsr_m4c8_x2_c1", "x", torch.rand(1))
    block = {key.removeprefix("backbone.0."): value for key, value in sd.items() if key.startswith("backbone.0.")}
    for place in ("", "a.", "backbone.x."):
        torch.save(
            {**{key: value for key, value in sd.items() if key != "x"}, **{place + k: v for k, v in block.items()}},
            tmp_path / "x.pth",
        )
        with pytest.raises(CheckpointError, match=f"'{place}act.weight' of shape .* is unexpected"):
            load_checkpoint(tmp_path / "x.pth")


def test_unknown_files_list_what_was_looked_for(tmp_path):
    torch.save({"stem.weight": torch.rand(3)}, tmp_path / "x.pth")
    looked = r"no known network; looked for ECBSR \(backbone.0.conv3x3.weight\).*SRVGGNetCompact.*RepVGG \(rbr_dense"
    with pytest.raises(CheckpointError, match=rf"{looked}.*found 1 keys: 'stem.weight'"):
        load_checkpoint(tmp_path / "x.pth")
    torch.save({"n_averaged": torch.tensor(1)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="holds no named tensors, but\n  1 tensors: 'n_averaged'"):
        load_checkpoint(tmp_path / "x.pth")


def test_options_that_the_network_does_not_have(tmp_path):
    save_checkpoint(ready("plain_m1c4_x2"), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="unexpected keyword argument 'identity'"):
        load_checkpoint(tmp_path / "x.pth", identity=None)
    with pytest.raises(
        CheckpointError, match=r"but does not fit: 'body.0.weight' has shape \(4, 3, 3, 3\), but \(9, 3, 3, 3\)"
    ):
        load_checkpoint(tmp_path / "x.pth", channels=9)


# Broken --------------------------------------------------------------------------------------------------------------


def plain_state_dict() -> StateDict:
    return {key: value.clone() for key, value in ready("plain_m2c8_x2").state_dict().items()}


REASONS = (
    "a damaged archive",
    "its archive unpacks to 50009",
    "its archive unpacks to 3001",
    "not a whole safetensors file",
    "not a whole file of torch",
    "is not stored in full",
    "whose tensors share memory",
    "is unexpected",
    "is missing",
    "has shape",
    "holds no named tensors",
    r"holds Tensor (3,), not a state dict",
    "holds 2 networks: 'first', 'second'",
    "holds 2 networks: '0', '1'",
    "holds a os.system with",
    "says num_blocks=1000000000",
    "says device=meta",
    "but empty",
)


def test_two_hundred_broken_files(tmp_path):
    path, expected, errors_seen, count = tmp_path / "x.pth", plain_state_dict(), [], 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, content in broken_files(plain_state_dict):
        path.write_bytes(content)
        count += 1
        net = None
        try:
            net = load_checkpoint(path)
        except ReparamError as error:
            errors_seen.append((name, str(error)))
        if net is not None:  # a bit of one number, or one that means nothing
            assert name.startswith("flipped"), name
            assert net.state_dict().keys() == expected.keys(), name
            assert sum(int((value != expected[key]).sum()) for key, value in net.state_dict().items()) <= 1, name
    assert count == sum(count for count, _ in MAKERS.values()) == 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB; the bombs are of 3 GB and more
    assert [name for name, text in errors_seen if str(path) not in text or len(text) > 2000] == []
    # That the files are broken in the ways that they are meant to be:
    assert [reason for reason in REASONS if not any(reason in text for _, text in errors_seen)] == []


def test_nothing_is_executed(tmp_path):
    flag, path = tmp_path / "flag", tmp_path / "x.pth"
    first, *_ = contents = list(armed(flag, plain_state_dict()))
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"global: GLOBAL \S+\. Files are read without executing their code"):
            load_checkpoint(path)
        assert not flag.exists()
    pickle.loads(first).close()
    assert flag.exists()  # so it was armed


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="it is a directory"):
        load_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="it is not a regular file"):
        load_checkpoint(tmp_path / "pipe")


NO_CHECKPOINTS = {
    b"": "empty.*copy it again",
    b"\x89PNG\r\n\x1a\n": "a PNG image",
    b"\xff\xd8\xff\xe0\0\x10JFIF": "a JPEG image",
    b"<!DOCTYPE html><html>404": "an HTML page.*download the file itself",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:12": "a git-lfs pointer.*git lfs pull",
    b"\x08\x0e\x12\x07pytorch\x1a\x032.1:": "an ONNX model.*`reparam fuse` accepts it",
    b"<?xml version='1.0'?><net>": "an XML file",
    "Grüße".encode(): "a text file",
    b'{"weight_map": {"a.weight": "model-00001-of-00002.safetensors"}}': "a JSON file.*the files that it names",
    b"\0\0\0\0TFL3": "a TensorFlow Lite model",
    b"\x93NUMPY\x01\0": "a NumPy array",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it first",
    b"\xfd7zXZ\0": "an xz archive; unpack it first",
    b"BZh91AY": "a bzip2 archive; unpack it first",
    b"\x28\xb5\x2f\xfd\x04": "a zstd archive; unpack it first",
    b"Rar!\x1a\x07": "a RAR archive; unpack it first",
    b"model.pth".ljust(257, b"\0") + b"ustar": "a tar archive; unpack it first",
    zipped({"a.npy": b"x"}): r"a NumPy archive \(.npz\)",
    zipped({"m/code/x.py": b"x", "m/constants.pkl": b"x", "m/data.pkl": b"x"}): "a TorchScript program.*torch.jit.load",
    zipped({"m/models/model.json": b"x", "m/archive_format": b"pt2"}): "a torch.export program.*torch.export.load",
    zipped({"readme.txt": b"hello"}): "a zip archive that torch did not write.*unpack it",
}


@pytest.mark.parametrize("content", NO_CHECKPOINTS, ids=NO_CHECKPOINTS.values())
def test_a_file_is_called_what_it_is(content, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    match = f"cannot read .*x.pth: it is not a checkpoint.*, but {NO_CHECKPOINTS[content]}"
    for read_it in (load_checkpoint, inspect_file):
        with pytest.raises(CheckpointError, match=match):
            read_it(tmp_path / "x.pth")


def test_an_unreadable_file(tmp_path, monkeypatch):
    save_checkpoint(ready("plain_m1c4_x2"), path := tmp_path / "x.pth")

    def refuse(self, *_):  # root may read anything, so that chmod would not do
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: .*x\.pth"):
        load_checkpoint(path)


@pytest.mark.parametrize("spoil", [Tensor.to_sparse, partial(Tensor.to, device="meta")])
def test_a_tensor_of_the_right_shape_that_is_not_there(spoil, tmp_path):
    sd = plain_state_dict()
    torch.save({**sd, "body.2.weight": spoil(sd["body.2.weight"])}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"tensor 'body.2.weight' of shape \(8, 8, 3, 3\) is not stored in full"):
        load_checkpoint(tmp_path / "x.pth")


def test_layers_that_share_their_memory(tmp_path):
    def of_one(weight: Tensor, count: int) -> StateDict:
        layers = {f"body.{2 * index}.weight": weight for index in range(count)}
        layers |= {f"body.{2 * index}.bias": weight[:, 0, 0, 0] for index in range(count)}
        return layers | {f"body.{2 * index + 1}.weight": weight[:, 0, 0, 0] for index in range(count - 1)}

    torch.save(of_one(torch.rand(4, 4, 3, 3), 5), tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth", colors=4).num_blocks == 3
    torch.save(of_one(torch.rand(64, 64, 3, 3), 200), tmp_path / "x.pth")
    with pytest.raises(
        CheckpointError, match=r"a file of \d{6} bytes whose tensors share memory and would take \d{8} bytes"
    ):
        load_checkpoint(tmp_path / "x.pth")


def test_many_tiny_tensors_are_no_work(tmp_path):
    torch.save({f"body.{index}.weight": torch.rand(1) for index in range(4_000)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="looks like SRVGGNetCompact, but does not fit: 'body.0.weight' must be"):
        load_checkpoint(tmp_path / "x.pth")


def test_an_archive_without_a_state_dict(tmp_path):
    (tmp_path / "x.pth").write_bytes(zipped({"readme.txt": b"hello"}))
    with pytest.raises(CheckpointError, match="a zip archive that torch did not write"):
        load_checkpoint(tmp_path / "x.pth")
