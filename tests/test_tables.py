"""Results as text: columns in line, and every cell whole."""

import string

from hypothesis import example, given
from hypothesis import strategies as st

from reparam._tables import table

WORDS = st.text(string.ascii_letters + "._-", min_size=1, max_size=120)
NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@example([("a" * 90, 1.0, None, "b" * 90)])
@given(st.lists(st.tuples(WORDS, NUMBERS, st.none() | st.integers(), WORDS), min_size=1, max_size=6))
def test_every_cell_is_whole_and_in_its_column(rows):
    titles, *lines = table({"name": "", "error": ".2e", "count": ",", "remark": ""}, rows).splitlines()
    assert len(lines) == len(rows)
    for line, (name, error, count, remark) in zip(lines, rows):
        shown = [name, f"{error:.2e}", *([] if count is None else [f"{count:,}"]), remark]
        assert line.split() == shown
        assert line.startswith(name) and line.endswith(remark)
        assert line[: titles.index("error") + 5].endswith(shown[1])
        assert line[titles.index("remark") :] == remark


def test_text_may_stand_in_a_column_of_numbers():
    text = table({"": "", "bicubic": ">", "fused": ".1f"}, [("PSNR", "31.71", 34.25), ("steps", None, "none")])
    assert text.splitlines() == ["       bicubic  fused", "PSNR     31.71   34.2", f"steps{'none':>16}"]


def test_without_rows_it_is_a_line_of_titles():
    assert table({"block": "", "error": ".0e"}, []) == "block  error"
