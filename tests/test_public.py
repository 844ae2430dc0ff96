"""The public face: what users import, what the documents tell them to, and where each name is described."""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import reparam

ROOT = Path(__file__).parents[1]
ROOMS = [
    "algebra",
    "bench",
    "blocks",
    "bn",
    "branches",
    "deploy",
    "drawing",
    "errors",
    "files",
    "folding",
    "fusing",
    "sr",
]

OF_0_1_0 = """
ECB ECBSR EDBB EDSR RRRB SESR ACBlock AvgPoolBranch BNFreezeSchedule BNGap BNGapReport Branch CheckpointError
CollapsibleLinearBlock CollapsibleSR Conv3XC ConvBNBranch ConvBranch ConvSpec DilatedReparamBlock DiverseBranchBlock
ExpandSqueezeBranch ExportError ExportReport FrozenStatsBN FuseError IdentityBranch Kernel LaplacianBranch LayerRange
MBRConvBlock MobileOneBlock NotLinearError OREPABlock OREPARepVGGBlock OptionError PlainSR QARepVGGBlock QARepVGGSR
QuantizationReport RepMBConvBlock RepRFNBlock RepSR RepSRBlock RepVGGBlock RepVGGSR ReparamBlock ReparamError
SequentialBranch SobelBranch SpecError StatisticsError SwapReport Upscaler bn_gap create_model draw export
freeze_bn_stats fuse fuse_file fuse_state_dict fused inspect_file inspect_model kernel_of list_models load_checkpoint
pretrained_file quantize recalibrate_bn_stats save_checkpoint set_fold swap_convs unfreeze_bn_stats verify
"""


@pytest.mark.parametrize("name", OF_0_1_0.split())
def test_what_version_0_1_0_promised_is_still_there(name):
    assert callable(getattr(reparam, name))


@pytest.mark.parametrize(
    "module", ["models", "blocks", "branches", "bench", "interop.basicsr", "interop.lightning", "errors", "cli"]
)
def test_modules_of_version_0_1_0_are_still_there(module):
    import_module(f"reparam.{module}")


def test_what_is_at_the_top_is_promised_by_a_room():
    promised = {name: room for room in ROOMS for name in import_module(f"reparam.{room}").__all__}
    for name in reparam.__all__:
        assert getattr(reparam, name) is getattr(import_module(f"reparam.{promised[name]}"), name)


def imports_of(code: str) -> Iterator[str]:
    """Dotted names of what a text imports from this package."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "reparam")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "reparam":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def shown() -> Iterator[tuple[str, str]]:
    """All code that users are shown."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for fence in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            yield page.name, fence
    for path in sorted((ROOT / "examples").rglob("*.py")):
        yield str(path.relative_to(ROOT)), path.read_text()


def test_nobody_is_shown_a_private_module():
    wrong = [(place, name) for place, code in shown() for name in imports_of(code) if "._" in name]
    assert not wrong


def test_names_are_imported_from_where_they_are_promised():
    """From the top those of its `__all__`, and the others from their rooms."""
    wrong = [
        (place, name)
        for place, code in shown()
        for name in imports_of(code)
        if re.fullmatch(r"reparam\.\w+", name) and name.split(".")[1] not in (*reparam.__all__, *ROOMS)
    ]
    assert not wrong


def test_the_checks_see_every_form_of_import():
    code = "import reparam.sr._demo\nif 1:\n    from reparam import (ECB,\n  create_model)\nimport torch\n"
    code += "from reparam.bn._norm import norms\nfrom torch import nn"
    found = {"reparam.sr._demo", "reparam.ECB", "reparam.create_model", "reparam.bn._norm.norms"}
    assert set(imports_of(code)) == found


def described() -> dict[str, set[str]]:
    """The names on each page of the API; those of a module that is shown whole, too."""
    pages: dict[str, set[str]] = {}
    for page in (ROOT / "docs" / "api").glob("*.md"):
        names = pages[page.stem] = set()
        for path in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            place, _, name = path.rpartition(".")
            found = getattr(import_module(place), name)
            assert "._" not in path
            names |= set(getattr(found, "__all__", ())) if inspect.ismodule(found) else {name}
    return pages


def test_every_name_is_described_on_the_page_of_its_room():
    pages, deprecated = described(), {"fused"}
    for room in ROOMS:
        for name in set(import_module(f"reparam.{room}").__all__) - deprecated:
            (where,) = [page for page, names in pages.items() if name in names]
            assert name in import_module(f"reparam.{where}").__all__
