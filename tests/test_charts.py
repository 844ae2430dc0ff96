"""The charts of the documentation: what they show is what the tables of their pages say."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from charts import SERIES, bars, chart, lines, plain, points, spaced, tables
from matplotlib.colors import to_hex

SVG = "{http://www.w3.org/2000/svg}"
PAGE = """
# Page

## Quality

| | PSNR | seeds |
|---|---|---|
| plain | 36.7 | 36.6, 36.8 |
| `ECBSR` | **36.84** | 36.85, 36.83 |
| RepSR | 36.85 | 36.92, 36.88 |
| unknown cost | 36.1 | 36.1 |

```bash
# Not a heading
|---|
```

## Cost

| network | folded | branches |
|---|---|---|
| plain | 1 | 1 |
| RepSR | 2.29 | 6.36 |
| ECBSR | 1.2 | 7.1 |

## Depth

| network | 4 blocks | 16 blocks |
|---|---|---|
| plain | 31.5 | 31.9 |
| SESR | 31.8 | |
| RepSR | 31.7 | 32.1 |
| ECBSR | | 31.6 |
| unknown | | |

## Engines

| graph | engine | frames/s | ms |
|:---|:--|--:|--:|
| train | torch | 12 | 80 |
| fused | [ONNX Runtime](https://onnxruntime.ai) | 1,024.5 | 1 |
| fused | ncnn | - | - |
"""
POINTS = "{title: Quality and cost, points: PSNR, against: [folded, branches], axis: time, spread: seeds}"
LINES = "{title: Depth, lines: [4 blocks, 16 blocks], axis: blocks, height: PSNR}"
BARS = "{title: Engines, bars: frames/s, label: [graph, engine]}"


def figure(source, page=PAGE):
    wanted = yaml.safe_load(source)
    del wanted["title"]
    kind = bars if "bars" in wanted else lines if "lines" in wanted else points
    return kind(list(tables(page)), **wanted).axes[0]


def drawn(source, page=PAGE):
    (svg,) = ET.fromstring(chart(source, page))
    return svg


def words(svg):
    return {"".join(element.itertext()) for element in svg.iter(f"{SVG}text")}


def test_points_are_where_the_tables_say():
    axes = figure(POINTS)
    folded, branches = (drawn.get_offsets().tolist() for drawn in axes.collections[1::2])
    assert folded == [[2.29, 36.85], [1.2, 36.84], [1, 36.7]]
    assert branches == [[6.36, 36.85], [7.1, 36.84], [1, 36.7]]


def test_the_spread_is_from_the_least_to_the_greatest():
    lines = figure(POINTS).collections[2].get_segments()
    assert [line[:, 1].tolist() for line in lines] == [[36.88, 36.92], [36.83, 36.85], [36.6, 36.8]]
    alone = figure(POINTS.replace("spread: seeds", "")).collections[2].get_segments()
    assert [line[:, 1].tolist() for line in alone] == [[36.85] * 2, [36.84] * 2, [36.7] * 2]


def test_labels_stand_beside_their_points_and_apart():
    places = {label.get_text(): label.xy[1] for label in figure(POINTS).texts}
    assert list(places) == ["RepSR", "ECBSR", "plain"] and places["RepSR"] == 36.85
    assert spaced([90.0, 3.0, 2.5, 1.0], 1) == [90, 3, 2, 1]


def test_bars_are_as_long_as_their_numbers_and_say_them():
    axes = figure(BARS)
    assert [bar.get_width() for bar in axes.patches] == [12, 1024.5]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "train, torch",
        "fused, ONNX Runtime",
        "fused, ncnn",
    ]
    assert [label.get_text() for label in axes.texts] == ["12", "1,024.5"]


def test_bars_of_two_columns_have_two_colors_and_do_not_overlap():
    first, second = figure("{title: Cost, bars: [folded, branches]}").containers
    assert [bar.get_width() for bar in second] == [1, 6.36, 7.1]
    for color, drawn_ in zip(SERIES, (first, second)):
        assert {to_hex(bar.get_facecolor()) for bar in drawn_} == {color}
    spans = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for bar in [*first, *second])
    assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(spans))


def test_lines_go_through_the_numbers_of_their_rows_where_there_are_any():
    axes = figure(LINES)
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[4, 31.7], [16, 32.1]],
        [[4, 31.5], [16, 31.9]],
        [[4, 31.8]],
        [[16, 31.6]],
    ]
    assert [label.get_text() for label in axes.texts] == ["RepSR", "plain", "SESR", "ECBSR"]
    assert [label.get_color() for label in axes.texts] == [line.get_color() for line in axes.lines]


@pytest.mark.parametrize("source", [POINTS, BARS, LINES])
def test_a_chart_takes_the_color_of_the_page_and_says_what_it_is(source):
    svg = drawn(source)
    assert svg.get("role") == "img" and svg.get("aria-label") == yaml.safe_load(source)["title"]
    allowed = ("currentColor", *SERIES) if source is LINES else ("currentColor",)
    assert all(any(c in element.get("style", "") for c in allowed) for element in svg.iter(f"{SVG}text"))
    assert chart(source, PAGE) == chart(source, PAGE)


def test_tables_are_found_with_their_headings():
    quality, cost, _, engines = tables(PAGE)
    assert (quality.section, cost.section, engines.section) == ("Quality", "Cost", "Engines")
    assert quality.rows[1] == ["ECBSR", "36.84", "36.85, 36.83"]
    assert engines.head == ["graph", "engine", "frames/s", "ms"]
    assert plain("**[a `b`](c.md#d)** e") == "a b e"


@pytest.mark.parametrize(
    ("source", "page", "problem"),
    [
        (BARS.replace("frames", "images"), PAGE, "a column 'images/s', but 0 of these have it: .*frames/s"),
        (BARS, PAGE + PAGE.replace("Engines", "Again"), "but 2 of these have it"),
        (BARS.replace("[graph, engine]", "graph"), PAGE, "have one label: train, fused"),
        (POINTS, PAGE.replace("| RepSR | 36.85", "| Rep | 36.85"), r"is named \['RepSR'\]; there are .*'Rep'"),
        (BARS.replace("title", "titel"), PAGE, "titel"),
    ],
)
def test_what_is_not_on_the_page_is_refused(source, page, problem):
    with pytest.raises((ValueError, TypeError), match=problem):
        chart(source, page)


def test_a_section_says_which_table_is_meant():
    page = PAGE + PAGE.replace("Engines", "Again").replace("1,024.5", "24")
    assert "24" in words(drawn(BARS[:-1] + ", section: Again}", page))


CHARTS = [
    pytest.param(path, source, id=f"{path.name}-{yaml.safe_load(source)['title']}")
    for path in sorted((Path(__file__).parents[1] / "docs").rglob("*.md"))
    for source in re.findall(r"^```chart\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize(("path", "source"), CHARTS)
def test_every_chart_of_the_pages_is_drawn(path, source):
    assert len(words(drawn(source, path.read_text()))) > 4


@pytest.mark.parametrize("color", SERIES)
@pytest.mark.parametrize("ground", ["#ffffff", "#1e2129"])  # of the pages, light and dark
def test_colors_are_seen_on_both_grounds(color, ground):
    dark, light = sorted(map(luminance, (color, ground)))
    assert (light + 0.05) / (dark + 0.05) > 3  # WCAG's contrast for graphics


def luminance(color):
    """Relative luminance of WCAG 2, 0 to 1."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))
