"""Shaders as text: what any of them must keep to, and what is refused. `pytest tests/players` runs them."""

import json
import re
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import made
from plain_nets import Of, conv
from torch import nn
from typer.testing import CliRunner

from reparam import ExportError, SpecError, export
from reparam.cli import app
from reparam.deploy._shader import files as shaders
from reparam.deploy._shader import player as players
from reparam.deploy._shader import webgpu as gpus
from reparam.deploy._shader.files import read_glsl, read_wgsl, shader_passes, try_glsl

NUMBER = r"-?\d+\.?\d*(?:e[-+]\d+)?"


def nothing_there(patch):
    patch.setattr(shaders, "player", lambda: ("", "there is no ffmpeg"))
    patch.setattr(shaders, "webgpu", lambda: ("", "there is no wgpu"))


@pytest.fixture(autouse=True)
def _no_player(monkeypatch):
    """Whether a player is there does not change what is written."""
    nothing_there(monkeypatch)


def blocks(text: str) -> list[tuple[dict[str, list[str]], str]]:
    """The headers of every pass, by key, and its code."""
    found = []
    for part in re.split(r"\n\n(?=//!HOOK)", text)[1:]:
        lines = part.splitlines()
        headers: dict[str, list[str]] = {}
        for line in lines:
            if line.startswith("//!"):
                key, _, rest = line[3:].partition(" ")
                headers.setdefault(key, []).append(rest)
        found.append((headers, "\n".join(line for line in lines if not line.startswith("//!"))))
    return found


# Passes, what they hook, and the scale. SESR and EDSR take a mean off the colors first, and pad with zeros then.
NETWORKS = {
    "repsr_m4c16_x2": (6, "MAIN", 2),
    "repsr_m1c5_x3_y": (3, "LUMA", 3),
    "plain_m1c4_x1": (3, "MAIN", 1),
    "ecbsr_m1c8_x4": (3, "MAIN", 4),
    "sesr_m3_x2": (6, "LUMA", 2),
    "edsr_m1c4_x2": (7, "MAIN", 2),
    "edsr_m1c4_x4": (8, "MAIN", 4),
}


@pytest.fixture(scope="module", params=NETWORKS)
def written(request, tmp_path_factory):
    """The name, the file and the report."""
    file = tmp_path_factory.mktemp("shader") / "net.glsl"
    with pytest.MonkeyPatch.context() as patch:
        nothing_there(patch)
        report = export(made(request.param), file)
    return request.param, file.read_text(), report


def test_passes_hook_and_size(written):
    name, text, _ = written
    passes, hook, scale = NETWORKS[name]
    found = blocks(text)
    assert len(found) == passes
    assert {tuple(headers["HOOK"]) for headers, _ in found} == {(hook,)}
    last = found[-1][0]
    assert "SAVE" not in last and last["WIDTH"] == [f"HOOKED.w {scale} *"] and last["HEIGHT"] == [f"HOOKED.h {scale} *"]
    larger = "OUTPUT.w HOOKED.w 1.2 * > OUTPUT.h HOOKED.h 1.2 * > *"
    assert all(headers.get("WHEN") == ([larger] if scale > 1 else None) for headers, _ in found)


def test_what_a_pass_reads_is_bound_and_was_saved(written):
    saved: list[str] = []
    for headers, code in blocks(written[1]):
        assert set(headers["BIND"]) <= {"HOOKED", *saved} and len(headers["BIND"]) <= 16
        assert set(re.findall(r"REPARAM_\d+(?=_raw)", code)) == set(headers["BIND"]) - {"HOOKED"}
        called = set(re.findall(r"= (at_\w+)\(", code))
        assert called == set(re.findall(r"^vec4 (at_\w+)\(ivec2 wanted, int group\)", code, re.MULTILINE)), "by name"
        assert not set(headers.get("SAVE", ())) & set(saved)
        saved += headers.get("SAVE", [])


def test_threads_cover_the_texture_and_write_every_texel_once(written):
    _, scale, passes = written[0], NETWORKS[written[0]][2], blocks(written[1])
    for headers, code in passes:
        (columns, rows) = map(int, re.search(r"size = imageSize\(out_image\) / ivec2\((\d+), (\d+)\)", code).groups())
        width, height = (int(headers[side][0].split()[1]) for side in ("WIDTH", "HEIGHT"))
        assert headers["COMPUTE"] == [f"{8 * columns} {8 * rows} 8 8"]
        assert width % columns == height % rows == 0 and width // columns == height // rows <= scale
        places = re.findall(rf"imageStore\(out_image, p \* \S+(?: {rows}\))? \+ ivec2\((\d+), (\d+)\)", code)
        assert len(set(places)) == len(places) == code.count("imageStore")
        assert all(int(x) < columns and int(y) < rows for x, y in places)
        assert columns * (rows - 1) < len(places) <= columns * rows


