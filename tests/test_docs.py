"""Every python fence of the README and the docs runs, and every relative link leads somewhere."""

import re
from pathlib import Path

import pytest

import reparam

pytestmark = pytest.mark.usefixtures("as_users_get_it")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCES = [
    pytest.param(fence, id=f"{page.name}-{index}")
    for page in PAGES
    for index, fence in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
]


def test_every_page_is_in_the_source_distribution():
    """Its tests could not even be collected without one."""
    listed = re.search(r"targets\.sdist\]\ninclude = \[(.*)\]", (ROOT / "pyproject.toml").read_text())[1]
    shipped = {*re.findall(r'"/([^"]+)"', listed), "README.md"}  # the readme of the project always is
    assert {page.relative_to(ROOT).parts[0] for page in PAGES} <= shipped


def test_the_home_page_lists_every_extra():
    table = re.findall(r"^\| `'\.\[(\w+)\]'` \|", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)
    declared = re.search(
        r"optional-dependencies\]\n(.*?)^\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE
    )
    assert sorted(table) == sorted(re.findall(r"^(\w+) = ", declared[1], re.MULTILINE))


def test_what_is_to_be_cited_is_this_version():
    cited = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", cited, re.MULTILINE)[1] == reparam.__version__


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning's use of torch
@pytest.mark.parametrize("fence", FENCES)
def test_fence_runs(fence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(fence, "fence", "exec"), {"__name__": "__main__"})


NUMBER = re.compile(r"\d\S*")
PRINTED = re.compile(
    r"^```python\n((?:(?!^```).)*?)^```\n\nIt prints[^\n]*\n\n```\n(.*?)^```", re.DOTALL | re.MULTILINE
)
OUTPUTS = [
    pytest.param(*match.groups(), id=f"{page.name}-{index}")
    for page in PAGES
    for index, match in enumerate(PRINTED.finditer(page.read_text()))
]


@pytest.mark.parametrize(("fence", "shown"), OUTPUTS)
def test_what_a_page_shows_is_what_its_fence_prints(fence, shown, tmp_path, monkeypatch, capsys):
    """Words and order; numbers depend on the machine."""
    monkeypatch.chdir(tmp_path)
    exec(compile(fence, "fence", "exec"), {"__name__": "__main__"})
    printed, shown = (
        [NUMBER.sub("0", line).split() for line in text.splitlines()] for text in (capsys.readouterr().out, shown)
    )
    assert printed == shown


def test_the_home_page_and_the_first_tutorial_show_what_they_print():
    assert {"index.md-0", "fuse_and_verify.md-0"} <= {param.id for param in OUTPUTS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
