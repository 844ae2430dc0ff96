"""The study of batch norm's artifacts: what it measures is what it says, and its pictures and tables come out."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor
from typer.testing import CliRunner, Result

from examples.bn_artifacts import (
    LOCAL,
    Photo,
    Training,
    Window,
    enlarge,
    enlarge_bicubic,
    main,
    margin_of,
    paste,
    read_tests,
    regions,
    train_both_ways,
    worst_window,
)
from examples.train_sr.data import Batches, read_patches_of
from reparam import create_model, freeze_bn_stats, fuse, load_checkpoint, save_checkpoint
from reparam.bn._norm import norms

MODEL = "repvggsr_m1c4_x2"
app = typer.Typer()
app.command()(main)


def half_textured(height: int, width: int, seed: int) -> np.ndarray:
    """(H, W, 3): a plain color on the left half, noise on the right one."""
    rng = np.random.default_rng(seed)
    image = np.broadcast_to(rng.integers(60, 200, 3), (height, width, 3)).copy()
    image[:, width // 2 :] += rng.integers(-50, 50, (height, width - width // 2, 3))
    return image.astype(np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(((96, 100), (61, 120))):
        Image.fromarray(half_textured(*size, number)).save(folder / f"photo{number}.png")
    return folder


@pytest.fixture
def tests(photos) -> list[Photo]:
    return read_tests(photos, create_model(MODEL))


def new_training(photos: Path) -> Training:
    torch.manual_seed(0)
    batches = Batches(read_patches_of(photos, 2, 3, 8), 8, 2, seed=0)
    return Training(create_model(MODEL), batches, steps=20, lr=1e-2, cosine=True, ema=0.0)


@pytest.fixture
def training(photos) -> Training:
    return new_training(photos)


def statistics(net) -> list[Tensor]:
    return [
        buffer.clone() for _, bn in norms(net) for buffer in (bn.running_mean, bn.running_var, bn.num_batches_tracked)
    ]


def command(monkeypatch, *arguments: object) -> Result:
    monkeypatch.setenv("COLUMNS", "120")
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def cells(result: Result) -> list[list[str]]:
    """The rows of all tables; the first and the last cell are empty."""
    return [re.split(r"\s*[│┃]\s*", line) for line in result.output.splitlines()]


def test_regions_of_a_plain_and_a_checkered_half():
    board = np.indices((40, 80)).sum(0) % 2 * 80 - 40
    board[:, :40] = 0
    masks = regions(torch.from_numpy(128 + board).double().expand(3, -1, -1))
    reach = LOCAL // 2
    assert masks["smooth"][:, : 40 - reach].all() and not masks["smooth"][:, 40 - reach :].any()
    assert masks["textured"][:, 40:].all() and not masks["textured"][:, : 40 - reach].any()


def test_a_faint_texture_is_neither():
    board = np.indices((40, 40)).sum(0) % 2 * 14 - 7  # its luma deviates by 6
    masks = regions(torch.from_numpy(128 + board).double().expand(3, -1, -1))
    assert masks["all"].all() and not masks["smooth"].any() and not masks["textured"].any()


def test_a_patch_has_the_same_output_anywhere_with_stored_statistics_only(training, tests):
    training.go_on(10)
    net = training.net
    margin = margin_of(net)
    before = Window(tests[0], 3, 2, 16)
    after = paste(before, tests[1])
    assert torch.equal(before.of(tests[0].high), after.of(after.photo.high))
    assert not torch.equal(after.photo.low, tests[1].low)

    def change(own: bool, margin: int) -> float:
        one, other = (window.of(enlarge(net, window.photo.low, own), margin) for window in (before, after))
        assert one.shape == (3, 2 * (16 - 2 * margin), 2 * (16 - 2 * margin))
        return float((one - other).abs().max())

    assert change(own=False, margin=margin) < 1e-3
    assert change(own=True, margin=margin) > 0.1
    assert change(own=False, margin=margin - 1) > 1e-2  # the margin is no wider than it must be


def test_own_statistics_leave_no_trace(training, tests):
    training.go_on(3)
    net = training.net.eval()
    before = statistics(net)
    own, stored = enlarge(net, tests[0].low, own=True), enlarge(net, tests[0].low)
    assert all(map(torch.equal, before, statistics(net)))
    assert not net.training
    with torch.no_grad():
        expected = [255 * copy.deepcopy(net).train(mode)(tests[0].low[None].float() / 255)[0] for mode in (True, False)]
    for image, values in zip((own, stored), expected):
        assert torch.allclose(image, values.double().clamp(0, 255), atol=1e-3)
    assert (own - stored).abs().max() > 1


def test_the_worst_window_is_where_the_difference_was_planted(tests):
    planted = [{"stored": torch.zeros_like(photo.high), "own": torch.zeros_like(photo.high)} for photo in tests]
    planted[1]["stored"][:, 20:40, 12:28] = 5.0  # in the plain half
    planted[0]["stored"][:, 30:60, 70:90] = 9.0  # in the noise
    smooth, textured = (worst_window(tests, planted, region, 10) for region in ("smooth", "textured"))
    assert smooth == Window(tests[1], 10, smooth.left, 10) and 4 <= smooth.left <= 6
    assert textured.photo is tests[0] and 15 <= textured.top <= 20 and textured.left == 35


def test_both_ways_share_the_start_and_nothing_else(photos, training, tests):
    start = new_training(photos)
    never, frozen = train_both_ways(training, 20, tests)
    start.go_on(18)
    assert all(map(torch.equal, statistics(frozen), statistics(start.net)))
    assert not any(map(torch.equal, statistics(never), statistics(start.net)))
    start_parameters = dict(start.net.named_parameters())
    for net in (never, frozen):
        assert not any(torch.equal(value, start_parameters[name]) for name, value in net.named_parameters())
    start.go_on(20)
    assert all(map(torch.equal, never.parameters(), start.net.parameters()))  # the other way left no trace in it
    assert start.optimizer.param_groups[0]["lr"] == pytest.approx(0)  # cosine


def test_the_command_trains_and_writes(photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    result = command(
        monkeypatch, "--train", photos, "--val", photos, "--out", out, "--model", MODEL, "--patch", 8, "--smoke"
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == [
        "smooth.png", "smooth_pasted.png", "textured.png", "textured_pasted.png",
    ]  # fmt: skip
    for path in out.iterdir():
        with Image.open(path) as image:
            width, height = image.size
            assert height == 4 * (width // 3 + 18) and len(image.getcolors(1 << 24)) > 100
    rows = cells(result)
    scores = {row[1]: row[3] for row in rows if len(row) == 9}  # bicubic
    for photo in read_tests(photos, create_model(MODEL)):
        expected = peak_signal_noise_ratio(photo.high.numpy(), enlarge_bicubic(photo).numpy(), data_range=255)
        assert scores[f"{photo.name}, all"] == f"{expected:.2f}"
    changed = [[float(number) for number in row[2:6]] for row in rows if row[1:2] == ["changed by, at most"]]
    assert len(changed) == 2
    for stored, recalibrated, own, frozen in changed:
        assert max(stored, recalibrated, frozen) < 1e-3 < 1e-1 < own


def test_the_command_looks_at_checkpoints(training, photos, tmp_path, monkeypatch):
    training.go_on(5)
    never, frozen, plain = (tmp_path / f"{name}.safetensors" for name in ("never", "frozen", "plain"))
    save_checkpoint(training.net, never)
    save_checkpoint(fuse(training.net.eval()), plain)
    training.net.train()
    training.go_on(10)
    freeze_bn_stats(training.net)
    save_checkpoint(training.net, frozen)
    common = ("--train", photos, "--val", photos, "--out", tmp_path / "out", "--patch", 8)
    result = command(monkeypatch, *common, "--never", never, "--frozen", frozen)
    assert result.exit_code == 0, result.output
    assert "before the freeze" not in result.output
    photo = read_tests(photos, training.net)[0]
    images = [
        enlarge(load_checkpoint(path), photo.low, own) for path, own in ((never, False), (never, True), (frozen, False))
    ]
    expected = [f"{peak_signal_noise_ratio(photo.high.numpy(), x.numpy(), data_range=255):.2f}" for x in images]
    assert len(set(expected)) == 3
    row = next(row for row in cells(result) if row[1:3] == ["photo0, all", "100%"])
    assert [row[4], *row[6:8]] == expected
    result = command(monkeypatch, *common, "--never", plain, "--frozen", frozen)
    assert result.exit_code == 1
    assert re.fullmatch(r"error: cannot examine .*plain\.safetensors: .*with its batch norms.*\n", result.output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "repsr_m1c4_x2_y"), "cannot examine repsr_m1c4_x2_y: it must be .* for three colors"),
        (("--model", "plain_m1c4_x2"), "cannot examine plain_m1c4_x2: it must be .* with its batch norms"),
        (("--model", "repsr_m9c4_x2"), r".*photo1\.png is too small: 60x120 pixels.* needs 76x76; remove it or use"),
        (("--never", "photo0.png"), "--never and --frozen go together: pass both"),
        (("--val", "one"), "one has only one image, photo0.png, and pasting needs two: add another"),
        (("--val", "none"), "no image in none"),
        (("--val", "nowhere"), "there is no folder nowhere: pass a folder of images"),
        (("--train", "photo0.png"), r"there is no folder photo0\.png: pass a folder of images"),
        (("--patch", "999"), "no image in .* has 1998 pixels on both sides, as patch=999 needs"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "none"):
        Path(folder).mkdir()
    for copied in ("photo0.png", "one/photo0.png"):
        Path(copied).write_bytes((photos / "photo0.png").read_bytes())
    result = command(monkeypatch, "--train", photos, "--val", photos, "--model", MODEL, *arguments)
    assert result.exit_code == 1
    assert re.fullmatch(f"error: {message}.*\n", result.output)
