"""Every page of the site at the width of a phone."""

import pytest

MEASURE = """() => {
    const root = document.documentElement;
    const views = [...document.querySelectorAll(".md-typeset__scrollwrap, .md-content pre > code, .formula, .picture")];
    const larger = views.filter((view) => view.scrollWidth > view.clientWidth + 1);
    for (const view of larger) view.scrollLeft = view.scrollWidth;
    const tables = larger.map((view) => view.querySelector("table")).filter(Boolean).map((table) => {
        const [cell, view] = [table.querySelector("tbody > tr > *"), table.closest(".md-typeset__scrollwrap")];
        const [inside, outside] = [cell.getBoundingClientRect(), view.getBoundingClientRect()];
        const text = table.innerText.slice(0, 40);
        return { text, left: inside.left - outside.left, width: inside.width };
    });
    const cut = larger.filter((view) => !view.scrollLeft).map((view) => view.innerText.slice(0, 40));
    return { wide: root.scrollWidth - root.clientWidth, tables, cut };
}"""


@pytest.fixture(scope="module")
def measured(browser, address, site):
    """What is measured of each page after what is wider than the phone was moved to its end."""
    page, found = browser.new_page(viewport={"width": 390, "height": 844}), {}
    for file in sorted(site.rglob("index.html")):
        name = file.parent.relative_to(site).as_posix()
        page.goto(f"{address}{name}/")
        found[name] = page.evaluate(MEASURE)
    page.close()
    return found


def test_no_page_is_wider_than_a_phone(measured):
    assert len(measured) > 40
    assert {name: one["wide"] for name, one in measured.items() if one["wide"]} == {}


def test_what_is_wider_than_a_phone_can_be_moved(measured):
    assert {name: one["cut"] for name, one in measured.items() if one["cut"]} == {}


def test_the_first_column_of_a_wide_table_stays_and_leaves_room_for_the_others(measured):
    tables = [(name, table) for name, one in measured.items() for table in one["tables"]]
    assert {"comparison", "foreign", "quantization"} <= {name for name, _ in tables}
    gone = [(name, table) for name, table in tables if not -1 <= table["left"] <= 17]  # 16 is the margin of a table
    assert gone == []
    assert [(name, table) for name, table in tables if not 70 < table["width"] < 195] == []