def test_names_are_made_before_they_are_used(written):
    for _, code in blocks(written[1]):
        known: set[str] = set()
        for line in code.splitlines():
            if match := re.match(r"vec4 (v\d+) = (.*)", line):
                assert set(re.findall(r"\bv\d+\b", match[2])) <= known and match[1] not in known
                known.add(match[1])
            else:
                assert set(re.findall(r"\bv\d+\b", line)) <= known


@pytest.mark.parametrize("name", ["plain_m1c5_x1", "plain_m2c8_x3_y", "plain_m1c16_x4"])
def test_the_numbers_are_those_of_the_network_to_the_last_digit(name, tmp_path):
    net = made(name)
    export(net, tmp_path / "net.glsl")
    text = (tmp_path / "net.glsl").read_text()
    there = set(map(np.float32, re.findall(NUMBER, text)))
    for key, tensor in net.state_dict().items():
        assert set(tensor.flatten().numpy()) <= there, key


def test_a_file_takes_16_letters_a_number(tmp_path):
    export(made("plain_m2c16_x2"), tmp_path / "net.glsl")
    parameters = sum(tensor.numel() for tensor in made("plain_m2c16_x2").state_dict().values())
    assert (tmp_path / "net.glsl").stat().st_size < 16 * parameters


def test_the_file_says_what_it_is(tmp_path):
    net = made("plain_m1c4_x2")
    net.options = {"odd": "//!HOOK LUMA\n//!DESC odd"}
    report = export(net, tmp_path / "net.glsl")
    text = (tmp_path / "net.glsl").read_text()
    assert {"// scale: 2", "// colors: 3", "// range: 0 to 1", "// order: RGB"} <= set(text.splitlines())
    assert text.startswith("// reparam: {") and len(blocks(text)) == 3 and "DESC odd" not in text.split("\n\n")[1]
    assert text.count("//!HOOK") == 3, "players start at the first //!, wherever it is"
    assert [headers["DESC"] for headers, _ in blocks(text)] == [
        [f"PlainSR x2 {number}/3: {layers}"]
        for number, layers in enumerate(("body.0, body.1", "body.2, body.3", "body.4, repeat"), 1)
    ]
    assert str(report) == f"{tmp_path}/net.glsl: user shader, NOT RUN: there is no ffmpeg"
    assert (report.engine, report.shapes, report.psnr_db) == ("", (), None) and np.isnan(report.error)


def test_on_the_command_line(tmp_path):
    run = CliRunner().invoke(app, ["export", "repsr_m4c16_x2_y", str(tmp_path / "net.wgsl")])
    assert run.exit_code == 0 and "net.wgsl: WGSL, NOT RUN: there is no wgpu" in run.output.replace("\n", " ")
    run = CliRunner().invoke(app, ["export", "repsr_m4c16_x2_y", str(tmp_path / "net.glsl"), "--json"])
    report = json.loads(run.stdout, parse_constant=pytest.fail)  # nan is no JSON
    assert report["error"] is None and report["unchecked"] == "there is no ffmpeg"
    with pytest.raises(SpecError, match=r"half=True is an option of .*, but the format is user shader \(.glsl\)"):
        export(made("plain_m1c4_x1"), tmp_path / "half.glsl", half=True)


# Which steps share a pass


def passes_of(net: nn.Module, colors: int = 1):
    return shader_passes(net.eval(), torch.rand(1, colors, 8, 9))


def test_only_neighbors_cost_a_pass():
    first, point, last = conv(1, 8), conv(8, 6, 1), conv(6, 1)
    net = Of(lambda x, a, b, c: c(torch.sigmoid(b(F.relu(a(x)))) * 2 - 1) + x, first, point, last)
    one, two = passes_of(net)
    assert [step.kind for step in one.steps][:5] == ["conv", "clamp", "conv", "function", "affine"]
    assert [step.kind for step in two.steps] == ["conv", "add"]


