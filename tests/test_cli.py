"""The command line as a user types it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from helpers import assert_close, randomise
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import reparam
from reparam import RepSRBlock, create_model, fuse, fuse_state_dict, load_checkpoint, save_checkpoint
from reparam.bench import Setting
from reparam.cli import app
from reparam.deploy._engines import installed_engines


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_version():
    assert run("--version").output.strip() == f"reparam {reparam.__version__}"


def commands() -> dict[str, typer.core.TyperCommand]:
    """By what is typed after `reparam`."""
    found = dict(typer.main.get_command(app).commands)
    return found | {f"bench {name}": command for name, command in found["bench"].commands.items()}


def test_python_runs_the_package_too():
    done = subprocess.run([sys.executable, "-m", "reparam", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"reparam {reparam.__version__}"


def test_help_does_not_wait_for_torch():
    asked = [["--version"], ["--help"], *([*name.split(), "--help"] for name in commands())]
    code = f"""
import sys
from typer.testing import CliRunner
from reparam.cli import app
for arguments in {asked!r}:
    assert CliRunner().invoke(app, arguments).exit_code == 0 and "torch" not in sys.modules, arguments
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_is_cut_in_a_pipe(tmp_path):
    net = torch.nn.ModuleDict({"a_long_name_" * 9: RepSRBlock(3)})
    save_checkpoint(randomise(net, 0).eval(), tmp_path / "x.safetensors")
    for arguments, row in (
        (
            ("bench", "infer", "--height", "9", "--width", "12", "--rounds", "1", "--engine", "torch"),
            "branches torch-eager",
        ),
        (("fuse", tmp_path / "x.safetensors", tmp_path / "y.safetensors"), "a_long_name_" * 9 + " RepSRBlock"),
    ):
        done = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "40"})
        assert any(" ".join(line.split()).startswith(row) for line in done.stdout.splitlines()), done.output


def test_the_demo_in_small_as_text_and_for_a_program(tmp_path: Path, monkeypatch):
    import reparam.sr._demo as demo

    measured, run_demo = [], demo.run_demo
    monkeypatch.setattr(demo, "run_demo", lambda *given, **how: measured.append(run_demo(*given, **how)) or measured[0])
    result = run("demo", "--steps", "12", "--out", str(tmp_path / "new" / "demo"))
    assert result.exit_code == 0, result.output
    rows = {re.split("  +", line)[0]: line for line in result.output.splitlines()}
    bicubic, train_graph, fused = map(float, re.findall(r"\d+\.\d+", rows["PSNR on coffee, held out (dB)"]))
    assert bicubic == pytest.approx(30.60, abs=0.05)
    assert train_graph == fused
    assert "52,568" in rows["parameters"] and "11,548" in rows["parameters"]
    error, floor = (float(rows[name].split()[-1]) for name in ("max |fused - train graph|", "rounding alone, float32"))
    assert error <= 10 * floor < 1e-4
    files = sorted(path.name for path in (tmp_path / "new" / "demo").iterdir())
    assert files == ["comparison.png", "repsr_m4c16_x2.safetensors"]
    plain = create_model("plain_m4c16_x2")
    plain.load_state_dict(load_file(tmp_path / "new" / "demo" / files[1]), strict=True)
    assert plain(torch.rand(1, 3, 8, 8)).shape == (1, 3, 16, 16)

    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: measured[0])
    found = json.loads(run("demo", "--out", str(tmp_path / "other"), "--json").stdout)
    assert found["parameters"] == [52568, 11548] and Path(found["weights"]).exists()
    assert found["report"]["total"]["max_abs"] == measured[0].report.total.max_abs


def test_every_command_prints_json_and_the_shell_completes():
    assert len(commands()) == 10
    for name, command in commands().items():
        assert any("--json" in parameter.opts for parameter in command.params), name
    assert "--install-completion" in run("--help").output


