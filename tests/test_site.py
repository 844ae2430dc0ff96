"""What the documentation site is made with, beside mkdocs: formulas, docstrings, pictures."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import reparam

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
