"""A file imports only from the layers above it."""

import ast
import subprocess
import sys
from pathlib import Path

import reparam

ROOT = Path(reparam.__file__).parent
LAYERS = [
    "errors",
    "hooks",
    "match",
    "sound",
    "precision",
    "compare",
    "running",
    "writing",
    "memory",
    "autocast",
    "constants",
    "spec",
    "kernels",
    "cost",
    "correlation",
    "convolution",
    "ring",
    "moments",
    "known_norm",
    "norm",
    "freeze",
    "schedule",
    "gap",
    "linear",
    "guard",
    "branches",
    "block",
    "blocks",
    "foreign",
    "find",
    "inspect",
    "shapes",
    "draw",
    "receptive",
    "prove",
    "fuse",
    "verify",
    "absorb",
    "swap",
    "models",
    "interop",
    "export",
    "receptive",
    "upscale",
    "quantize",
    "bench",
    "demo",
    "cli",
]


def imports_of(path: Path) -> set[str]:
    """Layers of this package that a file imports; `.` inside of a package means the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("reparam.")}
        if isinstance(node, ast.ImportFrom):
            if node.level == 0:
                base = (node.module or "").split(".")
                if base[0] != "reparam":
                    continue
                base = base[1:]
            else:
                base = [*parts[: len(parts) - node.level], *((node.module or "").split(".") if node.module else [])]
            found |= {base[0]} if base else {alias.name for alias in node.names}
    return found


def test_every_file_imports_only_from_above():
    wrong = []
    for path in ROOT.rglob("*.py"):
        layer = path.relative_to(ROOT).with_suffix("").parts[0]
        if layer == "__init__":
            continue
        assert layer in LAYERS, f"{path.name} has no place in the order of the layers"
        allowed = {*LAYERS[: LAYERS.index(layer) + 1], "__version__"}
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in imports_of(path) - allowed]
    assert not wrong


def test_the_check_sees_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "branches").mkdir()
    file = tmp_path / "branches" / "new.py"
    file.write_text(
        "from .. import cli\nfrom ..fuse import fuse\nfrom .base import x\n"
        "import reparam.demo\nfrom reparam.spec import y\n"
    )
    assert imports_of(file) == {"cli", "fuse", "branches", "demo", "spec"}


def test_the_library_does_not_import_the_packages_of_its_extras():
    extras = ("skimage", "timm", "spandrel", "PIL", "lightning", "lightning_fabric", "pytorch_lightning")
    code = f"import sys, reparam, reparam.cli; print([m for m in {extras} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
