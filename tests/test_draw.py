"""Drawings hold what the block holds, are XML, and nothing in them lies on anything else."""

import re
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from helpers import PAPERS
from strategies import KINDS
from torch import nn

from reparam import (
    ECB,
    Branch,
    ConvBNBranch,
    ConvSpec,
    DilatedReparamBlock,
    IdentityBranch,
    Kernel,
    MBRConvBlock,
    NotLinearError,
    OREPARepVGGBlock,
    ReparamBlock,
    RepMBConvBlock,
    RepSRBlock,
    SequentialBranch,
    SpecError,
    blocks,
    draw,
    freeze_bn_stats,
)
from reparam.drawing._shapes import LETTER, Box, Fork, Line, as_svg

SVG = "{http://www.w3.org/2000/svg}"
DRAWN = [name for name in PAPERS if name != "DilatedReparamBlock"]


def parsed(drawing):
    return ET.fromstring(str(drawing))


def words(drawing):
    return [element.text for element in parsed(drawing).iter(f"{SVG}text")]


def boxes(root):
    """(left, top, right, bottom) of every box."""
    sides = ([float(rect.get(name)) for name in ("x", "y", "width", "height")] for rect in root.iter(f"{SVG}rect"))
    return [(x, y, x + width, y + height) for x, y, width, height in sides]


def texts(root):
    """(left, top, right, bottom) of every text, and what it says."""
    found = []
    for element in root.iter(f"{SVG}text"):
        x, y, size = (float(element.get(name)) for name in ("x", "y", "font-size"))
        width = LETTER * size * len(element.text)
        left = x if element.get("text-anchor") == "start" else x - width / 2
        found.append(((left, y - 0.75 * size, left + width, y + 0.2 * size), element.text))
    return found


def wires(root):
    """Stretches between two corners, as thin boxes; the heads of arrows, which are slanted, are left out."""
    found = []
    for path in root.iter(f"{SVG}path"):
        corners = [tuple(map(float, pair.split())) for pair in path.get("d")[1:].split(" L")]
        for (x1, y1), (x2, y2) in pairwise(corners):
            if x1 == x2 or y1 == y2:
                found.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    return found


def overlap(a, b, least=0.01):
    """Whether they have more in common than a coordinate's rounding."""
    return a[0] < b[2] - least and b[0] < a[2] - least and a[1] < b[3] - least and b[1] < a[3] - least


def inside(a, b):
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