def test_branches_of_one_depth_share_a_pass_and_a_texture():
    net = Of(lambda x, a, b, c: c(torch.cat([a(x), b(x)], 1)), conv(1, 5), conv(1, 6, 5), conv(11, 1))
    one, two = passes_of(net)
    assert [step.kind for step in one.steps] == ["conv", "conv", "concat"] and one.texels == 3
    assert one.grid == (2, 2) and two.textures == (1,)


def test_a_pass_keeps_only_what_later_ones_take():
    net = Of(lambda x, a, b, c: c(F.relu(b(F.relu(a(x)))) + a(x)), conv(1, 4), conv(4, 4), conv(4, 1))
    one, two, three = passes_of(net)
    assert [stored.channels for stored in one.writes.values()] == [4, 4] and one.texels == 2  # before and after relu
    assert two.textures == (1,) and three.textures == (2,) and len(two.writes) == 1


def test_what_is_done_to_the_image_alone_is_kept_only_for_neighbors():
    net = Of(lambda x, a: a(x * 2 - 1) + x * 0.5, conv(1, 1))
    one, two = passes_of(net)
    assert {step.kind for step in one.steps} == {"affine"} and one.texels == 1
    assert [step.kind for step in two.steps].count("affine") == 1 and two.textures == (1,)


def test_a_network_without_neighbors_is_one_pass():
    (one,) = passes_of(nn.Sequential(conv(1, 4, 1), nn.PixelShuffle(2)))
    assert one.number == 1 and not one.textures


def test_layers_after_a_shuffle_run_for_every_pixel_of_the_larger_image():
    net = nn.Sequential(conv(1, 8), nn.PixelShuffle(2), conv(2, 4), nn.PixelShuffle(2))
    one, two = passes_of(net)
    assert (one.scale, two.scale) == (1, 2) and one.texels == 4
    (stored,) = two.reads.values()
    assert (stored.parts, stored.scale, stored.groups) == (2, 2, 1)


# What is refused


def same(x):
    return x


