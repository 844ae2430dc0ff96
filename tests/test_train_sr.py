"""The training program: its data, exactness of resuming, several processes, and what it writes."""

import csv
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from skimage import data
from torch import nn
from torch.utils._pytree import tree_flatten
from typer.main import get_command
from typer.testing import CliRunner

import examples.train_sr.training as training
from examples.train_sr.__main__ import app
from examples.train_sr.data import Batches, read_patches_of
from examples.train_sr.training import Recipe, Run, loss_of, train
from reparam import (
    CheckpointError,
    IdentityBranch,
    RepSRBlock,
    SpecError,
    create_model,
    load_checkpoint,
    save_checkpoint,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, image in enumerate(
        (data.astronaut()[:65, 180:250], data.coffee()[100:150, 200:280], data.camera()[:49])
    ):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def recipe(photos) -> Recipe:
    return Recipe(
        train=str(photos), model="repsr_m1c4_x2_y", options={}, steps=9, batch=4, patch=8, lr=1e-2, schedule="cosine",
        decay_every=3, loss="l1", ema=0.9, freeze_at=0.6, precision="32-true", seed=3,
    )  # fmt: skip


@pytest.fixture
def run(photos, tmp_path) -> Run:
    return Run(
        out=tmp_path / "run", val=None, validate_every=4, save_every=2, log_every=3, logger="csv", workers=0,
        accelerator="cpu", devices="1",
    )  # fmt: skip


def last(run: Run) -> dict:
    return torch.load(run.out / "last.ckpt", weights_only=False)


def assert_same(one: dict, other: dict) -> None:
    (ours, layout), (theirs, other_layout) = tree_flatten(one), tree_flatten(other)
    assert layout == other_layout
    assert len(ours) > 100
    for a, b in zip(ours, theirs):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def killed_at(step: int, monkeypatch, recipe: Recipe, run: Run) -> None:
    """A run that ends in the middle of this step."""
    losses: Iterator[int] = iter(range(step + 1))

    def breaking(*args):
        if next(losses) == step:
            raise KeyboardInterrupt
        return loss_of(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "loss_of", breaking)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, run)


def with_dropout(name: str, **options) -> nn.Module:
    net = create_model(name, **options)
    net.body.insert(2, nn.Dropout(0.2))
    return net


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        pytest.param({}, (0, 4, 5), id="usual"),  # before the first file, right after one is written, and between two
        pytest.param({"schedule": "step", "loss": "charbonnier", "ema": 0.0, "warmup": 8}, (7,), id="other"),
        pytest.param({}, range(9), id="usual, anywhere", marks=pytest.mark.nightly),
    ],
)
def test_a_run_killed_at_any_step_goes_on_bit_for_bit(recipe, run, tmp_path, monkeypatch, change, steps):
    """Weights, average, statistics, moments of Adam, schedules and all randomness; the network has dropout."""
    recipe = replace(recipe, **change)
    monkeypatch.setattr(training, "create_model", with_dropout)
    train(recipe, run)
    whole = last(run)
    for step in steps:
        other = replace(run, out=tmp_path / f"killed_at_{step}")
        killed_at(step, monkeypatch, recipe, other)
        assert (other.out / "last.ckpt").exists() == (step >= 2)
        torch.manual_seed(step)  # whatever the new process starts with
        train(recipe, other)
        assert_same(last(other), whole)
        for name in ("train", "fused"):
            assert (other.out / f"{name}.safetensors").read_bytes() == (run.out / f"{name}.safetensors").read_bytes()


def test_the_steps_of_a_resumed_run_are_not_repeated(recipe, run, monkeypatch):
    killed_at(7, monkeypatch, recipe, run)
    assert last(run)["step"] == 6
    steps = []
    monkeypatch.setattr(training, "loss_of", lambda *args: steps.append(0) or loss_of(*args))
    train(recipe, run)
    assert len(steps) == 3
    train(recipe, run)  # nothing is left to do
    assert len(steps) == 3


def test_a_run_of_a_version_without_an_option_goes_on(recipe, run, monkeypatch):
    killed_at(5, monkeypatch, recipe, run)
    checkpoint = last(run)
    del checkpoint["recipe"]["warmup"]
    torch.save(checkpoint, run.out / "last.ckpt")
    train(recipe, run)
    assert last(run)["step"] == recipe.steps


