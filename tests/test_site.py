"""What the documentation site is made with, beside mkdocs: formulas, docstrings, pictures."""

import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import reparam
from reparam import blocks

SVG = "{http://www.w3.org/2000/svg}"
DOCS = Path(__file__).parents[1] / "docs"


def hook(name):
    """A file of docs/hooks, as mkdocs loads it."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_in_the_api():
    listed = {
        path.rpartition(".")[2]
        for page in (DOCS / "api").glob("*.md")
        for path in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    }
    missing = [name for name in reparam.__all__ if name not in listed and not name.endswith("Error")]
    assert not missing  # the errors are the members of one module


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
    for block in blocks.__all__:
        assert f"{block}(" in told["draw"] and f"{block}(" in told["costs"]


def test_costs_are_those_of_the_block():
    assert PICTURES.cost_row("ECB(16)")[:3] == ["<code>ECB(16)</code>", "8,400", "2,320"]
    plain = 3 * 16 * 16 * 9
    folded = plain + 13 * 16 * 16 + 25 * 16 * 16 + 1e8 / (16 * 64 * 64)
    branches = plain + 3 * 16 * 16 + 3 * 150 * 16 + 2 * 30 * 16
    assert PICTURES.cost_row("RepVGGBlock(16)")[3:] == [f"{branches / plain:.1f}", f"{folded / plain:.1f}"]
    assert PICTURES.cost_row("ECB(16)")[4] == "1.0"
    assert PICTURES.cost_row("OREPABlock(16)")[4] == f"{(plain + 150 * 16) / plain:.1f}"
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