REFUSED = {
    "stride": (nn.Sequential(conv(1, 4, stride=2)), r"0 is a convolution of stride \(2, 2\), which a player's shader"),
    "valid": (nn.Sequential(nn.Conv2d(1, 4, 3)), r"0 is a convolution 3x3 of padding \(0, 0\), which changes"),
    "even": (nn.Sequential(nn.Conv2d(1, 4, 2)), r"0 is a convolution 2x2 of padding \(0, 0\), which changes"),
    "reflect": (
        nn.Sequential(conv(1, 4, padding_mode="reflect")),
        "0 is a step of the kind pad, which a player's shader",
    ),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(1, 1, 2, 2)), "0 is a step of the kind transposed"),
    "pooling": (nn.Sequential(nn.AvgPool2d(3, 1, 1)), "0 is a step of the kind average"),
    "unshuffle": (nn.Sequential(nn.PixelUnshuffle(2)), "0 is a step of the kind unshuffle"),
    "attention": (Of(lambda x, a: x * a(x.mean((2, 3), keepdim=True)), conv(1, 1, 1)), "network is .* kind mean"),
    "divide": (Of(lambda x: x / (x + 1)), "the network is a step of the kind divide"),
    "function": (nn.Sequential(nn.GELU()), "0 is the function gelu, which a player's shader"),
    "bicubic": (nn.Sequential(nn.Upsample(scale_factor=2, mode="bicubic")), "0 is a bicubic resize with align_corners"),
    "aligned": (
        nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
        "0 .*of the image|0 is a bilinear resize with align_corners=True",
    ),
    "one way": (nn.Sequential(nn.Upsample(scale_factor=(2, 1))), "0 is a resize by 2 and 1"),
    "colors": (
        nn.Sequential(conv(1, 3)),
        "as many colors as they provide, 1, .* returns 3 colors and scales by 1 and 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_shader_cannot_say_is_refused_with_the_layer(name, tmp_path):
    net, message = REFUSED[name]
    with pytest.raises(ExportError, match=message):
        export(net.eval(), tmp_path / "net.glsl", example=torch.rand(1, 1, 8, 12))
    assert not list(tmp_path.iterdir())


def test_two_colors_are_refused(tmp_path):
    with pytest.raises(ExportError, match=r"1 color \(luma\) or 3 \(RGB\), but the network takes 2"):
        export(conv(2, 2).eval(), tmp_path / "net.glsl", example=torch.rand(1, 2, 8, 8))


def test_numbers_that_are_not_finite_are_refused():
    net = nn.Sequential(conv(1, 1))
    net[0].weight.data[0, 0, 1, 1] = float("inf")
    with pytest.raises(ExportError, match="0 is .* conv with values in weight that are not finite"):
        passes_of(net)


def test_more_textures_than_a_player_binds_are_refused():
    def dense(x, *layers):
        found = [x]
        for layer in layers[:-1]:
            found.append(layer(found[-1]))
        return layers[-1](torch.cat(found, 1))

    allowed, refused = (Of(dense, *[conv(1, 1) for _ in range(depth)], conv(depth + 1, 1, 1)) for depth in (16, 17))
    assert len(passes_of(allowed)[-1].textures) == 15
    with pytest.raises(ExportError, match="reads the outputs of 16 layers, but players let a shader read at most 15"):
        passes_of(refused)


# What runs it


def shows(answer, monkeypatch):
    """A player that shows what a function makes of the image."""
    monkeypatch.setattr(shaders, "player", lambda: ("player 1.0", ""))

    @torch.no_grad()
    def run(x):
        return answer(torch.from_numpy(x)).numpy()

    monkeypatch.setattr(shaders, "run_player", lambda file, scale: run)


def test_a_file_is_in_place_when_it_shows_the_same(tmp_path, monkeypatch):
    net = made("plain_m1c4_x2_y")
    shows(lambda x: net(x).clamp(0, 1) + 1e-4, monkeypatch)
    report = export(net, tmp_path / "net.glsl")
    assert abs(report.psnr_db - 80) < 0.1 and report.shapes[0] == (1, 1, 3, 5)
    assert str(report).endswith("net.glsl: user shader, 80.0 dB to torch in player 1.0 (3 shapes)")


@pytest.mark.parametrize("twist", ["shifted", "turned", "coarse"])
def test_a_file_that_shows_something_else_is_not_put_in_place(twist, tmp_path, monkeypatch):
    net = made("plain_m1c4_x2_y")
    twists = {
        "shifted": lambda y: y.roll(1, -1),
        "turned": lambda y: y.flip(-1),
        "coarse": lambda y: (y * 255).round() / 255,
    }
    shows(lambda x: twists[twist](net(x).clamp(0, 1)), monkeypatch)
    (tmp_path / "net.glsl").write_text("old")
    with pytest.raises(
        ExportError, match=r"player 1.0 shows .*\(1, 1, 3, 5\) at \d+.\d dB .* but at least 65 dB is needed"
    ):
        export(net, tmp_path / "net.glsl")
    assert (tmp_path / "net.glsl").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def program(folder: Path, monkeypatch, script: str) -> None:
    """The only ffmpeg that can be found."""
    file = folder / "ffmpeg"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin" if script else str(folder))


VERSION = (
    'case "$*" in *-version*) echo "ffmpeg version 6.1 Copyright"; exit;; *-filters*) echo " ..C {} V->V x"; exit;;'
)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (VERSION.format("scale") + " esac", "^ffmpeg 6.1 has no libplacebo$"),
        (
            VERSION.format("libplacebo") + ' *) echo "Device creation error: none" >&2; exit 1;; esac',
            "^ffmpeg 6.1 finds no Vulkan driver, .*mesa-vulkan-drivers: Device creation error: none$",
        ),
        (
            VERSION.format("libplacebo") + " *) exit 0;; esac",
            "^ffmpeg 6.1 finds no Vulkan driver.* it gives no image and no reason$",
        ),
    ],
    ids=["no filter", "no driver", "nothing"],
)
def test_why_nothing_runs_a_shader(script, reason, tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, script)
    name, why = players.player.__wrapped__()
    assert name == "" and re.search(reason, why)


def test_without_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert players.player.__wrapped__() == ("", "there is no ffmpeg")


