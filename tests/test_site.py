"""What the documentation site is made with, beside mkdocs: formulas, docstrings, pictures, the live page."""

import importlib.util
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import skimage
import torch
from helpers import PAPERS
from PIL import Image

import reparam
from reparam.sr._upscale import color

SVG = "{http://www.w3.org/2000/svg}"
DOCS = Path(__file__).parents[1] / "docs"


def hook(name):
    """A file of docs/hooks, as mkdocs loads it."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_formulas_are_found_in_the_html_of_a_page(monkeypatch):
    mathematics = hook("mathematics")
    monkeypatch.setattr(mathematics, "mathml", lambda latex, display: f"<{latex}|{display}>")
    html = r'a <span class="arithmatex">\(x &lt; y\)</span> b <div class="arithmatex">\[\sum_x'
    html += "\n" + r"  y\]</div> <code>\(z\)</code>"
    assert mathematics.on_page_content(html, page=None) == "a <x < y|False> b <\\sum_x\n  y|True> <code>\\(z\\)</code>"


def test_a_formula_of_another_form_stops_the_build():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="folding.md"))
    with pytest.raises(ValueError, match="a formula of folding.md"):
        hook("mathematics").on_page_content('<p class="arithmatex">$x$</p>', page=page)


def test_equations_side_by_side_may_be_put_one_below_the_other():
    root = ET.fromstring(hook("mathematics").mathml(r"a = \frac{b}{c}, \qquad d = e", display=True))
    assert [element.get("display") for element in root] == ["block", "block"]
    assert ["".join(element.itertext()) for element in root] == ["a=bc,", "d=e"]


def test_an_unknown_command_stops_the_build():
    with pytest.raises(ValueError, match=r"a command in the formula 'x \\\\nocommand'"):
        hook("mathematics").mathml(r"x \nocommand", display=False)


PICTURES = hook("pictures")
FENCE = re.compile(r"^```(draw|costs|kernels)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FENCES = [match.groups() for page in sorted(DOCS.rglob("*.md")) for match in FENCE.finditer(page.read_text())]


@pytest.mark.parametrize(("name", "source"), FENCES)
def test_every_picture_is_made(name, source):
    root = ET.fromstring(PICTURES.FENCES[name](source))
    marks = {"costs": "td", "draw": f"{SVG}text", "kernels": f"{SVG}rect"}
    assert len(list(root.iter(marks[name]))) > 4


def test_every_block_is_drawn_and_its_cost_told():
    told = {name: " ".join(source for kind, source in FENCES if kind == name) for name in ("draw", "costs")}
    for block in PAPERS:
        assert f"{block}(" in told["draw"] and f"{block}(" in told["costs"]


def test_costs_are_those_of_the_block():
    assert PICTURES.cost_row("ECB(16)")[:3] == ["<code>ECB(16)</code>", "8,400", "2,320"]
    plain = 3 * 16 * 16 * 9
    on_pixels = plain + 13 * 16 * 16 + 25 * 16 * 16  # and what does not depend on them, to be seen on small images only
    branches = plain + 3 * 16 * 16 + 3 * 150 * 16 + 2 * 30 * 16
    run, folded = PICTURES.cost_row("RepVGGBlock(16)")[3:]
    assert run == f"{branches / plain:.1f}" and 1 < float(folded) * plain / on_pixels < 1.3
    assert PICTURES.cost_row("ECB(16)")[4] == "1.0"
    assert 1 < float(PICTURES.cost_row("OREPABlock(16)")[4]) * plain / (plain + 150 * 16) < 1.1
    assert PICTURES.cost_row("DilatedReparamBlock(16, kernel_size=7, groups=16)")[4] == "none"


def test_a_heat_map_shows_every_tap_at_its_place():
    weight = torch.zeros(2, 1, 3, 3)
    weight[1, 0, 2, 0] = -0.25
    cells = [cell.attrib for cell in ET.fromstring(f"<svg>{PICTURES.heat_map(weight, 5, 7)}</svg>")]
    (shown,) = [cell for cell in cells if cell["fill-opacity"] != "0.00"]
    assert len(cells) == 18
    assert (shown["fill"], shown["fill-opacity"]) == (PICTURES.MINUS, "0.50")
    below = 3 * PICTURES.TAP + PICTURES.GUTTER + 2 * PICTURES.TAP
    assert (float(shown["x"]), float(shown["y"])) == (5, 7 + below)


def test_the_last_kernel_is_the_sum_of_the_others():
    root = ET.fromstring(PICTURES.kernel_maps("RepSRBlock(4, bn=False, gain=5.0)"))
    names = [element.text for element in root.iter(f"{SVG}text")]
    kinds = ["IdentityBranch", "ExpandSqueezeBranch", "ExpandSqueezeBranch", "the convolution"]
    assert [name for name in names if name not in "+="] == kinds
    assert [name for name in names if name in "+="] == ["+", "+", "="]
    values = [_value(rect) for rect in root.iter(f"{SVG}rect")]
    maps = torch.tensor(values).reshape(4, -1)
    assert torch.allclose(maps[:3].sum(0), maps[3], atol=0.05)


def _value(rect):
    strength = float(rect.get("fill-opacity")) ** 2
    return strength if rect.get("fill") == PICTURES.PLUS else -strength


LIVE = hook("live")
PINNED = DOCS / "live"


def npm(folder, body, monkeypatch):
    """A program named npm, and nothing else on the PATH but what a shell needs."""
    folder.mkdir(exist_ok=True)
    program = folder / "npm"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_npm_is_asked_once_for_each_version(tmp_path, monkeypatch):
    dist = "node_modules/onnxruntime-web/dist"
    body = f"echo $* >>asked; mkdir -p {dist}; cd {dist}; touch {' '.join(LIVE.RUNTIME)}"
    npm(tmp_path / "bin", body, monkeypatch)
    for _ in range(2):
        assert all(file.exists() for file in LIVE.runtime(PINNED, tmp_path))
        assert (tmp_path / "asked").read_text() == "ci --ignore-scripts --no-audit\n"
    (tmp_path / "package-lock.json").write_text("of another version")
    LIVE.runtime(PINNED, tmp_path)
    assert len((tmp_path / "asked").read_text().splitlines()) == 2


def test_without_npm_the_build_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"live.md runs ONNX Runtime Web, .*there is no npm: install Node.js"):
        LIVE.runtime(PINNED, tmp_path)


def test_what_npm_says_is_told(tmp_path, monkeypatch):
    npm(tmp_path / "bin", "echo no space left >&2; exit 1", monkeypatch)
    with pytest.raises(RuntimeError, match=f"npm could not install ONNX Runtime Web into {tmp_path}: no space left"):
        LIVE.runtime(PINNED, tmp_path)


def test_the_runtime_is_pinned_and_names_no_server():
    (wanted,) = json.loads((PINNED / "package.json").read_text())["dependencies"].values()
    packages = json.loads((PINNED / "package-lock.json").read_text())["packages"]
    assert packages["node_modules/onnxruntime-web"]["version"] == wanted
    assert not any("resolved" in package for package in packages.values())


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_interpolation_is_a_convolution(scale):
    x = torch.rand(1, 3, 7, 5)
    wanted = color.bicubic(x, scale)
    assert torch.allclose(LIVE.bicubic(scale)(x), wanted, atol=1e-6)


def test_the_page_is_told_scale_and_radius_of_each_network(tmp_path, monkeypatch):
    monkeypatch.setattr(reparam, "list_models", lambda **_: ["repsr_m4c16_x3", "repsr_m4c16_x2_y"])
    files = LIVE.networks(tmp_path)
    assert [file.name for file in files] == ["repsr_m4c16_x3.onnx", "bicubic_x3.onnx", "networks.json"]
    assert json.loads(files[-1].read_text()) == [{"name": "repsr_m4c16_x3", "scale": 3, "radius": 6}]


def test_the_sample_is_a_photo(tmp_path):
    with Image.open(LIVE.sample(tmp_path)) as image:
        assert image.mode == "RGB" and np.std(image) > 30


def test_the_still_picture_is_bicubic_on_the_left_and_the_network_on_the_right(tmp_path):
    with Image.open(LIVE.still(tmp_path)) as image:
        shown = np.asarray(image).astype(float)
    small = skimage.data.chelsea()[72:162, 120:240]
    x = torch.from_numpy(small.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    cubic = 255 * color.bicubic(x, 4)[0].permute(1, 2, 0).numpy()
    sharp = reparam.Upscaler("repsr_m6c32_x4", engine="torch")(small)
    far = [[np.abs(shown - whole)[:, half].mean() for half in np.s_[:240, 240:]] for whole in (cubic, sharp)]
    assert shown.shape == (360, 480, 3)
    assert far[0][0] < 0.7 * far[1][0] and far[1][1] < 0.7 * far[0][1]
