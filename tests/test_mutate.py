"""The mutation run itself: on a package of one file, of which it is known what its tests see."""

import ast
from pathlib import Path

import mutate
import pytest

TOY = """def larger(a, b):
    \"\"\"The larger of two numbers.\"\"\"
    return max(a, b)


def positive(a):
    return a > 0
"""
TESTS = """from reparam.toy import larger, positive


def test_toy():
    assert larger(1, 2) == larger(2, 1) == 2
    assert positive(2) and not positive(-2)
"""


@pytest.fixture
def toy(tmp_path) -> Path:
    for name, text in (("reparam/__init__.py", ""), ("reparam/toy.py", TOY), ("tests/test_toy.py", TESTS)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_what_tests_see_is_killed_and_what_they_do_not_see_is_told(toy, capsys):
    mutants = mutate.mutants_of("reparam/toy.py", TOY.encode())
    told = [str(mutant) for mutant in mutants]
    assert told == [
        "reparam/toy.py:3: max -> min",
        "reparam/toy.py:7: a > 0 -> (a >= 0)",
        "reparam/toy.py:7: 0 -> 1",
    ]
    alive = mutate.run(mutants, toy, jobs=2, tests=["tests/test_toy.py"])
    assert [str(mutant) for mutant in alive] == told[1:]
    printed = capsys.readouterr().out.splitlines()
    assert sorted(printed) == [f"killed   {told[0]}", f"survived {told[2]}", f"survived {told[1]}"]
    assert (toy / "reparam/toy.py").read_text() == TOY


def test_what_never_ends_is_killed(toy):
    (toy / "tests/test_toy.py").write_text("while True: pass")
    assert not mutate.passes(toy, ["tests/test_toy.py"], timeout=10)


def test_tests_that_fail_anyway_kill_nothing(toy):
    (toy / "tests/test_toy.py").write_text("def test_toy():\n    assert False")
    mutants = mutate.mutants_of("reparam/toy.py", TOY.encode())
    with pytest.raises(SystemExit, match=r"the tests fail without any mutant: pytest tests/test_toy.py"):
        mutate.run(mutants, toy, tests=["tests/test_toy.py"])


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("a <= b", ["(a < b)"]),
        ("a is not b", ["(a is b)"]),
        ("a not in b", ["(a in b)"]),
        ("a and b", ["(a or b)", "(a)", "(b)"]),
        ("a or b or c", ["(a and b and c)", "(b or c)", "(a or c)", "(a or b)"]),
        ("not a", ["(a)"]),
        ("-a", ["(a)"]),
        ("a + b", ["(a - b)"]),
        ("a // b", ["(a * b)"]),
        ("True", ["False"]),
        ("1", ["0"]),
        ("0", ["1"]),
        ("'text'", []),
        ("a if b else c", ["(a)", "(c)"]),
        ("b = any(a)", ["all"]),
        ("b = max(a)", ["min"]),
        ("a.detach()", ["a", "pass"]),
        ("f(a, b=c)", ["(f(a))", "pass"]),
        ("a.b = c", ["pass"]),
        ("a[b] = c", ["pass"]),
        ("a += b", ["pass"]),
        ("a = b", []),
        ("raise E(1 + 1)", ["pass"]),
        ("a: f(1)", []),
        ("f'{a + 1}'", []),
    ],
)
def test_every_kind_of_mutant(line, becomes):
    assert sorted(m.new for m in mutate.mutants_of("x.py", line.encode())) == sorted(becomes)


def test_the_draw_does_not_depend_on_other_lines():
    before = mutate.mutants_of("x.py", b"a = b + c\nd = [0, 0]\ne = not f\n")
    after = mutate.mutants_of("x.py", b"new = line\na = b + c\nd = [0, 0]\ne = not f\n")
    assert [m.key for m in before] == [m.key for m in after] and len({m.key for m in before}) == len(before) == 4
    for seed in range(5):
        drawn = mutate.drawn(before, 2, seed), mutate.drawn(after, 2, seed)
        assert [m.key for m in drawn[0]] == [m.key for m in drawn[1]] and len(drawn[0]) == 2
    assert len({tuple(mutate.drawn(before, 2, seed)) for seed in range(9)}) > 1


def test_every_mutant_of_the_package_is_python_and_has_tests():
    for path in mutate.core():
        source = path.read_bytes()
        mutants = mutate.mutants_of(str(path.relative_to(mutate.ROOT)), source)
        for mutant in mutate.drawn(mutants, 5, 0):
            assert source[mutant.start : mutant.end].decode() == mutant.old
            text = source[: mutant.start] + mutant.new.encode() + source[mutant.end :]
            assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(source)), mutant
    assert {mutate.row_of(path.relative_to(mutate.ROOT)) for path in mutate.core()} == set(mutate.TESTS)
    for name, tests in mutate.TESTS.items():
        assert all((mutate.ROOT / "tests" / f"test_{test}.py").exists() for test in tests.split()), name
