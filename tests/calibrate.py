"""Times every shipped block both ways, folded and branch by branch, beside what `fold="auto"` thinks of them.

    python tests/calibrate.py                      # some minutes on one thread
    python tests/calibrate.py --device cuda        # there
    python tests/calibrate.py --only RepSRBlock    # one of them
    python tests/calibrate.py --picks cuda         # no times: which way would be taken on that type of device
    python tests/calibrate.py --launches           # no times: what `COUNTED` should hold

A line for each block, size and phase has the times, the ratio of folded to branches as measured and as estimated, and
the way that is taken, with a mark where it is slower by more than a tenth. Where the algebra or the moments have
changed, so have the constants of `reparam/folding/cost.py`: first the launches, which are counted, then the others.
Estimates that are too large or small in one phase tell which: launches weigh most at few channels, work on kernels at
many, and on batch statistics `COVARIANCE` there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch
from test_choosing import BLOCKS, counted, make

from reparam._tables import table
from reparam.blocks import ReparamBlock, _tune
from reparam.blocks._block import PHASES
from reparam.bn._norm import norms
from reparam.folding import cost

SIZES = [(16, 16, 32), (64, 4, 32), (64, 8, 14), (256, 8, 7)]
"""Channels, images, height and width."""
COLUMNS = {
    "block": "",
    "channels": "d",
    "pixels": "d",
    "phase": "",
    "folded (ms)": ".2f",
    "branches (ms)": ".2f",
    "ratio": ".2f",
    "estimate": ".2f",
    "taken": "",
    "": "",
}


def estimate(block: ReparamBlock, phase: str, pixels: int, device: str) -> float:
    """The time of the folded way over that of the branches."""
    on_batch = phase == PHASES[0]
    after = cost.BATCH_NORM * block.spec.out_channels * pixels * (block.norm is not None and not on_batch)
    folded = block._folded[on_batch].step(pixels, device) + after
    return folded / (block._of_run.step(pixels, device) + block.cost * pixels)


def phases(block: ReparamBlock) -> list[str]:
    has_choice = any(norms(block.branches)) and not block._no_moments
    return list(PHASES[not has_choice :])


def rows(names: list[str], device: str, rounds: int) -> Iterator[list[str | float | None]]:
    for name in names:
        for channels, images, size in SIZES:
            torch.manual_seed(0)
            block, x = make(name, channels), torch.rand(images, channels, size, size)
            pixels = images * size * size
            times = {}
            if rounds:
                block(x)
                block, x = block.to(device), x.to(device).requires_grad_()
                times = {phase: both for phase, *both in _tune._both_ways([block], [[x]], rounds)}
            for phase in times or phases(block):
                expected = estimate(block, phase, pixels, device)
                taken = "folded" if expected < 1 else "branches"
                folded, branches = times[phase] if rounds else (float("nan"),) * 2
                ratio = folded / branches
                wrong = (ratio if expected < 1 else 1 / ratio) > 1.1
                yield [name, channels, pixels, phase, folded, branches, ratio, expected, taken, "slower" * wrong]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(BLOCKS), help="this block; may be repeated")
    parser.add_argument("--device", default="cpu", help="where to measure")
    parser.add_argument(
        "--picks", metavar="DEVICE", help="measure nothing, and tell what is taken on this type of device"
    )
    parser.add_argument("--rounds", type=int, default=2, help="how often each way runs")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--launches", action="store_true", help="count launches, and measure nothing")
    told = parser.parse_args()
    if told.launches:
        both = [(what, number, cost.COUNTED.get(what)) for what, number in counted().items()]
        sys.stdout.write(f"{table({'launches of': '', 'counted': 'd', 'constant': 'd'}, both)}\n")
        return
    torch.set_num_threads(told.threads)
    device, rounds = (told.picks, 0) if told.picks else (told.device, told.rounds)
    found = []
    for row in rows(told.only or sorted(BLOCKS), device, rounds):
        found.append(row)
        sys.stderr.write(f"{row}\n" * bool(rounds))
    wrong = sum(bool(row[-1]) for row in found)
    sys.stdout.write(f"{table(COLUMNS, found)}\nslower by more than a tenth: {wrong} of {len(found)}\n")


if __name__ == "__main__":
    main()
