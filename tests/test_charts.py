"""The charts of the documentation: what they show is what the tables of their pages say."""

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from charts import SERIES, Scale, chart, even, octaves, plain, spaced, tables

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

## Engines

| graph | engine | frames/s | ms |
|:---|:--|--:|--:|
| train | torch | 12 | 80 |
| fused | [ONNX Runtime](https://onnxruntime.ai) | 1,024.5 | 1 |
| fused | ncnn | - | - |
"""
POINTS = "{title: Quality and cost, points: PSNR, against: [folded, branches], axis: time, spread: seeds}"
BARS = "{title: Engines, bars: frames/s, label: [graph, engine]}"


def drawn(source, page=PAGE):
    (svg,) = ET.fromstring(chart(source, page))
    return svg


def words(svg):
    """Places of the texts, by what they say."""
    return {element.text: tuple(float(element.get(k)) for k in "xy") for element in svg.iter(f"{SVG}text")}


def axis(svg, coordinate):
    """From places to numbers, read off the texts of the ticks at both ends."""
    anchor, shift, bend, back = ("middle", 0, math.log, math.exp) if coordinate == "x" else ("end", 4, float, float)
    ticks = [element for element in svg.iter(f"{SVG}text") if element.get("text-anchor") == anchor]
    ticks = [tick for tick in ticks if re.fullmatch(r"[\d.]+", tick.text)]
    (p, a), *_, (q, b) = [(float(tick.get(coordinate)) - shift, bend(float(tick.text))) for tick in ticks]
    return lambda place: back(a + (place - p) / (q - p) * (b - a))


def test_points_are_where_the_tables_say():
    svg = drawn(POINTS)
    x, y = axis(svg, "x"), axis(svg, "y")
    discs = list(svg.iter(f"{SVG}circle"))[2:]  # two are the legend's
    shown = [(round(x(float(c.get("cx"))), 2), round(y(float(c.get("cy"))), 3), c.get("stroke")) for c in discs]
    folded, branches = SERIES[:2]
    assert shown == [
        (2.29, 36.85, folded),
        (6.36, 36.85, branches),
        (1.2, 36.84, folded),
        (7.1, 36.84, branches),
        (1, 36.7, folded),
        (1, 36.7, branches),
    ]


def test_the_spread_is_from_the_least_to_the_greatest():
    svg = drawn(POINTS)
    y = axis(svg, "y")
    lines = [group[0].get("d") for group in svg.iter(f"{SVG}g") if group.get("stroke") == SERIES[1]]
    ends = [[round(y(float(number)), 3) for number in re.findall(r" ([\d.]+)", line)] for line in lines]
    assert ends == [[36.88, 36.92], [36.83, 36.85], [36.6, 36.8]]


def test_without_a_spread_the_points_are_the_same():
    one, other = (
        [c.get("cx") for c in drawn(s).iter(f"{SVG}circle")] for s in (POINTS, POINTS.replace("spread: seeds", ""))
    )
    assert one == other


def test_labels_stand_beside_their_points_and_apart():
    svg = drawn(POINTS)
    discs = {c.get("cy") for c in list(svg.iter(f"{SVG}circle"))[2:]}
    labels = [words(svg)[name][1] for name in ("RepSR", "ECBSR", "plain")]
    assert labels[0] + 16 <= labels[1] <= labels[2] - 16
    assert labels[0] - 4 == pytest.approx(min(map(float, discs)), abs=0.01)
    assert spaced([1.0, 2.0, 3.0, 90.0]) == [1, 17, 33, 90]


def test_bars_are_as_long_as_their_numbers_and_say_them():
    svg = drawn(BARS)
    train, fused = [float(rect.get("width")) for rect in svg.iter(f"{SVG}rect")][1:]  # one is the legend's
    assert train / fused == pytest.approx(12 / 1024.5, abs=1e-4)
    said = words(svg)
    assert said["1,024.5"][1] == pytest.approx(said["fused, ONNX Runtime"][1], abs=2)
    assert "fused, ncnn" in said and "-" not in said


def test_bars_of_two_columns_have_two_colors():
    rects = list(drawn("{title: Cost, bars: [folded, branches]}").iter(f"{SVG}rect"))[2:]
    assert [rect.get("fill") for rect in rects] == [*SERIES[:2]] * 3
    widths = [float(rect.get("width")) for rect in rects]
    assert [width / max(widths) * 7.1 for width in widths] == pytest.approx([1, 1, 2.29, 6.36, 1.2, 7.1], abs=0.01)


@pytest.mark.parametrize("source", [POINTS, BARS])
def test_nothing_is_outside_and_a_reader_is_told_what_it_is(source):
    svg = drawn(source)
    width, height = (float(svg.get(side)) for side in ("width", "height"))
    for element in svg.iter(f"{SVG}text"):
        half = len(element.text) * 12 * 0.6
        left = float(element.get("x")) - {"start": 0, "middle": half / 2, "end": half}[element.get("text-anchor")]
        assert left >= 0 and left + half <= width and 0 < float(element.get("y")) < height
    assert svg.get("role") == "img" and svg.get("aria-label") == svg.find(f".//{SVG}title").text
    assert all(element.get("fill") == "currentColor" for element in svg.iter(f"{SVG}text"))


def test_a_scale_ends_at_round_numbers():
    assert even([36.56, 36.96]) == pytest.approx([36.5, 36.6, 36.7, 36.8, 36.9, 37.0])
    assert even([0, 7.1]) == [0, 2, 4, 6, 8]
    assert even([5, 5]) == [5, 6]
    assert octaves([1, 7.1]) == [1, 2, 4, 8]
    assert octaves([0.9, 2]) == [0.5, 1, 2]
    assert octaves([1, 1]) == [1, 2]
    assert Scale([0, 100, 400], 10, 110)(100) == 35
    assert Scale([1, 2, 4, 8], 10, 40, math.log)(4) == pytest.approx(30)


def test_tables_are_found_with_their_headings():
    quality, cost, engines = tables(PAGE)
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
