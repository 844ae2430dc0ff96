"""Changes one thing of the package at a time and lists the changes that no test notices.

    python tests/mutate.py --only reparam/algebra/_spec.py --only reparam/bn
    python tests/mutate.py --sample 60 --seed 0          # of the core; a change is drawn by its line, not by its number

Every mutant lives in a copy of the repository. It runs the tests of its file, up to the first that fails; what passes
them all has survived. Some survivors change nothing (a shortcut not taken), so the score need not reach 100 %.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple, NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent

TESTS = {
    "spec": "spec kernels linear branches contract",
    "kernels": "kernels linear branches contract",
    "linear": "linear branches mutants contract fold",
    "precision": "no_float64 digits",
    "correlation": "digits fold",
    "convolution": "digits fold",
    "moments": "fold batch_statistics gap digits",
    "ring": "fold",
    "cost": "choosing fold",
    "tune": "tune",
    "norm": "batch_statistics branches gap freeze fold laws",
    "known_norm": "laws freeze",
    "freeze": "freeze gap schedule laws",
    "schedule": "schedule",
    "gap": "gap",
    "autocast": "contract",
    "constants": "laws contract",
    "guard": "guard",
    "block": "batch_statistics branches mutants contract fold laws guard",
    "branches": "branches batch_statistics mutants contract fold laws guard",
    "sound": "sound",
    "hooks": "left proof",
    "find": "left",
    "prove": "proof",
    "compare": "proof",
    "running": "proof",
    "fuse": "fuse freeze proof left",
    "verify": "fuse proof",
    "swap": "swap laws",
    "writing": "writing",
    "axes": "spec branches",
    "population": "gap freeze",
    "conv_block": "signatures contract",
    "arguments": "signatures",
    "geometry": "signatures",
    "weight": "init",
    "start": "init",
    "reset": "init",
    "inside": "eval_cache batch_statistics",
    "kept": "eval_cache",
    "walk": "left",
    "carry_out": "fuse left proof",
}
"""Test files of each file or room of the core, the quick ones first; the docstrings of the file come after them."""

SWAPPED_OPERATORS = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult},
}
SWAPPED_NAMES = {"any": "all", "all": "any", "min": "max", "max": "min"}
LEFT_OUT = {"detach", "clone", "double", "float", "to", "abs", "contiguous", "requires_grad_", "train", "eval", "flip"}
"""Methods `x.name(...)` that become `x`."""


class Mutant(NamedTuple):
    """One change: `old`, at bytes `start` to `end` of the file, becomes `new`."""

    file: str
    line: int
    old: str
    new: str
    start: int
    end: int
    key: str
    """The same for the same change of the same line, wherever the line has moved to."""

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}:{self.line}: {old} -> {new}"


def changed(node: ast.AST) -> Iterator[str]:
    """What an expression or a statement may become."""

    def other(**fields: object) -> str:
        twin = copy.copy(node)
        for name, value in fields.items():
            setattr(twin, name, value)
        return f"({ast.unparse(twin)})"

    match node:
        case ast.Compare(ops=[op]) if type(op) in SWAPPED_OPERATORS:
            yield other(ops=[SWAPPED_OPERATORS[type(op)]()])
        case ast.BoolOp(op=op, values=values):
            yield other(op=SWAPPED_OPERATORS[type(op)]())
            yield from (other(values=values[:i] + values[i + 1 :]) for i in range(len(values)) if len(values) > 2)
            yield from (f"({ast.unparse(value)})" for value in values if len(values) == 2)
        case ast.BinOp(op=op) if type(op) in SWAPPED_OPERATORS:
            yield other(op=SWAPPED_OPERATORS[type(op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield f"({ast.unparse(operand)})"
        case ast.Constant(value=bool() | int() | float() as value):
            yield str(not value) if isinstance(value, bool) else str(0 if value == 1 else value + 1)
        case ast.IfExp(body=first, orelse=second):
            yield from (f"({ast.unparse(first)})", f"({ast.unparse(second)})")
        case ast.Name(id=name, ctx=ast.Load()) if name in SWAPPED_NAMES:
            yield SWAPPED_NAMES[name]
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in LEFT_OUT:
            yield ast.unparse(value)
        case ast.Call(keywords=keywords):
            yield from (other(keywords=[k for k in keywords if k is not gone]) for gone in keywords if gone.arg)
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.AugAssign():
            yield "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "pass"


def visited(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that are mutated: no annotations, no messages, no texts."""
    yield node
    if isinstance(node, (ast.JoinedStr, ast.Raise)):  # the positions inside of f-strings are wrong before Python 3.12
        return
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in ("annotation", "returns", "ctx", "op", "ops"):
                yield from visited(child)


def mutants_of(file: str, source: bytes) -> list[Mutant]:
    """All mutants of a file."""
    lines, tree, found = source.splitlines(keepends=True), ast.parse(source), []
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    times: Counter[str] = Counter()
    for node in visited(tree):
        for new in changed(node):
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            old, text = source[start:end].decode(), lines[node.lineno - 1].strip().decode()
            name = f"{file}|{text}|{old}|{new}"
            times[name] += 1
            key = hashlib.sha256(f"{name}|{times[name]}".encode()).hexdigest()
            found.append(Mutant(file, node.lineno, old, new, start, end, key))
    return found