def test_bench_prints_ratios_for_every_block_and_phase():
    small = ("bench", "--channels", "3", "--batch", "2", "--size", "8", "--rounds", "1", "--networks", "m1c4")
    result = run(*small, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    ways = {(row["block"], row["phase"], row["mode"]) for row in found["blocks"]}
    assert ("RepSRBlock", "batch statistics", "folded") in ways and ("ECB", "no BN", "branches") in ways
    assert len(ways) == 15
    assert all(row["step"] > 0 and row["fuse_error"] < 1e-5 for row in found["blocks"])
    launches = {(row["block"], row["phase"], row["mode"]): row["launches"] for row in found["blocks"]}
    for block, phase, mode in ways:  # the estimate chooses one of the two, and this shows which
        assert mode != "auto" or launches[block, phase, mode] in (
            launches[block, phase, "folded"],
            launches[block, phase, "branches"],
        )
    assert [(row["model"], row["mode"]) for row in found["training"]] == [
        ("plain_m1c4_x2", "plain"),
        *(
            (f"{family}_m1c4_x2", mode)
            for family in ("repsr", "ecbsr", "repvggsr", "collapsiblesr")
            for mode in ("folded", "branches", "auto")
        ),
    ]
    for row in found["training"]:
        assert row["step"] == pytest.approx(0.9 * row["learning"] + 0.1 * row["frozen"])
        assert row["frozen_launches"] > 0 and (row["frozen_launches"] == row["launches"]) == (
            row["model"].split("_")[0] in ("plain", "ecbsr", "collapsiblesr")
        )
    assert found["measured_on"] == Setting().measured_on()


def test_a_quick_bench_under_autocast_says_so():
    small = ("bench", "--quick", "--autocast", "--channels", "3", "--batch", "2", "--size", "8", "--rounds", "1")
    result = run(*small)
    assert result.exit_code == 0, result.output
    assert "RepVGGBlock" in result.output and "bfloat16 (autocast), eager)" in " ".join(result.output.split())
    networks = re.findall(r"^(\w+_m4c16_x2) +(\w+)", result.output, re.MULTILINE)
    assert networks == [("plain_m4c16_x2", "plain"), ("repsr_m4c16_x2", "auto"), ("ecbsr_m4c16_x2", "auto")]


def test_options_of_bench_reach_the_library(monkeypatch):
    seen = []
    monkeypatch.setattr("reparam.bench.bench_blocks", lambda *given, **options: seen.append((given, options)) or [])
    monkeypatch.setattr("reparam.bench.bench_training", lambda **options: seen.append(options) or [])
    assert run("bench", "--quick", "--compile", "--networks", "m16c64").exit_code == 0
    ((width, _, _, rounds, _), options), training = seen
    assert (width, rounds, options["setting"]) == (64, 3, Setting(compiled=True))
    assert (
        training["rounds"] == 3
        and training["size"] == "m16c64"
        and training["modes"] == ("auto",)
        and training["setting"] == options["setting"]
    )


@pytest.mark.parametrize(("device", "why"), [("meta", "torch.meta"), ("nowhere", "nowhere"), ("cuda:977", ".")])
def test_a_device_that_is_not_there_is_a_line_with_those_that_are(device, why):
    result = run("bench", "--device", device)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert re.search(rf"device='{device}' \(.*{why}.*\); available: cpu", result.stderr)


def test_bench_infer_has_a_row_for_every_way():
    small = ("bench", "infer", "--height", "9", "--width", "12", "--rounds", "1")
    result = run(*small, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    ways = [(row["graph"], row["engine"]) for row in found["rows"]]
    assert ways[:3] == [("branches", "torch-eager"), ("folded", "torch-eager"), ("fused", "torch-eager")]
    assert [engine for _, engine in ways[3:]] == installed_engines()
    assert found["shape"] == [1, 3, 9, 12]
    assert found["operations"] == 2 * 9 * 12 * 9 * (3 * 16 + 4 * 16 * 16 + 16 * 12)
    for row in found["rows"]:
        assert row["error"] < (0.05 if row["engine"] == "openvino-bf16" else 1e-5)
        assert row["gflops"] == pytest.approx(found["operations"] / row["latency_ms"] / 1e6)
        assert row["share"] == pytest.approx(row["gflops"] / found["limit_gflops"])
    assert found["rows"][2]["speed"] == 1 and found["rows"][2]["error"] == 0
    few = run(*small, "--engine", "torch", "plain_m1c4_x2_y")
    ways = re.findall(r"^(fused|folded|branches) +([\w-]+)", few.output, re.MULTILINE)
    assert ways == [("fused", "torch-eager"), ("fused", "torch")]
    assert "limit:" in few.output


def test_bench_infer_of_a_file_and_of_nothing(tmp_path):
    threads = torch.get_num_threads()
    save_checkpoint(create_model("plain_m1c4_x2"), tmp_path / "net.safetensors")
    small = ("bench", "infer", "--height", "9", "--width", "12", "--rounds", "1", "--engine", "torch", "--threads", "1")
    assert ", 1 threads of torch" in " ".join(run(*small, str(tmp_path / "net.safetensors")).output.split())
    assert torch.get_num_threads() == threads
    result = run(*small, "nothing.pth")
    assert result.exit_code == 1 and "no model is named 'nothing.pth'" in result.output
    result = run(*small, "--engine", "tpu")
    assert result.exit_code == 1 and "no engine is named 'tpu'" in result.output


def test_a_network_with_weights_is_as_good_as_a_file(tmp_path):
    result = run("export", "repsr_m4c16_x2", str(tmp_path / "net.pt2"))
    assert result.exit_code == 0 and (tmp_path / "net.pt2").exists(), result.output
    assert "RepSR(scale=2" in run("inspect", "repsr_m4c16_x2").output
    for name, command in commands().items():
        networks = [parameter for parameter in command.params if parameter.metavar == "NETWORK"]
        assert len(networks) == (name not in ("demo", "models", "bench")), name
        options = {option for parameter in command.params for option in parameter.opts}
        assert len({"--wrapper", "--act"} & options) == 2 * len(networks), name


every_command = pytest.mark.parametrize(
    ("command", "rest"),
    [
        (("fuse",), ("out.pth",)),
        (("inspect",), ()),
        (("verify",), ("--size", "9")),
        (("export",), ("out.pt2",)),
        (("quantize",), ("out.tflite", "--images", "photos", "--weight-bits", "7")),
        (("upscale", "photos", "-o", "out", "--model"), ()),
        (("bench", "infer"), ("--height", "9", "--width", "9", "--rounds", "1", "--engine", "torch")),
    ],
    ids=lambda words: words[0] if words else "",
)


@every_command
def test_a_command_takes_a_name_and_a_file_alike(command, rest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("repsr_m4c16_x2").mkdir()  # as a training may have left it
    Path("photos").mkdir()
    Image.effect_noise((16, 16), 50).save("photos/a.png")
    save_checkpoint(create_model("repsr_m4c16_x2", pretrained=True), "net.safetensors")
    for network in ("repsr_m4c16_x2", "net.safetensors"):
        result = run(
            *command, network, *rest, *(["--overwrite"] if command[0] not in ("inspect", "verify", "bench") else [])
        )
        assert result.exit_code == 0, result.output
    for missing in ("repsr_m4c16_x5", "none.pth"):
        result = run(*command, missing, *rest)
        assert result.exit_code == 1 and f"'{missing}'" in result.stderr and "repsr" in result.stderr, result.output


@every_command
def test_a_command_takes_a_wrapper_and_an_activation(command, rest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.effect_noise((16, 16), 50).save("photos/a.png")
    nets = {name: randomise(create_model("repsr_m1c4_x2", act="relu"), seed) for seed, name in enumerate("ab")}
    torch.save({"nets": {name: net.state_dict() for name, net in nets.items()}}, "two.pth")
    result = run(*command, "two.pth", *rest)
    assert result.exit_code == 1 and "2 networks: 'nets.a', 'nets.b'" in result.stderr, result.output
    result = run(*command, "two.pth", *rest, "--wrapper", "nets.b")
    if command != ("inspect",) and command != ("fuse",):
        assert result.exit_code == 1 and "pass act='relu'" in result.stderr, result.output
    told = ("--wrapper", "nets.b", "--act", "relu", *(["--overwrite"] if command == ("fuse",) else []))
    result = run(*command, "two.pth", *rest, *told)
    assert result.exit_code == 0, result.output
    assert command != ("inspect",) or ("act=relu" in result.output and "problem" not in result.output)
    assert command != ("fuse",) or same(read(Path("out.pth"))["nets"]["b"], fuse(nets["b"].eval()).state_dict())


def test_what_is_no_checkpoint_takes_neither(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("export", "repsr_m4c16_x2", "net.onnx").exit_code == 0
    result = run("upscale", "photos", "-o", "out", "--model", "net.onnx", "--act", "relu", "--wrapper", "params")
    assert (
        result.exit_code == 1
        and "net.onnx is an exported network.*leave out --wrapper and --act"
        in result.stderr.replace(", which needs no options; ", ".*")
    )
    small = ("bench", "infer", "--height", "9", "--width", "9", "--rounds", "1", "--engine", "torch")
    result = run(*small, "plain_m1c4_x2", "--wrapper", "params")
    assert result.exit_code == 1 and "plain_m1c4_x2 is not a file; leave out --wrapper" in result.stderr
    assert run(*small, "plain_m1c4_x2", "--act", "relu").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["demo", "--steps", "3"], "Invalid value for '--steps'"),
        (["demo", "--out", __file__], "is a file"),
        (["bench", "--rounds", "0"], "Invalid value for '--rounds'"),
        (["train"], "No such command 'train'"),
    ],
)
def test_bad_input(arguments, match):
    result = run(*arguments)
    assert result.exit_code == 2
    assert match in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


def test_the_demo_without_its_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.delitem(sys.modules, "reparam.sr._demo", raising=False)
    result = run("demo")
    assert result.exit_code == 1
    assert "pip install 'reparam[demo]'" in result.output


# Files ---------------------------------------------------------------------------------------------------------------


def official(name: str) -> dict[str, torch.Tensor]:
    """A state dict of a paper's code."""
    with safe_open(Path(__file__).parent / "golden" / f"{name}.safetensors", "pt") as file:
        return {key[3:]: file.get_tensor(key) for key in file.keys() if key.startswith("sd.")}  # noqa: SIM118  # safe_open is no mapping


def read(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def ecbsr(tmp_path: Path) -> Path:
    torch.save({"params": official("ecbsr_m4c8_x2_c1"), "iteration": 5}, tmp_path / "ecbsr.pth")
    return tmp_path / "ecbsr.pth"


@pytest.mark.parametrize("name", ["out.pth", "out.safetensors"])
def test_fuse_writes_the_keys_of_the_source(ecbsr, name, tmp_path):
    result = run("fuse", str(ecbsr), str(tmp_path / name))
    assert result.exit_code == 0, result.output
    written = read(tmp_path / name)
    written = written["params"] if name == "out.pth" else written
    assert same(written, fuse_state_dict(official("ecbsr_m4c8_x2_c1")))
    rows = [line for line in result.output.splitlines() if "backbone." in line]
    assert len(rows) == 6 and all("ECB" in row for row in rows)
    assert all(float(row.split()[-1]) < 1e-6 for row in rows)
    assert "ECBSR" in result.output and "11,992" in result.output and "2,748" in result.output
    assert f"written: {tmp_path / name}" in result.output


def test_fuse_writes_the_keys_of_srvggnetcompact(ecbsr, tmp_path):
    result = run(
        "fuse", str(ecbsr), str(tmp_path / "out.safetensors"), "--keys", "reparam", "--img-range", "1", "--json"
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["network"] == "ECBSR" and report["after"] == 2748
    assert [row["name"] for row in report["blocks"]] == [f"body.{2 * index}" for index in range(6)]
    plain = create_model("plain_m4c8_x2_y")
    plain.load_state_dict(load_file(tmp_path / "out.safetensors"))
    x = torch.rand(1, 1, 9, 8)
    assert_close(plain(x), load_checkpoint(ecbsr, img_range=1)(x))


def test_fuse_options(ecbsr, tmp_path):
    out = tmp_path / "out.safetensors"
    expected = fuse_state_dict(official("ecbsr_m4c8_x2_c1"), identity=True)
    assert run("fuse", str(ecbsr), str(out), "--identity", "--wrapper", "params").exit_code == 0
    assert same(load_file(out), expected)
    options = ("--identity", "--keys", "reparam", "--img-range", "1", "--overwrite")
    assert run("fuse", str(ecbsr), str(out), *options).exit_code == 0
    assert torch.equal(load_file(out)["body.2.weight"], expected["backbone.1.conv3x3.weight"])
    for name, option, given in (
        ("repvgg_s1_id_8", ("--eps", "1e-3"), {"eps": 1e-3}),
        ("edbb_6to8_13_linear", ("--with-13",), {"with_13": True}),
        ("repsr_jldy_block_4_var1", ("--no-identity",), {"identity": False}),
    ):
        sd = official(name)
        save_file(sd, tmp_path / "in.safetensors")
        assert run("fuse", str(tmp_path / "in.safetensors"), str(out), *option, "--overwrite").exit_code == 0
        assert same(load_file(out), fuse_state_dict(sd, **given))
        assert not same(load_file(out), fuse_state_dict(sd))


def test_fuse_with_a_pool(tmp_path):
    block = randomise(reparam.QARepVGGBlock(4, pool=True), 0)
    parts = {"rbr_dense.conv": block.branches[0].conv, "rbr_dense.bn": block.branches[0].norm}
    parts |= {"rbr_1x1": block.branches[1].conv, "bn": block.norm}
    sd = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    save_file(sd, tmp_path / "in.safetensors")
    result = run(
        "fuse",
        str(tmp_path / "in.safetensors"),
        str(tmp_path / "out.safetensors"),
        "--pool",
        "--identity",
        "--eps",
        "1e-5",
    )
    assert result.exit_code == 0 and "Blocks of an unknown network" in result.output
    assert same(load_file(tmp_path / "out.safetensors"), fuse_state_dict(sd, pool=True, identity=True, eps=1e-5))


def test_fuse_of_our_own_files(tmp_path):
    net = randomise(create_model("repsr_m1c6_x2", act="relu"), 0).eval()
    save_checkpoint(net, tmp_path / "net.pth")  # bare, so that nothing tells the activation
    result = run("fuse", str(tmp_path / "net.pth"), str(tmp_path / "fused.pth"), "--act", "relu")
    assert result.exit_code == 0, result.output
    assert "RepSRBlock" in result.output
    assert same(read(tmp_path / "fused.pth"), fuse(net).state_dict())
    save_checkpoint(net, tmp_path / "net.safetensors")
    assert run("fuse", str(tmp_path / "net.safetensors"), str(tmp_path / "fused.safetensors")).exit_code == 0
    x = torch.rand(1, 3, 5, 6)
    assert torch.equal(load_checkpoint(tmp_path / "fused.safetensors")(x), fuse(net)(x))
    wide = {key: (tensor * 1e-3 if "var" in key else tensor) for key, tensor in net.state_dict().items()}
    torch.save(wide, tmp_path / "net.pth")
    assert (
        run("fuse", str(tmp_path / "net.pth"), str(tmp_path / "eps.pth"), "--act", "relu", "--eps", "1").exit_code == 0
    )
    assert run("fuse", str(tmp_path / "net.pth"), str(tmp_path / "no.pth"), "--act", "relu").exit_code == 0
    assert read(tmp_path / "eps.pth")["body.0.weight"].norm() < 0.1 * read(tmp_path / "no.pth")["body.0.weight"].norm()


def test_blocks_in_a_network_that_does_not_fit_are_fused(ecbsr, tmp_path):
    sd = {"head.weight": torch.rand(2), **official("ecbsr_m4c8_x2_c1")}
    del sd["backbone.5.conv3x3.weight"], sd["backbone.5.conv1x1_3x3.k0"]
    save_file(sd, ecbsr.with_name("in.safetensors"))
    result = run("fuse", str(ecbsr.with_name("in.safetensors")), str(tmp_path / "out.safetensors"))
    assert result.exit_code == 0, result.output
    assert "unknown network" in result.output
    assert same(load_file(tmp_path / "out.safetensors"), fuse_state_dict(sd))


def unseen() -> dict[str, torch.Tensor]:
    """A batch norm that is as it was built."""
    new = {f"rbr_1x1.bn.{key}": tensor for key, tensor in torch.nn.BatchNorm2d(8).named_buffers()}
    return {**official("repvgg_s1_id_8"), **new}


def too_large() -> dict[str, torch.Tensor]:
    """In float16, and fused above what that holds."""
    sd = {key: tensor.half() if tensor.dim() else tensor for key, tensor in official("repvgg_s1_id_8").items()}
    large, small = torch.full((8,), 6e4).half(), torch.full((8,), 1e-3).half()
    return {**sd, "rbr_dense.bn.weight": large, "rbr_dense.bn.running_var": small}


def not_a_number() -> dict[str, torch.Tensor]:
    return {**official("repvgg_s1_id_8"), "rbr_dense.bn.bias": torch.full((8,), torch.nan)}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "in.pth' is neither a file nor a network with weights; there are repsr_m4c16_x2"),
        (b"", "it is not a checkpoint of torch or safetensors, but empty"),
        (b"PK\x03\x04", "a damaged archive"),
        (unseen(), r"block '' \(RepVGG\).*num_batches_tracked=0"),
        (
            too_large(),
            r"block '' \(RepVGG\) cannot be fused in torch.float16: of 'rbr_reparam.weight', \d+ of its \d+ val",
        ),
        (not_a_number(), r"'rbr_dense.bn.bias': 8 of its 8 values are not finite"),
        ({"stem.weight": torch.rand(2)}, "no known network; looked for ECBSR"),
        (create_model("plain_m1c4_x2").state_dict(), "nothing to fuse: the file holds a PlainSR of plain convolutions"),
        (
            {**official("ecbsr_m4c8_x2_c1"), "backbone.1.conv1x1_sbx.k0": torch.rand(3)},
            r"'conv1x1_sbx.k0' has shape \(3,\)",
        ),
    ],
)
def test_fuse_of_bad_files(content, match, tmp_path):
    source, target = tmp_path / "in.pth", tmp_path / "out.pth"
    target.write_text("as it was")
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        torch.save(content, source)
    result = run("fuse", str(source), str(target), "--overwrite")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert result.stdout == "" and re.match(r"error: ", result.stderr) and result.stderr.count("\n") == 1
    assert re.search(match, result.stderr), result.stderr
    assert target.read_text() == "as it was" and len(list(tmp_path.iterdir())) == 1 + (content is not None)


def test_a_wrong_kernel_is_seen(ecbsr, tmp_path, monkeypatch):
    right = reparam.ReparamBlock._sum_of_kernels

    def wrong(self, scale_shift_of):
        kernel = right(self, scale_shift_of)
        return kernel._replace(weight=kernel.weight * 1.001)

    monkeypatch.setattr(reparam.ReparamBlock, "_sum_of_kernels", wrong)
    result = run("fuse", str(ecbsr), str(tmp_path / "out.pth"))
    assert result.exit_code == 1 and re.search(r"'backbone.0' \(ECB\) and its convolution differ by", result.stderr)
    assert not (tmp_path / "out.pth").exists()


def test_fuse_to_bad_places(ecbsr, tmp_path):
    for target, match in ((tmp_path / "no" / "x.pth", "no directory"), (tmp_path, "irectory")):
        result = run("fuse", str(ecbsr), str(target))
        assert result.exit_code == 1 and result.stderr.startswith("error: ") and match in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["ecbsr.pth"]
    assert run("fuse", str(ecbsr)).exit_code == 2
    assert run("fuse", str(ecbsr), "x.pth", "--keys", "theirs").exit_code == 2


def test_inspect(ecbsr, tmp_path):
    result = run("inspect", str(ecbsr))
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[:4] == [
        "network:  ECBSR(scale=2, num_blocks=4, channels=8, colors=1, act=prelu, base=nearest, plain_ends=False, "
        "expansion=2.0)",
        "blocks:   6 x ECB",
        "values:   11,992 in 131 tensors (float32), 2,748 after fusing",
        "wrapper:  params",
    ]
    found = json.loads(run("inspect", str(ecbsr), "--json").stdout)
    assert found["blocks"] == {"ECB": 6} and found["fused_numbers"] == 2748
    assert len(found["problems"]) == 1 and "pass img_range=255" in found["problems"][0]
    run("fuse", str(ecbsr), str(tmp_path / "out.safetensors"))
    found = json.loads(run("inspect", str(tmp_path / "out.safetensors"), "--json").stdout)
    assert found["numbers"] == found["fused_numbers"] == 2748 and found["wrapper"] is None
    assert "nothing to fuse" in run("inspect", str(tmp_path / "out.safetensors")).output


def test_inspect_of_blocks(tmp_path):
    save_file(unseen(), tmp_path / "x.safetensors")
    result = run("inspect", str(tmp_path / "x.safetensors"))
    assert result.exit_code == 0
    assert "network:  not known" in result.output and "blocks:   1 x RepVGG" in result.output
    assert re.search(r"problem:  branches.1.norm \(RepVGG\): it never saw a batch", result.output)
    save_file(official("span_spab_6"), tmp_path / "x.safetensors")
    found = json.loads(run("inspect", str(tmp_path / "x.safetensors"), "--json").stdout)
    assert found["blocks"] == {"SPAN's Conv3XC": 3} and found["numbers"] == found["fused_numbers"]
    report = run("fuse", str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors"), "--json")
    assert json.loads(report.stdout)["after"] == found["numbers"]
    save_file(sd := official("repvgg_tiny_net_g"), tmp_path / "x.safetensors")
    found = json.loads(run("inspect", str(tmp_path / "x.safetensors"), "--json").stdout)
    assert found["fused_numbers"] == sum(tensor.numel() for tensor in fuse_state_dict(sd).values())


def test_inspect_says_what_stands_in_the_way(ecbsr, tmp_path):
    torch.save(create_model("repsr_m1c4_x2").state_dict(), tmp_path / "x.pth")
    found = json.loads(run("inspect", str(tmp_path / "x.pth"), "--json").stdout)
    assert found["network"].startswith("RepSR(") and len(found["problems"]) == 6
    assert "body.0.branches.0.norm: it never saw a batch" in found["problems"][0]
    torch.save({**official("ecbsr_m4c8_x2_c1"), "backbone.1.conv1x1_sbx.k0": torch.rand(3)}, ecbsr)
    result = run("inspect", str(ecbsr))
    assert result.exit_code == 0 and result.output.count("problem:") == 2
    assert "blocks:   6 x ECB" in result.output
    result = run("inspect", str(tmp_path / "none.pth"))
    assert result.exit_code == 1 and "none.pth' is neither a file" in result.stderr and result.stderr.count("\n") == 1
    assert run("inspect", str(ecbsr), "--wrapper", "params").exit_code == 1


def test_inspect_of_a_network_that_no_file_describes(tmp_path):
    net = torch.nn.Sequential(RepSRBlock(3), torch.nn.ReLU())
    save_checkpoint(net, tmp_path / "x.safetensors")
    assert "network:  not known\nblocks:   1 x RepSRBlock" in run("inspect", str(tmp_path / "x.safetensors")).output
