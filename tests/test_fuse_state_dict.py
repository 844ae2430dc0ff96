"""State dicts of the papers' codes are fused without a model, into the tensors that their own fusing makes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from golden_nets import IN_SESR, load, rename
from helpers import assert_close, randomise
from test_golden import (
    CASES,
    HERE,
    KINDS,
    ROUNDING,
    ROUNDING_F32,
    Golden,
    errors,
    files,
    fused_keys,
    read,
    relative,
)
from torch import Tensor, nn

from reparam import CheckpointError, FuseError, QARepVGGBlock, fuse, fuse_state_dict
from reparam.files._found_blocks import FoundBlock, find_blocks_in
from reparam.files._layouts import LAYOUTS, Options

StateDict = dict[str, Tensor]

ECB_PATH = "ecb_seq_"  # one edge path of an ECB, and no block
PLAIN = "srvgg_"  # nothing to fuse
DEPLOYED = "rbr_reparam|reparam_conv|dbb_reparam|fused_conv|orepa_reparam|or1x1_reparam|eval_conv|conv3x3|rep_conv"
DEPLOYED += "|lk_origin"
every_block_file = files(lambda name: not name.startswith((ECB_PATH, PLAIN)))


def options_of(golden: Golden) -> dict:
    """What the keys leave open, as the official configuration has it."""
    config = golden.meta["config"]
    found = {ours: config[name] for name, ours in (("with_idt", "identity"), ("with_13", "with_13")) if name in config}
    if golden.meta["block"] == "QARepVGGBlock":
        found |= {
            "identity": config.get("use_residual_connection", True),
            "groups": config.get("groups", 1),
            "eps": 1e-5,
        }
    return found


def blocks_of(golden: Golden) -> list[FoundBlock]:
    return find_blocks_in(golden.official, Options(**options_of(golden)))


def cast(state_dict: Mapping[str, Tensor], dtype: torch.dtype) -> StateDict:
    return {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in state_dict.items()}


def fused_by_place(fused: StateDict, rules=()) -> StateDict:
    """Tensors under the name of the module that became a convolution, whatever the convolution is called in it."""
    renamed = rename(fused, [*rules, (rf"(^|\.)({DEPLOYED}|block)\.(?=weight|bias)", r"\1")])
    return with_points(renamed)


def with_points(fused: StateDict) -> StateDict:
    """With the 1x1 after a block of PlainUSR in it, which writes one channel: `fuse_state_dict` leaves it, they do not.

    What follows moves up by one in their code.
    """
    for key in [key for key in fused if re.search(r"body\.[35]\.conv\.weight$", key)]:
        stem, number = re.fullmatch(r"(.*body\.)(\d)\.conv\.weight", key).groups()
        point, shift = fused.pop(key), fused.pop(f"{stem}{number}.conv.bias")
        weight, bias = (fused[f"{stem}{int(number) - 1}.{name}"].clone() for name in ("weight", "bias"))
        bias[0] = point.flatten() @ bias + shift[0]
        weight[0] = torch.einsum("i,ichw->chw", point.flatten(), weight)
        fused |= {f"{stem}{int(number) - 1}.weight": weight, f"{stem}{int(number) - 1}.bias": bias}
        following = f"{stem}{int(number) + 1}."
        fused = {re.sub(rf"^{re.escape(following)}", f"{stem}{number}.", key): value for key, value in fused.items()}
    return fused


def official(path, prefix: str) -> StateDict:
    """The tensors of the official fusing, under their own keys."""
    return {key.removeprefix(prefix): value for key, value in read(path).tensors.items() if key.startswith(prefix)}


@every_block_file
def test_fused_tensors_are_the_official_ones(path):
    golden = read(path)
    is_jldy = golden.meta["repo"] == "JL-DY/RepSR" or "jldy" in path.stem
    options = options_of(golden) | (
        {"eps": 1e-7} if is_jldy else {}
    )  # which their fusing takes, but not their batch norm
    ours = fused_by_place(fuse_state_dict(cast(golden.official, torch.float64), **options))
    if path.stem == "sesr_block_k3_4_bias":  # their collapsed form puts the bias on every tap
        ours["weight"] += ours.pop("bias").view(-1, 1, 1, 1)
    # Some official conversions go through float32 also when they are asked for float64; the outputs say so.
    exactly = (golden.meta.get("fuse_err_f64_rel") or 0.0) < ROUNDING or is_jldy
    for prefix, tolerance in (("fused64.", ROUNDING if exactly else ROUNDING_F32), ("fused.", ROUNDING_F32)):
        for key, theirs in fused_by_place(official(path, prefix)).items():
            assert relative(ours[key], theirs) <= tolerance, key


@every_block_file
def test_fused_tensors_compute_the_official_unfused_graph(path):
    golden = read(path)
    rules = IN_SESR if golden.meta["block"] == "SESR" else KINDS[golden.meta["block"]].fused_rules
    fused = fuse_state_dict(cast(golden.official, torch.float64), **options_of(golden))
    ours, plain = fused_by_place(fused, rules), fuse(golden.net().double())
    for key in fused_keys(plain):
        (place,) = fused_by_place({key: torch.empty(0)})
        plain.get_parameter(key).data.copy_(ours[place])
    assert max(errors(plain, golden).values()) <= golden.rounding


NETS = (
    "ecbsr_m",
    "repvgg_tiny",
    "fmen_",
    "orepa_vgg",
    "repsr_hat",
    "repsr_jldy_m",
    "plainusr_blockv1",
    "repvggplus_s1",
)


@files(lambda name: name.startswith(NETS))
def test_keys_are_those_of_the_official_inference_code(path):
    golden = read(path)
    fused, theirs = fuse_state_dict(golden.official, **options_of(golden)), official(path, "fused.")
    if "weight" in theirs:  # of a block, whose convolution alone is stored
        fused = fused_by_place(fused)
    assert fused.keys() == theirs.keys()


@files(lambda name: name.startswith(ECB_PATH))
def test_an_edge_path_inside_of_a_block_is_the_official_one(path):
    golden = read(path)
    slot = "conv1x1_sbx" if "sobelx" in path.stem else "conv1x1_lpl"
    outside, inside = golden.meta["config"]["out"], golden.meta["config"]["inp"]
    sd = {"conv3x3.weight": torch.zeros(outside, inside, 3, 3), "conv3x3.bias": torch.zeros(outside)}
    sd |= {"conv1x1_3x3.k0": torch.ones(2, inside, 1, 1), "conv1x1_3x3.b0": torch.ones(2)}
    sd |= {"conv1x1_3x3.k1": torch.zeros(outside, 2, 3, 3), "conv1x1_3x3.b1": torch.zeros(outside)}
    for edge in ("conv1x1_sbx", "conv1x1_sby", "conv1x1_lpl"):
        sd |= {f"{edge}.{key}": value if edge == slot else value * 0 for key, value in golden.official.items()}
    fused = fuse_state_dict(cast(sd, torch.float64))
    for key in ("weight", "bias"):
        assert relative(fused[f"conv3x3.{key}"], golden.tensors[f"fused64.{key}"]) <= ROUNDING


@every_block_file
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_number_is_the_exact_one_rounded_once(path, dtype):
    golden = read(path)
    sd = cast(golden.official, dtype)
    found, exact = (fuse_state_dict(given, **options_of(golden)) for given in (sd, cast(sd, torch.float64)))
    assert found.keys() == exact.keys()
    for key, value in found.items():
        if value.is_floating_point():
            assert value.dtype == dtype, key
            assert torch.equal(value, exact[key].to(dtype)), key


# What is not a block -------------------------------------------------------------------------------------------------


def of(name: str) -> StateDict:
    return dict(read(HERE / f"{name}.safetensors").official)


def inside(prefix: str, state_dict: StateDict) -> StateDict:
    return {prefix + key: tensor for key, tensor in state_dict.items()}


def test_strangers_keep_their_place_and_are_the_same_objects():
    head, tail = torch.rand(3), torch.ones(2, dtype=torch.long)
    sd = {"head": head, **inside("a.b.", of("repvgg_s1_id_g2_8")), "a.gate": tail, **inside("c.", of("dbb_k3_dw_6"))}
    sd |= {"tail": tail}
    keys, values = list(sd), [tensor.clone() for tensor in sd.values()]
    fused = fuse_state_dict(sd)
    convs = [["a.b.rbr_reparam.weight", "a.b.rbr_reparam.bias"], ["c.dbb_reparam.weight", "c.dbb_reparam.bias"]]
    assert list(fused) == ["head", *convs[0], "a.gate", *convs[1], "tail"]
    assert fused["head"] is head and fused["a.gate"] is tail and fused["tail"] is tail
    assert list(sd) == keys and all(torch.equal(tensor, value) for tensor, value in zip(sd.values(), values))
    for place, name in (("a.b.", "repvgg_s1_id_g2_8"), ("c.", "dbb_k3_dw_6")):
        alone = fuse_state_dict(of(name))
        assert all(torch.equal(fused[place + key], value) for key, value in alone.items())


def test_span_keeps_its_branches_and_gets_its_eval_conv_anew():
    sd = of("span_spab_6")
    fused = fuse_state_dict(sd)
    assert fused.keys() == sd.keys()
    changed = {key for key in sd if fused[key] is not sd[key]}
    assert changed == {key for key in sd if ".eval_conv." in key}
    without = {key: tensor for key, tensor in sd.items() if ".eval_conv." not in key}
    assert all(torch.equal(value, fused[key]) for key, value in fuse_state_dict(without).items())


def test_a_dtype_is_that_of_the_kernel():
    sd = {key: tensor.half() if tensor.dim() == 4 else tensor for key, tensor in of("repvgg_s1_id_8").items()}
    beside = fuse_state_dict({"gate": torch.rand(2), **inside("a.", sd)})
    assert {tensor.dtype for tensor in beside.values()} == {torch.float16, torch.float32}
    assert fuse_state_dict(sd)["rbr_reparam.bias"].dtype == torch.float16


def test_batch_norms_from_before_torch_counted_batches():
    sd = of("repvgg_s1_id_8")
    old = {key: tensor for key, tensor in sd.items() if not key.endswith("num_batches_tracked")}
    assert all(torch.equal(value, fuse_state_dict(old)[key]) for key, value in fuse_state_dict(sd).items())
    halved = {key: tensor.float() for key, tensor in sd.items()}  # whoever casts a dict casts the counts too
    assert all(torch.equal(value, fuse_state_dict(halved)[key]) for key, value in fuse_state_dict(sd).items())


def test_a_batch_norm_that_never_saw_a_batch():
    sd = inside("stage1.0.", of("repvgg_s1_id_8"))
    norm = "stage1.0.rbr_1x1.bn"
    sd[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    fuse_state_dict(sd)  # a converted file, in which nobody counted
    sd |= {f"{norm}.running_mean": torch.zeros(8), f"{norm}.running_var": torch.ones(8)}
    with pytest.raises(FuseError, match=r"block 'stage1.0' \(RepVGG\).*'branches.1.norm'.*num_batches_tracked=0"):
        fuse_state_dict(sd)


def test_a_conv3xc_without_biases():
    sd = of("span_conv3xc_6to6_g2_s2")
    zeros = {key: tensor * 0 if key.endswith("bias") else tensor for key, tensor in sd.items()}
    bare = {key: tensor for key, tensor in sd.items() if not key.endswith("bias") or key.startswith("eval_conv")}
    assert all(
        torch.equal(fuse_state_dict(bare)[f"eval_conv.{name}"], fuse_state_dict(zeros)[f"eval_conv.{name}"])
        for name in ("weight", "bias")
    )
    half = {key: tensor for key, tensor in sd.items() if key != "conv.1.bias"}
    with pytest.raises(CheckpointError, match=r"keys of SPAN's Conv3XC.*'conv.1.bias' of shape \(12,\) is missing"):
        fuse_state_dict(half)


# What is left open ---------------------------------------------------------------------------------------------------


def test_eps_by_pattern_of_the_name():
    sd = of("repvgg_s1_id_8")
    both = {**inside("stage1.0.", sd), **inside("stage2.0.", sd)}
    plain, other = fuse_state_dict(sd), fuse_state_dict(sd, eps=1e-3)
    assert relative(plain["rbr_reparam.weight"], other["rbr_reparam.weight"]) > 1e-3
    fused = fuse_state_dict(both, eps={"stage2.*": 1e-3, "*.0": 1e-5})
    for place, expected in (("stage1.0.", plain), ("stage2.0.", other)):
        assert all(torch.equal(fused[place + key], value) for key, value in expected.items())
    assert all(torch.equal(fuse_state_dict(sd, eps={"x": 1})[key], value) for key, value in plain.items())
    zero = {key: tensor + 1 if key.endswith("running_var") else tensor for key, tensor in sd.items()}
    assert not torch.equal(
        fuse_state_dict(zero, eps=0)["rbr_reparam.weight"], fuse_state_dict(zero)["rbr_reparam.weight"]
    )


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("ecb_8to8_prelu_idt", False),
        ("repsr_jldy_block_4_var1", True),
        ("repsr_hat_block_5", True),
    ],
)
def test_identity(name, default):
    fused = {identity: fused_by_place(fuse_state_dict(of(name), identity=identity)) for identity in (True, False, None)}
    assert torch.equal(fused[None]["weight"], fused[default]["weight"])
    difference = (fused[True]["weight"] - fused[False]["weight"])[:, :, 1, 1]
    torch.testing.assert_close(difference, torch.eye(len(difference)), atol=1e-5, rtol=0)


def test_efdn_ignores_the_path_that_it_does_not_use():
    sd = of("edbb_6to8_13_linear")
    spoilt = {key: tensor * 2 if "conv1x1_3x3" in key else tensor for key, tensor in sd.items()}
    plain, other = fuse_state_dict(sd), fuse_state_dict(spoilt)
    assert all(torch.equal(plain[key], other[key]) for key in plain)
    plain, other = (fuse_state_dict(given, with_13=True) for given in (sd, spoilt))
    assert not torch.equal(plain["rep_conv.weight"], other["rep_conv.weight"])


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("wide", [4, 6])
def test_qarepvgg_of_yolov6(pool, wide):
    # No file is from there; the names are YOLOv6's, and the function is its forward, written with torch's layers.
    block = randomise(QARepVGGBlock(4, wide, pool=pool), 0)
    conv, bn = block.branches[0].conv, block.branches[0].norm
    point, after = block.branches[1].conv, block.norm
    parts = {"rbr_dense.conv": conv, "rbr_dense.bn": bn, "rbr_1x1": point, "bn": after}
    sd = {
        f"{name}.{key}": value.double() if value.is_floating_point() else value
        for name, part in parts.items()
        for key, value in part.state_dict().items()
    }
    for part in parts.values():
        part.double().eval()
    x = torch.rand(2, 4, 6, 7).double()
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    total = bn(nn.functional.conv2d(padded, conv.weight)) + point(x)
    if wide == 4:
        total = total + x + (nn.functional.avg_pool2d(x, 3, 1, 1) if pool else 0)
    fused = fuse_state_dict(sd, pool=pool, identity=True, eps=1e-5)
    assert fused.keys() == {"rbr_reparam.weight", "rbr_reparam.bias"}
    assert_close(nn.functional.conv2d(padded, fused["rbr_reparam.weight"], fused["rbr_reparam.bias"]), after(total))


def test_grouped_orepa():
    # No file has groups that are not single channels; how its tensors become ours is tested beside the golden files.
    groups, inside, outside, kind = 2, 6, 4, "weight_orepa"
    shapes = {"origin": (outside, 3, 3, 3), "avg_conv": (outside, 3, 1, 1), "pfir_conv": (outside, 3, 1, 1)}
    shapes |= {"1x1_kxk_idconv1": (inside, 3, 1, 1), "1x1_kxk_conv2": (outside, 3, 3, 3), "1x1": (outside, 3, 1, 1)}
    shapes |= {"gconv_dw": (8 * inside, 1, 3, 3), "gconv_pw": (outside, 24, 1, 1)}
    shapes |= {"avg_avg": (3, 3), "prior": (outside, 3, 3)}
    sd = {f"{kind}_{name}": torch.randn(shape).double() for name, shape in shapes.items()}
    sd |= {"vector": torch.randn(6, outside).double(), "id_tensor": torch.eye(3)[[0, 1, 2] * 2, :, None, None].double()}
    sd |= {f"bn.{key}": value for key, value in randomise(nn.BatchNorm2d(outside), 0).double().state_dict().items()}
    config = {"in_channels": inside, "out_channels": outside, "kernel_size": 3, "padding": 1, "groups": groups}
    net = load(KINDS["OREPA"].build(config).double().eval(), KINDS["OREPA"].ours(sd, config))
    expected, fused = fuse(net).state_dict(), fuse_state_dict(sd)
    for name in ("weight", "bias"):
        assert relative(fused[f"orepa_reparam.{name}"], expected[f"block.{name}"]) <= ROUNDING


def test_every_layout_is_among_the_files_and_found_once():
    kinds = {
        path.stem: {block.layout.name for block in blocks_of(read(path))}
        for path in CASES.values()
        if not path.stem.startswith((ECB_PATH, PLAIN))
    }
    assert all(len(found) == 1 for name, found in kinds.items() if not name.startswith("fmen"))
    missing = {layout.name for layout in LAYOUTS} - set().union(*kinds.values())
    elsewhere = {"RTMoSR's RepConv", "OmniShift", "RepRLFN", "UniRepLKNet's block", "UniRepLKNet's small block"}
    elsewhere |= {"QARepVGG", "FMEN's HFAB"}  # YOLOv6's is tested above, the attention in $REPARAM_GOLDEN
    assert missing <= elsewhere  # test_whole_blocks.py


@pytest.mark.parametrize(
    ("first", "second", "weight"), [("conv_kxk", "conv_1x1", "weight"), ("conv_expand", "conv_squeeze", "weight")]
)
def test_other_names_of_sesr(first, second, weight):
    names = {"conv_kxk.kernel": f"{first}.{weight}", "conv_1x1.kernel": f"{second}.{weight}"}
    names |= {"conv_kxk.bias": f"{first}.bias", "conv_1x1.bias": f"{second}.bias"}
    sd = of("sesr_block_k5_1to4_bias0")
    fused = fuse_state_dict({names[key]: tensor for key, tensor in sd.items()})
    assert all(torch.equal(fused[key], value) for key, value in fuse_state_dict(sd).items())


# What is refused -----------------------------------------------------------------------------------------------------


def test_unknown_state_dicts_are_refused_with_what_was_looked_for():
    with pytest.raises(
        CheckpointError, match=r"looked for keys of EDBB \(rep_conv.weight\).*found 1 keys: 'conv.weight'$"
    ):
        fuse_state_dict({"conv.weight": torch.rand(1)})
    with pytest.raises(CheckpointError, match=r"found 0 keys: none"):
        fuse_state_dict({})
    with pytest.raises(CheckpointError, match=r"found no block to fuse.*RepVGG \(rbr_dense.conv.weight\)"):
        fuse_state_dict(of("srvgg_compact_prelu"))
    timm = {"0.conv_kxk.0.conv.weight": torch.rand(4, 4, 3, 3), "0.identity.weight": torch.rand(4)}
    with pytest.raises(CheckpointError, match="found no block to fuse"):
        fuse_state_dict(timm)


def changed(state_dict: StateDict, **tensors: Tensor | None) -> StateDict:
    new = {**state_dict, **{key.replace("__", "."): value for key, value in tensors.items()}}
    return inside("net.", {key: value for key, value in new.items() if value is not None})


@pytest.mark.parametrize(
    ("name", "tensors", "match"),
    [
        (
            "repvgg_s1_id_8",
            {"rbr_1x1__conv__weight": torch.rand(8, 8, 3, 3)},
            r"block 'net' has the keys of RepVGG.*'rbr_1x1.conv.weight' has shape \(8, 8, 3, 3\), but \(8, 8, 1, 1\)",
        ),
        ("repvgg_s1_id_8", {"rbr_dense__bn__weight": None}, r"'rbr_dense.bn.weight' of shape \(8,\) is missing"),
        (
            "repvgg_s1_id_8",
            {"rbr_1x1__bn__running_var": torch.ones(8, dtype=torch.int8)},
            r"'rbr_1x1.bn.running_var' has dtype torch.int8",
        ),
        (
            "repvgg_s1_id_8",
            {"rbr_1x1__conv__bias": torch.ones(8)},
            r"'rbr_1x1.conv.bias' of shape \(8,\) is unexpected",
        ),
        ("repvgg_s1_id_8", {"rbr_dense__conv__weight": torch.ones(8)}, r"must be the weight of a 2d conv.*\(8,\)"),
        ("dbb_k3_dw_6", {"dbb_1x1_kxk__conv2__weight": None}, "'dbb_1x1_kxk.conv2.weight' is missing"),
        ("orepa_k3_8to8_s2_relu", {"weight_orepa_prior": None}, "'weight_orepa_prior' is missing"),
        ("orepa_k3_8to8_s2_relu", {"vector": torch.ones(6, 9)}, r"would get shape \(9,\), but \(8,\)"),
        ("orepa_k3_8to8_s2_relu", {"vector": torch.ones(2, 8)}, "keys of OREPA.*out of bounds"),
        ("orepa_1x1_8to4_s2", {"vector": torch.tensor(1.0)}, "keys of OREPA 1x1.*0-d tensor"),
        ("plainusr_repmbconv_8", {"se__se__1__weight": None}, "'se.se.1.weight' is missing"),
        (
            "unirep_dilated_k7_4",
            {"dil_conv_k3_²__weight": torch.ones(4, 1, 3, 3)},
            "keys of UniRepLKNet.*invalid literal",
        ),
        ("ecb_8to8_prelu_idt", {"conv3x3__weight": torch.rand(8, 8, 0, 3)}, r"has shape \(8, 8, 0, 3\)"),
    ],
)
def test_nearly_fitting_blocks_are_refused_by_key_and_shape(name, tensors, match):
    with pytest.raises(CheckpointError, match=match):
        fuse_state_dict(changed(of(name), **tensors))


def sd_of(**parts: nn.Module) -> StateDict:
    named = {name.replace("__", "."): part for name, part in parts.items()}
    return {f"{n}.{key}": value for n, part in named.items() for key, value in randomise(part, 0).state_dict().items()}


def an_inverted_residual() -> StateDict:
    convs = {"expand_conv": nn.Conv2d(4, 8, 1), "fea_conv": nn.Conv2d(8, 8, 3), "reduce_conv": nn.Conv2d(8, 4, 1)}
    return sd_of(**convs, res_conv3x3=nn.Conv2d(4, 4, 3))


@pytest.mark.parametrize("prefix", ["", "a.", "a.b."])
@pytest.mark.parametrize(
    ("sd", "stranger"),
    [
        (an_inverted_residual(), "res_conv3x3.weight"),
        (of("repvgg_s1_id_8") | sd_of(rbr_1x1_2__conv=nn.Conv2d(8, 8, 1)), "rbr_1x1_2.conv.weight"),
        (of("mobileone_k5_g2_6") | {"rbr_conv.9.conv.weight": torch.rand(6, 3, 5, 5)}, "rbr_conv.9.conv.weight"),
        (of("dbb_k3_dw_6") | {"bn.weight": torch.rand(6)}, "bn.weight"),
        (of("ecb_8to8_prelu_idt") | {"seful.weight": torch.rand(6)}, "seful.weight"),
        (of("repsr_jldy_block_4_var1") | {"branch3.0.weight": torch.rand(6)}, "branch3.0.weight"),
        (of("span_conv3xc_6to6_g2_s2") | {"sk_2.weight": torch.rand(6)}, "sk_2.weight"),
    ],
)
def test_strangers_in_a_block_are_named(sd, stranger, prefix):
    with pytest.raises(CheckpointError, match=f"has the keys of .*{re.escape(prefix + stranger)}"):
        fuse_state_dict({"x.weight": torch.rand(1), **inside(prefix, sd)} if prefix else sd)


def test_what_the_inference_code_keeps_beside_the_convolution():
    gate = {"se.down.weight": torch.rand(2, 8, 1, 1), "nonlinearity.weight": torch.rand(8)}
    fused = fuse_state_dict(inside("a.", of("repvgg_s1_id_8") | gate))
    assert all(fused[f"a.{key}"] is value for key, value in gate.items())


def grouped_qarepvgg() -> tuple[StateDict, nn.Module]:
    block = randomise(QARepVGGBlock(8, groups=2), 0).double().eval()
    names = {"rbr_dense.conv": block.branches[0].conv, "rbr_dense.bn": block.branches[0].norm}
    names |= {"rbr_1x1": block.branches[1].conv, "bn": block.norm}
    return {f"{n}.{key}": value for n, part in names.items() for key, value in part.state_dict().items()}, block


def test_a_grouped_qarepvgg_keeps_its_identity():
    sd, block = grouped_qarepvgg()
    fused = fuse_state_dict(sd, identity=True, groups=2, pool=False, eps=1e-5)
    assert_close(fused["rbr_reparam.weight"], block.to_conv().weight)
    without = fuse_state_dict(sd, identity={"*": False}, eps={"*": 1e-5})
    assert relative(without["rbr_reparam.weight"], fused["rbr_reparam.weight"]) > 1e-3


@pytest.mark.parametrize("untold", ["identity", "groups", "pool", "eps"])
def test_geometry_that_no_key_tells_is_asked_for(untold):
    told = {"identity": True, "groups": 2, "pool": False, "eps": 1e-5}
    with pytest.raises(CheckpointError, match=f"the keys do not say.*pass {untold}"):
        fuse_state_dict(grouped_qarepvgg()[0], **{key: value for key, value in told.items() if key != untold})


def test_a_square_1x1_without_an_identity_in_its_name():
    sd = {key.replace("idconv1", "conv1"): value for key, value in of("dbb_k3_g2_8to12").items()}
    with pytest.raises(CheckpointError, match="'conv1' has 8 output channels for 8 input channels"):
        fuse_state_dict(sd)


def test_files_that_would_be_half_fused_are_refused():
    conv3xc = inside("body.0.fc1.conv3.", of("span_conv3xc_6to6_g2_s2"))
    stale = {"body.0.fc1.conv_3x3_rep.weight": torch.rand(6, 6, 3, 3), "body.0.fc1.alpha": torch.rand(3)}
    with pytest.raises(CheckpointError, match=r"part of the block 'body.0.fc1'.*including 'conv_3x3_rep.weight'"):
        fuse_state_dict(conv3xc | stale)
    net = inside("stages.0.1.dwconv.", of("unirep_dilated_k7_4"))
    assert "stages.0.1.dwconv.lk_origin.bias" in fuse_state_dict(net)
    net |= {"stages.0.1.norm.running_var": torch.ones(4), "stages.0.1.pwconv2.0.weight": torch.rand(4, 16)}
    with pytest.raises(
        CheckpointError, match=r"part of the block 'stages.0.1'.*'norm.running_var', 'pwconv2.0.weight'"
    ):
        fuse_state_dict(net)


# What the documentation says -----------------------------------------------------------------------------------------


def test_the_table_of_blocks_in_the_docs():
    page = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text().partition("## Blocks")[2]
    rows = re.findall(r"^\| ([^|]+) \| `([^`|]+)` \| ([^|]+) \|$", page, re.MULTILINE)
    assert sorted((name, mark) for name, mark, _ in rows) == sorted((x.name, x.marks[0]) for x in LAYOUTS)
    places = {name: place.replace("`", "").split(", ") for name, _, place in rows}
    for path in CASES.values():
        for block in blocks_of(read(path)):
            place = block.fused.removeprefix(block.name).removeprefix(".") or "(the block's own name)"
            assert place in places[block.layout.name], path.stem