def drawn(mutants: Sequence[Mutant], count: int | None, seed: int) -> list[Mutant]:
    """`count` of them by the hash of what they change, so that changes elsewhere leave the draw as it is.

    In this order the beginning of a run that is stopped is a fair sample too.
    """
    return sorted(mutants, key=lambda mutant: hashlib.sha256(f"{seed}|{mutant.key}".encode()).digest())[:count]


def row_of(file: Path) -> str:
    """The row of the table for a file: its own, or its room's."""
    name = file.stem.lstrip("_")
    return name if name in TESTS else file.parts[1]


def tests_of(file: str) -> list[str]:
    """The test files of a file of the package; outside of the core, the one of its name."""
    names = TESTS.get(row_of(Path(file)), Path(file).stem.lstrip("_")).split()
    return [
        *(f"tests/test_{name}.py" for name in names),
        file,
    ]  # the docstrings last: alone, pytest would import the file twice


def _pytest(folder: str, tests: Sequence[str]) -> NoReturn:
    """Runs in a process of its own, which has not imported the package yet."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = folder
    # Compiled files are told apart by size and second of their source, which two mutants share.
    sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    quiet = ["-q", "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is imported before the fork
    # What torch.compile traces is seen by other tests as well, in a tenth of the time.
    sys.exit(pytest.main(["-x", *quiet, "-p", "no:cacheprovider", "-k", "not compile", *tests]))


def passes(folder: Path, tests: Sequence[str], timeout: float | None = None) -> bool:
    """Whether the tests pass in a copy; what never ends fails."""
    forks = multiprocessing.get_context("forkserver")  # torch is imported once, not once for every mutant
    forks.set_forkserver_preload(["torch", "torch._dynamo", "hypothesis", "einops", "pytest", "numpy"])
    process = forks.Process(target=_pytest, args=(str(folder), tests))
    process.start()
    process.join(timeout)
    process.kill()
    process.join()
    return process.exitcode == 0


def survives(mutant: Mutant, folder: Path, tests: Sequence[str], timeout: float) -> bool:
    """Whether no test notices the mutant, in a copy that is as before afterwards."""
    path = folder / mutant.file
    source = path.read_bytes()
    path.write_bytes(source[: mutant.start] + mutant.new.encode() + source[mutant.end :])
    try:
        return passes(folder, tests, timeout)
    finally:
        path.write_bytes(source)


def copied(root: Path, folder: Path) -> Path:
    """A copy of the repository without what tests do not need."""
    left_out = shutil.ignore_patterns(".*", "__pycache__", "site", "dist", "build")
    return Path(shutil.copytree(root, folder, ignore=left_out))


def run(mutants: Sequence[Mutant], root: Path = ROOT, jobs: int = 1, tests: Sequence[str] = ()) -> list[Mutant]:
    """The survivors. `tests` stand in for those of the table.

    Raises:
        SystemExit: if the tests fail without any mutant, as then they would kill all of them.
    """
    with tempfile.TemporaryDirectory() as work:
        copies: Queue[Path] = Queue()
        for number in range(jobs):
            copies.put(copied(root, Path(work) / str(number)))
        every = list(dict.fromkeys(test for mutant in mutants for test in tests or tests_of(mutant.file)))
        began = time.monotonic()
        if not passes(Path(work) / "0", every):
            raise SystemExit(f"the tests fail without any mutant: pytest {' '.join(every)}")
        limit = 60 + 3 * (time.monotonic() - began)

        def one(mutant: Mutant) -> bool:
            folder = copies.get()
            try:
                alive = survives(mutant, folder, tests or tests_of(mutant.file), limit)
            finally:
                copies.put(folder)
            print("survived" if alive else "killed  ", mutant, flush=True)  # noqa: T201  # a program's output
            return alive

        with ThreadPoolExecutor(jobs) as pool:
            return [mutant for mutant, alive in zip(mutants, pool.map(one, mutants)) if alive]


def core() -> list[Path]:
    """The files that the table names."""
    return [path for path in sorted((ROOT / "reparam").rglob("*.py")) if row_of(path.relative_to(ROOT)) in TESTS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a file; all of the core without it")
    parser.add_argument("--sample", type=int, help="how many mutants; all without it")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--tests", action="append", default=[], help="a test file, in place of those of the table")
    parser.add_argument("--list", action="store_true", help="lists the mutants and runs none")
    chosen = parser.parse_args()
    files = chosen.only or [str(path.relative_to(ROOT)) for path in core()]
    every = [mutant for file in files for mutant in mutants_of(file, (ROOT / file).read_bytes())]
    mutants = drawn(every, chosen.sample, chosen.seed)
    if chosen.list:
        print(*mutants, sep="\n")  # noqa: T201  # likewise
        return
    alive = run(mutants, jobs=chosen.jobs, tests=chosen.tests)
    print(*["", *alive], sep="\n")  # noqa: T201  # likewise
    print(f"{len(mutants)} mutants, {len(mutants) - len(alive)} killed, {len(alive)} survived")  # noqa: T201  # likewise


if __name__ == "__main__":
    main()
