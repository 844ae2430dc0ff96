"""A network is found wherever in a file it is, among whatever else trainings save, or refused with all names."""

from __future__ import annotations

import argparse
import datetime
import functools
import pathlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import randomise
from hypothesis import given
from hypothesis import strategies as st
from test_checkpoints import jldy, original_edsr
from test_golden import CASES, read
from torch import Tensor, nn

from reparam import CheckpointError, create_model, fuse, fuse_file, fuse_state_dict, inspect_file, load_checkpoint
from reparam.files._finder import read_file
from reparam.files._fits import fits
from reparam.files._networks import LAYOUTS

StateDict = dict[str, Tensor]


def of_ours(name: str, **options: Any) -> StateDict:
    return randomise(create_model(name, **options), 0).state_dict()


# Every layout of a network that is known, by a file of it.
ZOO: dict[str, StateDict] = {
    name: of_ours(f"{name}_m1c4_x2") for name in ("plain", "repsr", "ecbsr", "repvggsr", "qarepvggsr", "collapsiblesr")
}
ZOO |= {"edsr": of_ours("edsr_m1c4_x2"), "sesr": of_ours("sesr_m3_x2", hidden_channels=8)}
_GOLDEN = ("ecbsr_m4", "sesr_tiny", "srvgg_")
ZOO |= {"edsr": of_ours("edsr_m1c4_x2"), "sesr": of_ours("sesr_m3_x2", hidden_channels=8)}
ZOO |= {name: read(path).official for name, path in CASES.items() if name.startswith(_GOLDEN)}
ECBSR, SESR = fuse_state_dict(ZOO["ecbsr_m4c8_x2_c1"]), fuse_state_dict(ZOO["sesr_tiny_m2_f4_x2"])
ZOO |= {"ECBSR, fused": ECBSR, "ECBSR, of convolutions": {k.replace(".conv3x3", ""): t for k, t in ECBSR.items()}}
ZOO |= {"SESR, fused": SESR, "sesr, fused": fuse(randomise(create_model("sesr_m3_x2"), 0).eval()).state_dict()}
ZOO |= {"RepSR of JL-DY": jldy()[1], "RepSR of JL-DY, fused": fuse_state_dict(jldy()[1]), "EDSR": original_edsr(2)}


class Config(dict):
    """Of a training code, which whoever reads the file has not."""


class Whole(nn.Module):
    pass


def beside() -> dict[str, Callable[[], Any]]:
    """What trainings save beside their networks."""
    net = nn.Conv2d(2, 2, 3)
    adam = torch.optim.Adam(net.parameters())
    net(torch.rand(1, 2, 5, 5)).sum().backward()
    adam.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(adam, [3, 5])
    vgg = {"features.0.weight": torch.rand(4, 3, 3, 3), "features.2.weight": torch.rand(4, 4, 3, 3)}
    return {
        "epoch": lambda: 7,
        "best_psnr": lambda: np.float64(31.5),
        "history": lambda: np.arange(3),
        "args": lambda: argparse.Namespace(scale=2),
        "folder": lambda: pathlib.PurePosixPath("runs"),
        "date": lambda: datetime.datetime(2020, 1, 1),
        "hyper_parameters": lambda: Config(model="EDSR", loss=functools.partial(int, base=2)),
        "logs": lambda: defaultdict(list, {"l_pix": [0.1, 0.2]}),
        "optimizer": adam.state_dict,
        "optimizer_states": lambda: [adam.state_dict()],
        "lr_schedulers": lambda: [scheduler.state_dict()],
        "rng": torch.get_rng_state,
        "discriminator": lambda: {"body.0.weight": torch.rand(8, 3, 3, 3), "body.2.weight": torch.rand(1, 8, 3, 3)},
        "loss_state": lambda: dict(vgg),
        "nothing": lambda: None,
    }


BESIDE = beside()
IN_KEYS = {"loss.vgg.0.weight": (4, 3, 3, 3), "net_d.body.0.weight": (8, 3, 3, 3), "perceptual.mean": (1, 3, 1, 1)}
WRAPPERS = ["net_g", "params", "params_ema", "model", "ema_model", "ema", "generator", "netG", "state_dict", "weights"]
WRAPPERS += ["model_state_dict", "module", "my_net", "student", "0"]
PREFIXES = ["module.", "_orig_mod.", "net_g.", "model.", "generator.", "ema_model.", "netG.", "my_net.", "0."]