def collisions(drawing):
    """What lies on something else, or beyond the edge."""
    root = parsed(drawing)
    whole = tuple(map(float, root.get("viewBox").split()))
    rects, words, lines = boxes(root), texts(root), wires(root)
    wrong = [(a, b) for a, b in combinations(rects, 2) if overlap(a, b)]
    wrong += [(a, b) for a, b in combinations([place for place, _ in words], 2) if overlap(a, b)]
    wrong += [(word, box) for word, _ in words for box in rects if overlap(word, box) and not inside(word, box)]
    wrong += [(line, box) for line in lines for box in [*rects, *(place for place, _ in words)] if overlap(line, box)]
    return wrong + [a for a in [*rects, *lines, *(place for place, _ in words)] if not inside(a, whole)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_every_kind_is_drawn_and_nothing_overlaps(kind, ndim):
    drawing = draw(KINDS[kind](ConvSpec(6, 6, 3, groups=3, ndim=ndim)))
    assert not collisions(drawing)
    assert any("x".join("3" * ndim) in said for said in words(drawing))


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawing_names_every_branch_and_every_module(name):
    block = getattr(blocks, name)(4, 8)
    said = words(draw(block))
    if len(block.branches) > 1:
        for branch in block.branches:
            assert type(branch).__name__ in said
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            size = "x".join(map(str, module.kernel_size))
            assert f"conv {size}" in said
            assert any(word.startswith(f"{module.in_channels} → {module.out_channels}") for word in said)
        if isinstance(module, nn.BatchNorm2d):
            assert "BN" in said and str(module.num_features) in said


def test_repsr_is_drawn_word_by_word():
    path = ["ExpandSqueezeBranch", "conv 3x3", "4 → 8", "BN", "8", "conv 1x1", "8 → 4"]
    caption, fused = "RepSRBlock in training: 696 parameters", "after fusing: 148 parameters"
    said = words(draw(RepSRBlock(4)))
    assert said == [caption, "x", "IdentityBranch", *path, *path, "+", "y", fused, "x", "conv 3x3", "4 → 4", "y"]
    assert sum(p.numel() for p in RepSRBlock(4).parameters()) == 696


def test_geometry_is_told_where_it_is_unusual():
    said = words(draw(DilatedReparamBlock(4, kernel_size=7, groups=4, stride=2)))
    assert {"4 → 4, stride 2, groups 4", "4 → 4, stride 2, dilation 3, groups 4"} < set(said)
    assert "4 → 6, stride 2x1, dilation 2" in words(draw(ReparamBlock(ConvSpec(4, 6, 3, (2, 1), 1, 2), [ConvBNBranch])))


def test_edge_filters_and_gates_have_names():
    assert {"Sobel x 3x3", "Sobel y 3x3", "Laplacian 3x3"} < set(words(draw(ECB(4))))
    assert {"mean 3x3", "cosine 3x3", "scale", "identity + conv 1x1"} < set(words(draw(OREPARepVGGBlock(4))))
    assert "gate" in words(draw(RepMBConvBlock(4)))


def test_what_is_put_side_by_side_is_not_added():
    shared, own = (words(draw(MBRConvBlock(2, shared=shared))) for shared in (True, False))
    assert "+" not in shared and shared.count("concat") == 5 and shared.count("conv 3x1") == 1
    assert own.count("concat") == 1 and own.count("conv 3x1") == 2 and own.count("BN") == 4
    assert "BN" not in words(draw(MBRConvBlock(2, bn=False)))


def test_a_batch_norm_after_the_sum_is_drawn_after_it():
    said = words(draw(ReparamBlock(ConvSpec(4), [ConvBNBranch, ConvBNBranch], bn=True)))
    assert said[said.index("+") + 1 :][:2] == ["BN", "4"]


def test_frozen_batch_norms_are_told_apart():
    block = RepSRBlock(4)
    block(torch.rand(2, 4, 6, 6))
    freeze_bn_stats(block)
    said = words(draw(block))
    assert said.count("frozen BN") == 2 and "BN" not in said


class Blur(Branch):
    def kernel(self):
        return Kernel(self.like.new_ones(4, 4, 3, 3), self.like.new_zeros(4))


def stack(spec):
    return SequentialBranch(spec, nn.Conv2d(4, 9, 1), nn.BatchNorm2d(9), nn.Conv2d(9, 4, 3))


def test_blocks_of_ones_own_are_drawn():
    block = ReparamBlock(ConvSpec(4), [Blur, stack])
    said = words(draw(block))
    assert said[2:5] == ["Blur", "kernel() 3x3", "4 → 4"]
    assert said[5:12] == ["SequentialBranch", "conv 1x1", "4 → 9", "BN", "9", "conv 3x3", "9 → 4"]
    assert not collisions(draw(block))


def test_a_line_is_as_long_as_its_label():
    long = type("PassesItsInputOnAndHasALongName", (IdentityBranch,), {})
    assert not collisions(draw(ReparamBlock(ConvSpec(4), [long, long])))


def test_drawing_changes_nothing():
    block = ECB(4)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    assert str(draw(block)) == str(draw(block))
    assert all(torch.equal(before[name], value) for name, value in block.state_dict().items())
    assert block.training


def test_labels_are_escaped():
    odd = type('A<b>&"c"', (Blur,), {})
    root = parsed(draw(ReparamBlock(ConvSpec(4), [odd, odd])))
    assert 'A<b>&"c"' in [element.text for element in root.iter(f"{SVG}text")]
    assert 'A<b>&"c"' in parsed(draw(odd(ConvSpec(4)))).get("aria-label")


def test_a_box_shows_its_module():
    notes = [element.text for element in parsed(draw(RepSRBlock(4))).iter(f"{SVG}title")]
    assert "Conv2d(4, 8, kernel_size=(3, 3), stride=(1, 1))" in notes


def test_colors_are_those_of_the_page():
    root = parsed(draw(ECB(4)))
    assert all(element.get("fill") == "currentColor" for element in root.iter(f"{SVG}text"))
    assert not re.search("black|white|#000|#fff", str(draw(ECB(4))))


def test_a_drawing_is_shown_and_saved(tmp_path):
    drawing = draw(RepSRBlock(4))
    assert drawing._repr_svg_() == str(drawing) == drawing.svg
    drawing.save(tmp_path / "block.svg")
    assert (tmp_path / "block.svg").read_text(encoding="utf-8") == drawing.svg
    assert [file.name for file in tmp_path.iterdir()] == ["block.svg"]


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(SpecError, match="end in .svg, but got 'block.png'"):
        draw(RepSRBlock(4)).save(tmp_path / "block.png")
    assert not list(tmp_path.iterdir())


def test_what_is_no_block_is_refused_and_its_blocks_are_named():
    with pytest.raises(NotLinearError, match=r"but got Sequential; .* get_submodule of '0', '2'"):
        draw(nn.Sequential(RepSRBlock(4), nn.PReLU(), ECB(4)))
    with pytest.raises(NotLinearError, match="but got Conv2d; it contains no block"):
        draw(nn.Conv2d(4, 4, 3))
    with pytest.raises(NotLinearError, match="but got str; it contains no block"):
        draw("RepSRBlock")


def test_the_check_of_overlaps_sees_them():
    box = Box("conv 3x3", "4 → 4")
    apart = as_svg("name", [("caption", Line((box, Fork((Line((box,), "one"), Line((box,), "two"))))))])
    assert not collisions(apart)
    assert collisions(apart.replace('y="', 'y="1')) and collisions(re.sub('width="[0-9.]+"', 'width="200"', apart))
    wire, *_ = re.findall(r'<path d="M[^"]*"/>', apart)
    rect = boxes(ET.fromstring(apart))[0]
    crossing = f'<path d="M{rect[0] - 5:g} {rect[1] + 3:g} L{rect[2] + 5:g} {rect[1] + 3:g}"/>'
    assert collisions(apart.replace(wire, crossing))


def test_the_picture_of_the_readme_is_what_draw_makes():
    picture = Path(__file__).parents[1] / "docs/assets/repsr_block.svg"
    assert picture.read_text() == str(draw(RepSRBlock(16)))
