"""A room imports only from the rooms above it, and no file imports itself through others."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import reparam

ROOT = Path(reparam.__file__).parent
ROOMS = [
    "errors",
    "_tables",
    "_timing",
    "numerics",
    "algebra",
    "folding",
    "bn",
    "modules",
    "branches",
    "blocks",
    "fusing",
    "models",
    "files",
    "drawing",
    "deploy",
    "sr",
    "interop",
    "bench",
    "cli",
    "__main__",
]


def imports_of(path: Path) -> Iterator[tuple[str, ...]]:
    """Places inside of the package that a file imports from; the last part may be a name that a module defines."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from (tuple(name[1:]) for name in names if name[0] == "reparam")
        if isinstance(node, ast.ImportFrom):
            base = [*parts[: len(parts) - node.level]] if node.level else ["reparam"]
            module = (node.module or "").split(".") if node.module else []
            if node.level or module[0] == "reparam":
                base = base + module if node.level else module[1:]
                yield from ((*base, alias.name) for alias in node.names)


def files() -> dict[tuple[str, ...], Path]:
    """By the parts of their dotted names; the package itself, which hands on names of all rooms, is left out."""
    found = {path.relative_to(ROOT).with_suffix("").parts: path for path in ROOT.rglob("*.py")}
    found.pop(("__init__",))
    return {parts[:-1] if parts[-1] == "__init__" else parts: path for parts, path in found.items()}


def test_every_room_imports_only_from_those_above():
    assert len(set(ROOMS)) == len(ROOMS)
    rooms = {parts[0] for parts in files()}
    assert rooms == set(ROOMS), "a room has no place in the order, or a place has no room"
    wrong = []
    for parts, path in files().items():
        above = {*ROOMS[: ROOMS.index(parts[0]) + 1], "__version__"}
        wrong += [
            f"{path.relative_to(ROOT)} imports {'.'.join(name)}" for name in imports_of(path) if name[0] not in above
        ]
    assert not wrong


def test_the_map_for_contributors_has_every_room_in_the_order_of_imports():
    text = (ROOT.parent / "CONTRIBUTING.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [room for room in ROOMS if room != "__main__"]


def test_no_file_imports_itself_through_others():
    known = files()
    faces = {parts for parts, path in known.items() if path.name == "__init__.py"}
    graph = TopologicalSorter()
    for parts, path in known.items():
        for name in imports_of(path):
            place = name if name in known else name[:-1]
            if place in known and not (
                place in faces and place == parts[: len(place)]
            ):  # its own face is asked by no file
                graph.add(parts, place)
    graph.prepare()  # raises for a circle


def test_the_checks_see_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "branches").mkdir()
    file = tmp_path / "branches" / "_new.py"
    file.write_text(
        "from .. import cli\nfrom ..fusing._fuse import fuse\nfrom ._base import x\n"
        "import reparam.sr._demo\nfrom reparam.algebra._spec import y\nimport torch\nfrom torch import nn\n"
    )
    found = {("cli",), ("fusing", "_fuse", "fuse"), ("branches", "_base", "x"), ("sr", "_demo")}
    assert set(imports_of(file)) == {*found, ("algebra", "_spec", "y")}


def test_torch_is_imported_with_the_first_name_that_needs_it_and_the_packages_of_extras_are_not():
    extras = ("skimage", "timm", "spandrel", "PIL", "pyvips", "lightning", "lightning_fabric", "pytorch_lightning")
    rooms = ", ".join(f"reparam.{room}" for room in ROOMS)
    code = f"""
import sys, reparam
print("torch" in sys.modules)
reparam.fuse
print("torch" in sys.modules)
import {rooms}
print([m for m in {extras} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "[]"]