def test_another_recipe_is_not_gone_on_with(recipe, run):
    train(replace(recipe, steps=2), run)
    with pytest.raises(CheckpointError, match=r"cannot go on with .*last\.ckpt, of steps=2, lr=0\.01: give the same"):
        train(replace(recipe, lr=1.0), run)


def command(recipe: Recipe, run: Run, *more: str) -> list[str]:
    options = {
        "--train": recipe.train, "--out": run.out, "--model": recipe.model, "--steps": recipe.steps,
        "--batch": recipe.batch, "--patch": recipe.patch, "--lr": recipe.lr, "--ema": recipe.ema,
        "--freeze-at": recipe.freeze_at, "--decay-every": recipe.decay_every, "--seed": recipe.seed,
        "--save-every": run.save_every, "--accelerator": "cpu",
    }  # fmt: skip
    return ["-m", "examples.train_sr", "train", *(str(x) for pair in options.items() for x in pair), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.nightly
@pytest.mark.usefixtures("as_users_get_it")  # as the other processes do
def test_a_process_that_is_killed_goes_on_bit_for_bit(recipe, run, tmp_path):
    recipe = replace(recipe, steps=120)
    train(recipe, run)
    killed = replace(run, out=tmp_path / "killed", save_every=1)
    process = subprocess.Popen(
        [sys.executable, *command(recipe, killed)], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
    )
    while not (killed.out / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < last(killed)["step"] < recipe.steps
    train(recipe, killed)
    assert_same(last(killed), last(run))


def test_two_processes_under_torchrun_do_what_one_does(recipe, run, tmp_path, monkeypatch):
    """The one was killed and goes on as two. ECBSR, as with batch norm each process has statistics of its own."""
    recipe = replace(recipe, model="ecbsr_m1c4_x2_y", lr=1e-3)
    train(recipe, run)
    two = replace(run, out=tmp_path / "two")
    killed_at(5, monkeypatch, recipe, two)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, *command(recipe, two)], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "steps 4 to 9, 2 processes" in done.stdout
    assert last(two)["step"] == 9
    for name, value in last(run)["model"].items():
        torch.testing.assert_close(last(two)["model"][name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.nightly
@pytest.mark.usefixtures("as_users_get_it")  # as the other processes do
def test_two_processes_with_batch_norm(recipe, run):
    """Fabric starts the second one by itself."""
    recipe = replace(recipe, freeze_at=0.1)  # after the first step
    done = subprocess.run(
        [sys.executable, *command(recipe, run, "--devices", "2", "--val", recipe.train, "--validate-every", "4")],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 4: bn_shift") == 1 and "fused:" in done.stdout
    assert set(json.loads((run.out / "result.json").read_text())) == {"recipe", "train", "fused"}

    torch.manual_seed(recipe.seed)
    net = create_model(recipe.model).to(memory_format=torch.channels_last)
    pairs = read_patches_of(Path(recipe.train), 2, 1, recipe.patch)
    net(Batches(pairs, recipe.patch, recipe.batch, recipe.seed)[0][0][0::2].float() / 255)  # the share of the first
    statistics = {name: value for name, value in net.state_dict().items() if "running" in name or "tracked" in name}
    assert len(statistics) == 3 * 6
    for name, value in statistics.items():
        assert torch.equal(last(run)["model"][name], value), name


@pytest.mark.parametrize("model", ["repsr_m1c4_x2", "sesr_m3_x2", "plain_m1c4_x3"])
def test_what_it_writes(recipe, run, photos, model):
    result = train(replace(recipe, model=model, precision="bf16-mixed"), replace(run, val=photos))
    assert json.loads((run.out / "result.json").read_text()) == result
    wide, plain = (load_checkpoint(run.out / f"{name}.safetensors") for name in ("train", "fused"))
    x = torch.rand(1, wide.colors, 7, 6)
    assert torch.allclose(wide(x), plain(x), atol=1e-5)
    assert result["train"]["psnr_db"] == pytest.approx(result["fused"]["psnr_db"], abs=1e-3)
    assert all(type(module) in (nn.Conv2d, nn.Sequential, nn.PReLU, type(plain)) for module in plain.modules())
    log = (run.out / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    columns = {"step", "loss", "lr", "psnr_db", "ssim"} | (
        {"bn_shift", "bn_worst_shift"} if "repsr" in model else set()
    )
    assert set(log[0].split(",")) == columns
    assert len(log) == 1 + 3 + 2  # loss at 3, 6, 9; validation at 4, 8


def test_a_trained_network_is_swapped_and_goes_on(recipe, run, tmp_path, monkeypatch):
    train(replace(recipe, model="plain_m1c4_x2_y"), run)
    start = run.out / "train.safetensors"
    starts, average = [], training.AveragedModel
    monkeypatch.setattr(training, "AveragedModel", lambda net, **how: starts.append(net) or average(net, **how))
    swapped = replace(recipe, start=str(start), swap="RepSRBlock")
    train(swapped, replace(run, out=tmp_path / "swapped"))
    plain, fused = load_checkpoint(start), load_checkpoint(tmp_path / "swapped" / "fused.safetensors")
    assert starts and all(isinstance(starts[0].body[index], RepSRBlock) for index in (0, 2, 4))
    assert fused.state_dict().keys() == plain.state_dict().keys()
    assert not torch.equal(fused.body[0].weight, plain.body[0].weight)
    killed_at(5, monkeypatch, swapped, replace(run, out=tmp_path / "killed"))
    train(swapped, replace(run, out=tmp_path / "killed"))
    assert_same(last(replace(run, out=tmp_path / "killed")), last(replace(run, out=tmp_path / "swapped")))


def test_a_network_for_another_scale_starts_from_the_body(recipe, run):
    train(replace(recipe, model="repsr_m1c4_x2_y"), run)
    path = run.out / "train.safetensors"
    theirs = load_checkpoint(path)
    net, _ = training.fresh(replace(recipe, model="repsr_m1c4_x3_y", body=str(path)), Fabric(accelerator="cpu"))
    net.eval(), theirs.eval()
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(net.body[:-1](x), theirs.body[:-1](x), rtol=1e-5, atol=1e-6)
    assert net(x).shape == (2, 1, 24, 24)

    with pytest.raises(CheckpointError, match="networks like RepSR, not with EDSR"):
        training.fresh(replace(recipe, model="edsr_m1c4_x3_y", body=str(path)), Fabric(accelerator="cpu"))
    for other in ("repsr_m2c4_x3_y", "repsr_m1c4_x3", "plain_m1c4_x3_y"):
        with pytest.raises(CheckpointError, match="train.safetensors do not fit into .*must be the same"):
            training.fresh(replace(recipe, model=other, body=str(path)), Fabric(accelerator="cpu"))


def test_a_network_for_luma_starts_as_one_for_rgb_does_with_gray(recipe, tmp_path):
    save_checkpoint(rgb := create_model("plain_m1c4_x2"), tmp_path / "rgb.safetensors")
    changed = replace(recipe, model="plain_m1c4_x3_y", body=str(tmp_path / "rgb.safetensors"))
    net, _ = training.fresh(changed, Fabric(accelerator="cpu"))
    gray = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        expected = rgb.body[:-1](gray.expand(-1, 3, -1, -1))
        torch.testing.assert_close(net.body[:-1](gray), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(CheckpointError, match="fused weights for RGB fit a network for luma"):
        training.fresh(replace(changed, model="plain_m2c4_x3_y"), Fabric(accelerator="cpu"))
    save_checkpoint(create_model("plain_m1c4_x2_y"), tmp_path / "luma.safetensors")
    with pytest.raises(CheckpointError, match="colors must be the same"):
        training.fresh(
            replace(changed, model="plain_m1c4_x2", body=str(tmp_path / "luma.safetensors")), Fabric(accelerator="cpu")
        )


@pytest.mark.parametrize("family", ["plain", "repsr", "ecbsr", "repvggsr", "collapsiblesr"])
def test_gains_scale_what_layers_start_with(family, recipe):
    def start(gain: float, last_gain: float) -> list[torch.Tensor]:
        torch.manual_seed(1)
        changed = replace(recipe, model=f"{family}_m1c4_x2_y", gain=gain, last_gain=last_gain)
        net, _ = training.fresh(changed, Fabric(accelerator="cpu"))
        for name, buffer in net.named_buffers():
            if name.endswith("num_batches_tracked"):
                buffer.fill_(1)  # else it cannot be fused
        kernels = []
        for layer in net.double().eval().body[::2]:
            kernel = (layer if family == "plain" else layer.to_conv()).weight.detach()
            for branch in getattr(layer, "branches", ()):
                if isinstance(branch, IdentityBranch) and branch.norm is None:  # stays as it is
                    kernel = kernel - branch.to_conv().weight.detach()
            kernels.append(kernel)
        return kernels

    whole, third, last = start(1.0, 1.0), start(0.3, 1.0), start(0.3, 0.1)
    assert len(whole) == 3
    for kernel, scaled, scaled_more, factor in zip(whole, third, last, (1, 1, 0.1)):
        torch.testing.assert_close(scaled, 0.3 * kernel, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(scaled_more, 0.3 * factor * kernel, rtol=1e-6, atol=1e-9)


def test_gains_are_not_undone_by_a_norm_after_the_sum(recipe):
    def added(last_gain: float) -> torch.Tensor:
        torch.manual_seed(1)
        changed = replace(recipe, model="qarepvggsr_m1c4_x2_y", last_gain=last_gain)
        net, _ = training.fresh(changed, Fabric(accelerator="cpu"))
        return net.body(torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))

    torch.testing.assert_close(added(0.1), 0.1 * added(1.0), rtol=1e-4, atol=1e-8)


COMMANDS = re.findall(
    r"-m examples.train_sr (.*)$", (ROOT / "docs" / "training.md").read_text().replace("\\\n", ""), re.MULTILINE
)


@pytest.mark.filterwarnings("ignore:.*is a low contrast image:UserWarning")
def test_the_commands_of_the_docs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = "--steps 4 --batch 2 --patch 8 --validate-every 2"
    printed = []
    for line in COMMANDS:
        words = shlex.split(line + (f" {small}" if line.startswith("train") else ""))
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        printed.append(done.output)
    assert [line.split()[0] for line in COMMANDS] == ["photos", "train", "evaluate", "train", "train"]
    assert "fused:" in printed[1] and "astronaut" in printed[2] and Path("runs/many/last.ckpt").exists()


RECIPES = sorted((ROOT / "examples" / "train_sr" / "recipes").glob("*.sh"))


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path.stem != "run"], ids=lambda path: path.stem)
def test_recipes_are_commands_that_exist(recipe, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word"; done\nprintf "\\n"\n')
    python.chmod(0o755)
    folders = [tmp_path / "images of mine", tmp_path / "set5", tmp_path / "runs"]
    for folder in folders:
        folder.mkdir()
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", recipe, *folders], env=env, capture_output=True, text=True, check=True)
    commands = [line.split("\0")[:-1] for line in done.stdout.splitlines()]
    trained, shown = set(), set()
    for program, name, *words in (command[1:] for command in commands):
        assert program == "examples.train_sr"
        command = get_command(app).commands[name]
        if name == "train":
            for option in {"--start", "--body"} & set(words):
                start = Path(words[words.index(option) + 1])
                assert str(start.parent) in trained
                start.parent.mkdir(exist_ok=True)
                start.touch()
            values = command.make_context(name, words).params
            assert values["start"] or create_model(values["model"], **values["options"])
            assert values["out"] not in trained, "each run has a folder of its own"
            trained.add(str(values["out"]))
        else:
            shown |= set(words)
    assert shown <= trained and len(trained) > 4, shown - trained


def test_a_recipe_says_what_it_needs(tmp_path):
    done = subprocess.run(["bash", RECIPES[0], tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and "IMAGES VAL RUNS" in done.stderr


def finished(folder: Path, seed: int, psnr_db: float, **recipe) -> str:
    folder.mkdir()
    recipe = {"model": "plain_m1c4_x2", "options": {}, "steps": 5, "batch": 4, "patch": 8, "lr": 1e-3, "gain": 1.0,
              "freeze_at": 0.9, "seed": seed} | recipe  # fmt: skip
    (folder / "result.json").write_text(json.dumps({"recipe": recipe, "fused": {"psnr_db": psnr_db, "ssim": 0.9}}))
    return str(folder)


def test_summary_has_a_row_for_each_recipe(tmp_path):
    runs = [
        finished(tmp_path / "a", 0, 30.0),
        finished(tmp_path / "b", 0, 31.5, lr=4e-3),
        finished(tmp_path / "c", 1, 30.5),
    ]
    done = CliRunner().invoke(app, ["summary", *runs], env={"COLUMNS": "120"})
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.output.splitlines() if "plain" in line]
    assert rows == [
        ["plain_m1c4_x2", "0.001", "2", "30.250", "30.000 to 30.500", "0.9000"],
        ["plain_m1c4_x2", "0.004", "1", "31.500", "", "0.9000"],
    ]


def test_summary_of_runs_without_scores(tmp_path):
    done = CliRunner().invoke(app, ["summary", str(tmp_path)])
    assert done.exit_code == 1 and "there is no result.json" in done.output
    folder = Path(finished(tmp_path / "a", 0, 30.0))
    (folder / "result.json").write_text('{"recipe": {}}')
    done = CliRunner().invoke(app, ["summary", str(folder)])
    assert done.exit_code == 1 and "was not scored: train with --val" in done.output


def test_mistakes_are_messages(tmp_path, photos):
    words = ["train", "--train", str(photos), "--out", str(tmp_path), "--model", "repsr_big", "--accelerator", "cpu"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1 and "error: no model is named 'repsr_big'" in done.output
    done = CliRunner().invoke(app, [*words, "--options", "{act"])
    assert done.exit_code == 2 and "--options" in done.output


def logged(column: str, recipe: Recipe, run: Run, start: int = 0) -> list[float]:
    train(recipe, run)
    with (run.out / "logs" / f"version_{start}" / "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def test_the_log_has_mean_losses(recipe, run, tmp_path, monkeypatch):
    each = logged("loss", recipe, replace(run, out=tmp_path / "each", log_every=1))
    assert logged("loss", recipe, run) == pytest.approx([sum(each[i : i + 3]) / 3 for i in (0, 3, 6)])
    resumed = replace(run, out=tmp_path / "resumed", log_every=4)
    killed_at(7, monkeypatch, recipe, resumed)  # goes on with the seventh step
    assert logged("loss", recipe, resumed, start=1) == pytest.approx([sum(each[6:8]) / 2])


def test_the_rate_follows_its_schedule(recipe, run, tmp_path):
    cosine = [recipe.lr * (1 + math.cos(math.pi * step / 9)) / 2 for step in range(1, 10)]
    assert logged("lr", recipe, replace(run, log_every=1)) == pytest.approx(cosine)
    halved = logged("lr", replace(recipe, schedule="step"), replace(run, out=tmp_path / "step", log_every=1))
    assert halved == pytest.approx([recipe.lr * 0.5 ** (step // 3) for step in range(1, 10)])
    steady = logged("lr", replace(recipe, schedule="constant"), replace(run, out=tmp_path / "constant", log_every=3))
    assert steady == [recipe.lr] * 3
    risen = logged("lr", replace(recipe, warmup=4), replace(run, out=tmp_path / "risen", log_every=1))
    assert risen == pytest.approx([rate * min(1, (step + 1) / 4) for step, rate in enumerate(cosine, 1)])


def test_statistics_are_frozen_at_their_step(recipe, run, tmp_path, monkeypatch):
    killed_at(7, monkeypatch, recipe, run)
    at_six = last(run)["model"]
    train(recipe, run)
    at_nine = last(run)["model"]
    never = replace(run, out=tmp_path / "never")
    train(replace(recipe, freeze_at=1.0), never)
    for name, value in at_nine.items():
        assert torch.equal(at_six[name], value) == ("running" in name or "tracked" in name), name
    assert int(at_nine["body.0.branches.0.norm.num_batches_tracked"]) == 5  # round(0.6 * 9)
    assert int(last(never)["model"]["body.0.branches.0.norm.num_batches_tracked"]) == 9


def test_compiled_it_learns_the_same(recipe, run, tmp_path, monkeypatch):
    compiled, compile_it = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda net: compiled.append(net) or compile_it(net, backend="aot_eager"))
    recipe = replace(recipe, model="ecbsr_m1c4_x2_y", steps=3)
    for way in (False, True):
        train(recipe, replace(run, out=tmp_path / str(way), compiled=way))
        assert len(compiled) == way
    eager, ours = (load_checkpoint(run.out.with_name(str(way)) / "train.safetensors") for way in (False, True))
    x = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(ours(x), eager(x), rtol=1e-4, atol=1e-4)  # Adam makes steps of gradients of rounding


def test_tensorboard(recipe, run):
    train(replace(recipe, steps=3), replace(run, logger="tensorboard"))
    assert list((run.out / "logs").rglob("events.out.tfevents.*"))


def test_the_average_forgets_nothing(recipe, run):
    """By its definition, statistics included, over steps of one run."""
    averages, weights = None, []
    for step in range(1, 4):
        one = replace(run, out=run.out / str(step))
        train(replace(recipe, steps=step, schedule="constant", ema=0.15, freeze_at=1), one)
        weights.append(last(one)["model"])
        averages = last(one)["ema"]
    name = "body.0.branches.0.norm.running_mean"
    expected = weights[0][name]
    for index in (1, 2):
        decay = min(0.15, (1 + index) / (10 + index))
        expected = decay * expected + (1 - decay) * weights[index][name]
    torch.testing.assert_close(averages[f"module.{name}"], expected)
    assert not torch.equal(expected, weights[-1][name])


def pairs_of_blocks(scale: int) -> list:
    """Images whose high resolution repeats every pixel of the low one."""
    rng = np.random.default_rng(0)
    lows = [rng.integers(256, size=(2, height, width), dtype=np.uint8) for height, width in ((7, 9), (5, 5), (6, 11))]
    return [(low, low.repeat(scale, axis=1).repeat(scale, axis=2)) for low in lows]


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_patches_of_both_resolutions_fit(scale):
    pairs = pairs_of_blocks(scale)
    batches = Batches(pairs, patch=4, batch=40, seed=0)
    low, high = batches[0]
    assert low.shape == (40, 2, 4, 4) and low.dtype == torch.uint8 and low.is_contiguous() and high.is_contiguous()
    assert torch.equal(low.repeat_interleave(scale, 2).repeat_interleave(scale, 3), high)
    assert torch.equal(batches[0][0], low) and not torch.equal(batches[1][0], low)
    assert not torch.equal(Batches(pairs, 4, 40, seed=1)[0][0], low)


def test_every_place_of_every_image_in_all_eight_symmetries():
    pairs = [(np.arange(30, dtype=np.uint8).reshape(1, 5, 6) + 100 * index,) * 2 for index in (0, 1)]
    low, _ = Batches(pairs, patch=4, batch=4000, seed=0)[0]
    expected = set()
    for image, _ in pairs:
        for top in range(2):
            for left in range(3):
                patch = image[0, top : top + 4, left : left + 4]
                for flipped in (patch, patch.T):
                    expected |= {np.rot90(flipped, turn).tobytes() for turn in range(4)}
    assert len(expected) == 2 * 6 * 8
    assert {patch[0].numpy().tobytes() for patch in low} == expected


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(SpecError, match="2 processes cannot share batch=5 equally"):
        Batches(pairs_of_blocks(2), 4, 5, seed=0, rank=1, world=2)


def test_processes_share_one_batch():
    pairs = pairs_of_blocks(2)
    whole = Batches(pairs, 4, 9, seed=5)
    shares = [Batches(pairs, 4, 9, seed=5, rank=rank, world=3) for rank in range(3)]
    for step in range(3):
        for kind in (0, 1):
            for rank, share in enumerate(shares):
                assert torch.equal(share[step][kind], whole[step][kind][rank::3])


WORKERS = """
import sys

import numpy as np
import torch
from examples.train_sr.data import Batches

if __name__ == "__main__":
    with np.load(sys.argv[1]) as file:
        pairs = [(file[f"low{i}"], file[f"high{i}"]) for i in range(3)]
    whole = Batches(pairs, 4, 9, seed=5)
    state = torch.get_rng_state()
    alone, helped = (list(whole.loader(2, 6, workers)) for workers in (0, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert len(alone) == len(helped) == 4
    for step, (one, other) in enumerate(zip(alone, helped), 2):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], whole[step][1])
    print("the same")
"""


def test_workers_change_nothing(tmp_path):
    (tmp_path / "workers.py").write_text(WORKERS)
    pairs = {f"{kind}{i}": x for i, pair in enumerate(pairs_of_blocks(2)) for kind, x in zip(("low", "high"), pair)}
    np.savez(tmp_path / "pairs.npz", **pairs)
    command = [sys.executable, str(tmp_path / "workers.py"), str(tmp_path / "pairs.npz")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "the same", done.stderr


def test_images_smaller_than_a_patch_are_left_out(photos):
    assert len(read_patches_of(photos, 2, 3, patch=25)) == 2  # 65x70 and 50x80, but not 49x512
    assert [low.shape for low, _ in read_patches_of(photos, 2, 1, patch=32)] == [(1, 32, 35)]
    with pytest.raises(SpecError, match="has 66 pixels on both sides, as patch=33 needs"):
        read_patches_of(photos, 2, 3, patch=33)


def test_charbonnier_is_a_smooth_l1():
    a, b = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 3.0])
    assert float(loss_of(a, b, "charbonnier")) == pytest.approx((1e-3 + (4 + 1e-6) ** 0.5) / 2)
    assert float(loss_of(a, b, "l1")) == 1