@st.composite
def nested(draw, state_dict: StateDict) -> Any:
    """A file with a state dict in it: prefixes, a loss network in the same keys, wrappers, and things beside."""
    prefix = "".join(draw(st.lists(st.sampled_from(PREFIXES), max_size=3)))
    content: Any = {prefix + key: tensor for key, tensor in state_dict.items()}
    if draw(st.booleans()):
        content |= {key: torch.rand(IN_KEYS[key]) for key in draw(st.sets(st.sampled_from(sorted(IN_KEYS))))}
        content |= {"n_averaged": torch.tensor(3)}
    content = draw(st.sampled_from([dict, OrderedDict]))(content)
    for wrapper in draw(st.lists(st.sampled_from(WRAPPERS), max_size=3)):
        others = {name: BESIDE[name]() for name in sorted(draw(st.sets(st.sampled_from(sorted(BESIDE)), max_size=4)))}
        content = {wrapper: content, **others} if draw(st.booleans()) else {**others, wrapper: content}
        content = [None, content] if draw(st.integers(0, 4)) == 0 else content
    return content


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("found") / "x.pth"


@given(st.sampled_from(sorted(ZOO)), st.booleans(), st.data())
def test_the_same_weights_are_found_wherever_they_are(file, name, legacy, data):
    torch.save(data.draw(nested(ZOO[name])), file, _use_new_zipfile_serialization=not legacy)
    found = read_file(file)
    assert same(found.state_dict, ZOO[name])
    if found.wrapper:  # which is what to ask for, too
        assert same(read_file(file, found.wrapper).state_dict, ZOO[name])


def test_the_zoo_has_every_layout_and_every_one_fits():
    assert [name for name, state_dict in ZOO.items() if not fits(state_dict)] == []
    marks = {next(layout.marks for layout in LAYOUTS if set(layout.marks) <= set(sd)) for sd in ZOO.values()}
    assert marks == {layout.marks for layout in LAYOUTS}


SEVERAL = {
    "EMA": ({"model": "other", "model_ema": "plain"}, "model_ema"),
    "EMA beside params": ({"params": "other", "ema": {"decay": 0.9, "module": "plain"}}, "ema.module"),
    "EMA of both": ({"ema": {"ema_model": "plain", "online_model": "other"}, "model": "other"}, "ema.ema_model"),
    "EMA, then the generator": ({"ema": {"net_g": "plain", "net_x": "other"}, "net_g": "other"}, "ema.net_g"),
    "generator": ({"a": "other", "netG": "plain"}, "netG"),
    "no discriminator": ({"net_d": "other", "sr": "plain"}, "sr"),
    "params before model": ({"model": "other", "params": "plain"}, "params"),
    "a bare one": ({"bare": "plain", "copy": "other"}, None),
    "that fits": ({"first": "critical", "second": "plain"}, "second"),
}


def with_weights(tree: Any, weights: Mapping[str, StateDict]) -> Any:
    if isinstance(tree, str):
        return weights[tree]
    if not isinstance(tree, dict):
        return tree
    bare = weights[tree["bare"]] if "bare" in tree else {}
    return bare | {key: with_weights(value, weights) for key, value in tree.items() if key != "bare"}


@pytest.mark.parametrize("case", SEVERAL)
@pytest.mark.parametrize("flat", [False, True])
def test_which_of_several(case, flat, tmp_path):
    plain = ZOO["plain"]
    weights = {"plain": plain, "other": {key: tensor + 1 for key, tensor in plain.items()}}
    weights["critical"] = {"body.0.weight": torch.rand(8, 3, 3, 3), "body.2.weight": torch.rand(1, 8, 3, 3)}
    tree, name = SEVERAL[case]
    content = with_weights(tree, weights)
    torch.save(flattened(content) if flat and name else content, tmp_path / "x.pth")
    found = read_file(tmp_path / "x.pth")
    assert same(found.state_dict, plain) and found.wrapper in (name, f"{name}".removesuffix(".module"))


def flattened(tree: Mapping[str, Any], prefix: str = "") -> StateDict:
    """With the keys of nested dicts as prefixes, as a module that holds them all saves itself."""
    flat: StateDict = {}
    for key, value in tree.items():
        if isinstance(value, Tensor):
            flat[prefix + key] = value
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {}
    return flat


PAIRS = [("first", "second"), ("net_g_a", "net_g_b"), ("x.ema", "y.ema"), ("model.a", "model.b")]


@pytest.mark.parametrize("names", PAIRS)
@pytest.mark.parametrize("flat", [False, True])
def test_several_of_which_no_name_tells_the_right_one(names, flat, tmp_path):
    content: dict[str, Any] = {}
    for number, name in enumerate(names):
        *outer, inner = name.split(".")
        place = functools.reduce(lambda place, key: place.setdefault(key, {}), outer, content)
        place[inner] = {key: tensor + number for key, tensor in ZOO["edsr"].items()}
    torch.save({"state_dict": flattened(content)} if flat else content, tmp_path / "x.pth")
    start = "state_dict." if flat else ""
    one, two = (start + name for name in names)
    for read_it in (load_checkpoint, inspect_file):
        with pytest.raises(CheckpointError, match=f"x.pth holds 2 networks: '{one}', '{two}', .*wrapper='{one}'"):
            read_it(tmp_path / "x.pth")
    for number, name in enumerate((one, two)):
        found = read_file(tmp_path / "x.pth", wrapper=name).state_dict
        assert same(found, {key: tensor + number for key, tensor in ZOO["edsr"].items()})


