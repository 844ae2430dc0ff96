"""Trains a swapped network in other people's training codes, with the lines of docs/training/, and compares.

    BASICSR=../BasicSR NEOSR=../neosr TRAINNER=../traiNNer-redux KAIR=../KAIR python -m tests.hosts basicsr neosr

Nothing is fetched: a code is where a variable of its name in capitals says, or where it is installed,
and so is what it imports. Each runs in a process of its own. What it reads its options with, its models, saving and
resuming are its own; batches are made here, as three of them want a GPU for their loaders.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reparam import FrozenStatsBN, fuse
from reparam.bn._norm import norms

from .codes import CODES, Code
from .loops import LOOPS
from .shared import FROZEN, RESUME, STEPS, away, calibration, far, images, numbers, prepare, run

LIMITS = {"built": 1e-5, "EMA built": 1e-5, "in train mode": 1e-3, "fused": 1e-5, "resumed": 0}


def nets_of(code: Code, model: Any) -> list[nn.Module]:
    """The network and its EMA."""
    found = []
    for name in code.nets:
        net = getattr(model, name)
        found.append(getattr(net, "ema_model", getattr(net, "module", net)))
    return found


def check(code: Code) -> dict[str, float]:
    """What comes out, as errors; what has to be exact is asserted."""
    plain = code.plain()
    torch.save({"params": plain.state_dict()}, "plain_x2.pth")
    model = code.model(None)
    figures = built(code, model, plain)
    saved = train(code, model)
    figures |= given_back(code, model, plain)
    figures["resumed"] = again(code, saved, [numbers(net) for net in nets_of(code, model)])
    if code.ema_is_saved_alone:
        figures.pop("resumed")  # from the EMA, by the code itself: another run
    return figures


def built(code: Code, model: Any, plain: nn.Module) -> dict[str, float]:
    """How far the network is from its weights without blocks."""
    x = images(999)[0]
    net, ema = nets_of(code, model)
    assert net.state_dict().keys() != plain.state_dict().keys(), "no blocks"
    figures = {"built": away(run(net, x), run(plain, x)), "EMA built": away(run(ema, x), run(plain, x))}
    with torch.no_grad():  # on what it was calibrated on, whose variances differ by n / (n - 1)
        figures["in train mode"] = away(net.train()(calibration()), run(plain, calibration()))
    net.load_state_dict(ema.state_dict())  # the statistics as they were
    return figures


def train(code: Code, model: Any) -> list[dict[str, Tensor]]:
    """All steps; statistics have to move until the freeze, and the affine always. Returns what was saved at RESUME."""
    saved = []
    for step in range(1, STEPS + 1):
        net, ema = nets_of(code, model)
        before = numbers(net)
        code.step(model, step)
        after = numbers(net)
        still = {key: torch.equal(before[key], after[key]) for key in before if "running_" in key}
        assert set(still.values()) == {step >= FROZEN}, f"step {step}: {still}"
        assert not any(torch.equal(before[key], after[key]) for key in before if key.endswith("norm.weight"))
        assert frozen(net, ema) == {step >= FROZEN}, f"step {step}: frozen {frozen(net, ema)}"
        if step == RESUME:
            code.save(model, step)
            saved = [numbers(net), numbers(ema)]
    return saved


def frozen(*nets: nn.Module) -> set[bool]:
    """Whether batch norms are."""
    return {isinstance(bn, FrozenStatsBN) for net in nets for _, bn in norms(net)}


def given_back(code: Code, model: Any, plain: nn.Module) -> dict[str, float]:
    """The EMA, fused, in the class that knows no blocks."""
    x, ema = images(999)[0], nets_of(code, model)[1]
    untouched = code.plain()
    untouched.load_state_dict(fuse(ema.eval()).state_dict(), strict=True)
    return {"fused": away(run(untouched, x), run(ema, x)), "learned": away(run(untouched, x), run(plain, x))}


def again(code: Code, saved: list[dict[str, Tensor]], straight: list[dict[str, Tensor]]) -> float:
    """How far a run that is resumed ends from the one that was not interrupted."""
    model = code.model(RESUME)
    nets = nets_of(code, model)
    start = [saved[1]] * 2 if code.ema_is_saved_alone else saved
    assert [far(numbers(net), numbers_) for net, numbers_ in zip(nets, start)] == [0, 0], "other numbers than saved"
    for step in range(RESUME + 1, STEPS + 1):
        code.step(model, step)
        assert frozen(*nets) == {step >= FROZEN}
    late = code.model(RESUME)
    code.step(late, STEPS)  # as if it had been saved after the freeze
    assert frozen(*nets_of(code, late)) == {True}
    return max(far(numbers(net), numbers_) for net, numbers_ in zip(nets, straight))


def main(names: list[str]) -> int:
    """Each in a process of its own."""
    if len(names) != 1:
        command = [sys.executable, "-m", "tests.hosts"]
        names = names or [*LOOPS, *(name for name in CODES if name.upper() in os.environ)]
        return max(subprocess.run([*command, name], check=False).returncode for name in names)
    (name,) = names
    if name.upper() in os.environ:
        os.environ[name.upper()] = str(Path(os.environ[name.upper()]).resolve())
        sys.path.insert(0, os.environ[name.upper()])
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        prepare()
        torch.manual_seed(0)
        try:
            with contextlib.redirect_stdout(said):
                figures = LOOPS[name]() if name in LOOPS else check(CODES[name]())
        except BaseException:
            sys.stdout.write(said.getvalue()[-3000:])
            raise
        os.chdir("/")
    wrong = [what for what, most in LIMITS.items() if not figures.get(what, 0) <= most]
    listed = ", ".join(f"{what} {figure:.1e}" for what, figure in figures.items())
    sys.stdout.write(f"{name}: {listed}: {'WRONG ' + ', '.join(wrong) if wrong else 'right'}\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