def test_a_player_that_fails(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("so it is")

    shows(broken, monkeypatch)
    with pytest.raises(ExportError, match=r"player 1.0 fails for an input of \(1, 1, 3, 5\): so it is"):
        export(made("plain_m1c4_x2_y"), tmp_path / "net.glsl")
    monkeypatch.setattr(shaders, "run_player", broken)
    with pytest.raises(ExportError, match="player 1.0 cannot load the file that was written: so it is"):
        export(made("plain_m1c4_x2_y"), tmp_path / "net.glsl")
    assert not list(tmp_path.iterdir())


def test_what_shows_no_numbers_is_not_put_in_place(tmp_path, monkeypatch):
    shows(lambda x: x.repeat(1, 1, 2, 2) * float("nan"), monkeypatch)
    with pytest.raises(ExportError, match="at nan dB to torch's output"):
        export(made("plain_m1c4_x2_y"), tmp_path / "net.glsl")


def test_reading_a_file_by_itself(tmp_path, monkeypatch):
    file = tmp_path / "net.glsl"
    export(made("plain_m1c4_x2"), file)
    for read, missing in ((read_glsl, "there is no ffmpeg"), (read_wgsl, "there is no wgpu")):
        with pytest.raises(ExportError, match=f"nothing here can run the shader: {missing}"):
            read(file)
    monkeypatch.setattr(shaders, "player", lambda: ("player 1.0", ""))
    monkeypatch.setattr(shaders, "webgpu", lambda: ("wgpu", ""))
    assert read_glsl(file)[0] == "player 1.0"
    file.write_text("//!HOOK LUMA\n")
    with pytest.raises(ExportError, match="net.glsl does not say its scale; shaders that `export` wrote do"):
        read_glsl(file)
    with pytest.raises(ExportError, match="net.glsl does not say its colors"):
        try_glsl(file, nn.Identity())
    with pytest.raises(ExportError, match="net.glsl does not say its plan"):
        read_wgsl(file)


def test_why_nothing_runs_webgpu(monkeypatch):
    monkeypatch.setattr(gpus, "find_spec", lambda name: None)
    assert gpus.webgpu() == ("", "there is no package wgpu: pip install 'reparam[webgpu]'")

    def none():
        raise RuntimeError("no adapter")

    monkeypatch.setattr(gpus, "find_spec", lambda name: True)
    monkeypatch.setattr(gpus, "_adapter", none)
    assert re.fullmatch("wgpu finds no graphics card, .*mesa-vulkan-drivers: no adapter", gpus.webgpu()[1])


# The same passes in WGSL


@pytest.fixture(scope="module", params=["repsr_m1c5_x3_y", "edsr_m1c4_x4"])
def module(request, tmp_path_factory):
    """The text in both languages."""
    folder = tmp_path_factory.mktemp("shader")
    with pytest.MonkeyPatch.context() as patch:
        nothing_there(patch)
        for suffix in ("glsl", "wgsl"):
            export(made(request.param), folder / f"net.{suffix}")
    return [(folder / f"net.{suffix}").read_text() for suffix in ("glsl", "wgsl")]


def plan_of(text: str) -> list[dict]:
    return json.loads(re.search(r"^// plan: (.*)$", text, re.MULTILINE)[1])


def test_both_languages_compute_the_same(module):
    """Line by line, but for how they declare a name."""
    spelled = {"vec4 ": "let ", "ivec2": "vec2i"}
    glsl, wgsl = ([line for line in text.splitlines() if re.match(r"(vec4 |let |var |)v\d+ ", line)] for text in module)
    for old, new in spelled.items():
        glsl = [re.sub(rf"^{old}" if old == "vec4 " else old, new, line) for line in glsl]
    assert glsl == [line.replace("var ", "let ") for line in wgsl] and len(glsl) > 100


def test_a_plan_runs_entries_on_textures_that_were_written(module):
    _, text = module
    there = {0: 1}
    for one in plan_of(text):
        code = re.search(rf"fn {one['entry']}\(.*?^}}", text, re.DOTALL | re.MULTILINE)[0]
        assert set(one["reads"]) <= set(there) and one["writes"] not in there
        stores = re.findall(rf"textureStore\(written_{one['writes']}, ", code)
        assert len(stores) == (
            one["layers"] if one["writes"] < len(plan_of(text)) else (one["scale"] // one["threads"]) ** 2
        )
        there[one["writes"]] = one["layers"]
        for name in re.findall(r"= (at_\w+)\(", code):
            source = re.search(rf"fn {name}\(.*?textureLoad\(texture_(\d+)", text, re.DOTALL)
            assert int(source[1]) in one["reads"]
    bound = re.findall(r"@group\(0\) @binding\((\d+)\) var texture_(\d+)", text)
    assert all(one == other for one, other in bound) and len(bound) == len(there) - 1


def test_what_wgsl_says_of_itself(module):
    lines = module[1].splitlines()
    assert lines[0].startswith("// reparam: {") and any(line.startswith("// scale: ") for line in lines)
    assert plan_of(module[1])[-1]["layers"] == 1