def test_state_dicts_of_unknown_networks(tmp_path):
    one, two = {"stem.weight": torch.rand(2)}, {"top.weight": torch.rand(3)}
    torch.save({"a": one, "b": two}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"2 state dicts, none of a known network: 'a', 'b',.*--wrapper a\)"):
        read_file(tmp_path / "x.pth")
    torch.save({"model": one, "b": two, "optimizer": {"state": {0: two}, "param_groups": []}}, tmp_path / "x.pth")
    assert same(read_file(tmp_path / "x.pth").state_dict, one)
    with pytest.raises(CheckpointError, match=r"(?s)no known network.*holds\n  model:\n    1 tensors: 'stem.w.*b:"):
        load_checkpoint(tmp_path / "x.pth")


def test_a_part_of_another_network_is_not_taken_for_one(tmp_path):
    """A layer beside it that no training needs may belong to it."""
    sd = {**{f"trunk.{key}": tensor for key, tensor in ZOO["plain"].items()}, "post.weight": torch.rand(3, 3, 1, 1)}
    torch.save({"state_dict": sd}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"no known network.*wrapper='state_dict.trunk' reads it alone"):
        load_checkpoint(tmp_path / "x.pth")
    assert same(read_file(tmp_path / "x.pth", wrapper="state_dict.trunk").state_dict, ZOO["plain"])
    assert read_file(tmp_path / "x.pth").state_dict.keys() == sd.keys()


def test_blocks_of_an_unknown_network_keep_their_keys(tmp_path):
    sd = {f"backbone.{key}": tensor for key, tensor in read(CASES["repvgg_tiny_net_g"]).official.items()}
    torch.save({"model": sd, "args": argparse.Namespace()}, tmp_path / "x.pth")
    assert read_file(tmp_path / "x.pth").state_dict.keys() == sd.keys()


def test_an_ema_without_buffers_says_where_the_others_are(tmp_path):
    net = randomise(create_model("repsr_m1c4_x2"), 0)
    torch.save({"model": net.state_dict(), "ema": dict(net.named_parameters())}, tmp_path / "x.pth")
    with pytest.raises(
        CheckpointError, match=r"running_mean.* is missing.*from 'ema', and there is also wrapper='model'"
    ):
        load_checkpoint(tmp_path / "x.pth")
    assert same(load_checkpoint(tmp_path / "x.pth", wrapper="model").state_dict(), net.state_dict())


def test_a_fused_file_has_the_state_dict_under_the_same_keys(tmp_path):
    torch.save({"state_dict": {"net_g": ZOO["repsr"]}, "epoch": np.float32(1)}, tmp_path / "x.pth")
    assert inspect_file(tmp_path / "x.pth").wrapper == "state_dict.net_g"
    fuse_file(tmp_path / "x.pth", tmp_path / "y.pth")
    written = torch.load(tmp_path / "y.pth", weights_only=True)
    assert "body.0.weight" in written["state_dict"]["net_g"]
    assert read_file(tmp_path / "y.pth").note["model"] == "RepSR"


@pytest.mark.parametrize("content", [Whole(), {"model": Whole(), "epoch": 3}])
def test_a_network_that_was_saved_as_an_object(content, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    match = r"(?s)a whole module, an object of .*Whole.*load it there and save its state_dict\(\)"
    with pytest.raises(CheckpointError, match=match):
        read_file(tmp_path / "x.pth")


def test_an_object_beside_is_no_hindrance(tmp_path):
    torch.save({"model": Whole(), "state": ZOO["plain"]}, tmp_path / "x.pth")
    assert same(read_file(tmp_path / "x.pth").state_dict, ZOO["plain"])


def test_a_file_that_holds_itself(tmp_path):
    content: dict[str, Any] = {"net": ZOO["plain"], "more": [1]}
    content["more"].append(content)
    torch.save(content, tmp_path / "x.pth")
    assert same(read_file(tmp_path / "x.pth", wrapper="net").state_dict, ZOO["plain"])
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep, deep]
    torch.save({"net": ZOO["plain"], "deep": deep}, tmp_path / "x.pth")
    assert same(read_file(tmp_path / "x.pth").state_dict, ZOO["plain"])


def test_what_is_found_instead_is_drawn(tmp_path):
    torch.save({"epoch": 3, "log": {"loss": [0.1], "rate": np.float32(1)}, "x" * 99: []}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as error:
        read_file(tmp_path / "x.pth")
    lines = str(error.value).splitlines()
    assert lines[0].endswith("holds no named tensors, but")
    assert lines[1:5] == ["  epoch: int", "  log:", "    loss:", "      0: float"]
    assert "scalar" in lines[5] and len(lines[6]) < 60 and len(lines) == 7
    torch.save([*range(99)], tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"  11: int\n  \.\.\.$"):
        read_file(tmp_path / "x.pth")
