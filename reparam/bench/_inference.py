"""Measures a fused network on every engine of this machine, next to its train graph and the processor's limit."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from .._tables import table
from .._timing import race, ratio
from ..blocks._set_fold import set_fold
from ..deploy._engines import FILE_ENGINES, installed_engines, make_engine, open_engine
from ..deploy._sizes import FileSize, file_size
from ..deploy._threads import torch_threads
from ..errors import ExportError, SpecError, check_model
from ..fusing._fuse import plain_copy
from ..fusing._inspect import inspect_model
from ..fusing._macs import multiply_adds
from ..modules._hooks import copy_module

Way = tuple[str, str]
"""Graph and engine."""
Pass = Callable[[], np.ndarray]

EAGER = "torch-eager"
_LIMIT, _LIMIT_BF16, _LIMIT_FILE = 1e-4, 5e-2, 0.5
"""The allowed difference between outputs, relative to the largest value."""
_GRAPHS = ("branches", "folded", "fused")
_GEMM = 1536
"""Height and width of the matrices whose product measures the processor's limit: far larger than cache lines, and
still a fraction of a second."""


@dataclass(frozen=True)
class InferenceCost:
    """One way to run a network."""

    graph: str
    """"branches" (the train graph, branch by branch), "folded" (the train graph, one convolution per block), "fused",
    or the name of a file."""
    engine: str
    """"torch-eager" (a plain call of the module), or one of the engines of `Upscaler`."""
    latency_ms: float
    """Median time of one image, in milliseconds."""
    megapixels_per_s: float
    """Output pixels per second, in millions."""
    speed: float
    """Speed relative to the fused network in "torch-eager": the median of the ratios of all rounds."""
    gflops: float
    """10^9 operations per second. The operations are those of the fused network, two per multiply-add."""
    share: float
    """`gflops` divided by the measured limit of the processor."""
    error: float
    """The largest difference from the fused network in "torch-eager", relative to its largest output."""


@dataclass(frozen=True)
class InferenceReport:
    """The result of `bench_inference`. `print` shows it as a table."""

    rows: tuple[InferenceCost, ...]
    failed: dict[str, str]
    """Engines that could not run the network, and why."""
    operations: float
    """Operations of the fused network for one image."""
    limit_gflops: float
    """The best rate of a product of two float32 matrices in torch, in the same run."""
    shape: tuple[int, ...]
    """The shape of the image, (1, C, H, W)."""
    threads: int
    """The number of threads of torch. With `threads=0`, the other engines choose their own number."""
    files: tuple[FileSize, ...] = ()
    """The sizes of the files that were measured."""

    def __str__(self) -> str:
        titles = {"graph": "", "engine": "", "ms": ".1f", "Mpixel/s": ".1f", "speed": ".2f", "GFLOP/s": ".0f"}
        titles |= {"of limit": ".0%", "error": ".0e"}
        _, _, height, width = self.shape
        size = f"{width}x{height}, {self.operations / 1e9:.1f} GFLOP, {self.threads} threads of torch"
        failed = [f"{name} is installed but cannot run this network: {why}" for name, why in self.failed.items()]
        limit = f"limit: {self.limit_gflops:.0f} GFLOP/s, a product of float32 matrices in the same run"
        sizes = [table({"": "", "kB": ".1f", "operators": "d"}, self.files)] if self.files else []
        return "\n".join([size, table(titles, map(astuple, self.rows)), *failed, limit, *sizes])


def bench_inference(
    net: nn.Module,
    height: int = 540,
    width: int = 960,
    *,
    engines: Sequence[str] | None = None,
    files: Sequence[Path] = (),
    rounds: int = 5,
    threads: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> InferenceReport:
    """Measure the inference of a network on all engines. They take turns in each round, with a matrix product as limit.

    Before anything is timed, the output of every engine is compared with the fused network in torch. The difference,
    relative to the largest value, may be 1e-4, in bfloat16 5e-2, and for a file 0.5, because the input is noise, which
    8 bits represent badly.

    Args:
        net: a network with `colors`, in eval mode or with frozen batch norms. If it has blocks, its train graph is
            measured too, branch by branch and folded.
        height: height of the image, in pixels.
        width: width of the image, in pixels.
        engines: engines of `Upscaler`; None means all that are installed.
        files: files of the same network, such as `export` and `quantize` write, each measured on the engines that run
            it.
        rounds: how often everything runs.
        threads: threads of every engine; 0 lets the engine choose.
        progress: called after each round, of which there are `rounds` + 2.

    Returns:
        The time, speed and error of each graph on each engine.

    Raises:
        SpecError: if an engine is unknown or not installed, a file is of another kind, or the network has no `colors`.
        ExportError: if the output of an engine differs by more than allowed.
        FuseError: if the network cannot be fused in its present state.

    Example:
        >>> from reparam import create_model
        >>> net = create_model("repsr_m4c16_x2", pretrained=True)
        >>> report = bench_inference(net, 24, 32, engines=["torch"], rounds=1)
        >>> [row.graph for row in report.rows]
        ['branches', 'folded', 'fused', 'fused']
    """
    check_model(net)
    colors: Any = getattr(net, "colors", None)
    if not isinstance(colors, int):
        raise SpecError(f"{type(net).__name__} does not say what its input is: set its attribute colors to 1 or 3")
    x = torch.rand(1, colors, height, width, generator=torch.Generator().manual_seed(0))
    plain = plain_copy(net)
    with torch_threads(threads), torch.inference_mode():
        ways = _graphs(net, plain, x)
        names = installed_engines() if engines is None else engines
        on_engines, failed = _engines(plain, x, names, threads)
        ways |= on_engines | _files(files, x, names, threads)
        errors = _errors(ways)
        matrix = torch.rand(_GEMM, _GEMM)
        runs: dict[Hashable, Callable[[], object]] = {"limit": partial(torch.mm, matrix, matrix)}
        times = race(runs | ways, rounds, progress)
        operations = 2.0 * multiply_adds(plain, x)
        _, _, *size = ways["fused", EAGER]().shape
        used = torch.get_num_threads()
    limit = 2 * _GEMM**3 / min(times["limit"]) / 1e9
    rows = []
    for way in ways:
        seconds, speed = median(times[way]), 1 / ratio(times, way, ("fused", EAGER))
        rate, megapixels = operations / seconds / 1e9, prod(size) / seconds / 1e6
        rows.append(InferenceCost(*way, 1000 * seconds, megapixels, speed, rate, rate / limit, errors[way]))
    sizes = tuple(map(file_size, files))
    return InferenceReport(tuple(rows), failed, operations, limit, tuple(x.shape), used, sizes)


def _graphs(net: nn.Module, plain: nn.Module, x: torch.Tensor) -> dict[Way, Pass]:
    """The train graph, if there is one, branch by branch and folded, and the fused network."""
    ways: dict[Way, Pass] = {}
    if inspect_model(net).blocks:
        for graph, fold in (("branches", False), ("folded", True)):
            graph_net = copy_module(net).eval()
            set_fold(graph_net, fold)
            ways[graph, EAGER] = partial(_eager, graph_net, x)
    ways["fused", EAGER] = partial(_eager, plain, x)
    return ways


def _engines(
    plain: nn.Module, x: torch.Tensor, names: Sequence[str], threads: int
) -> tuple[dict[Way, Pass], dict[str, str]]:
    """The fused network on each engine, and why some engines fail."""
    ways: dict[Way, Pass] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            run = partial(make_engine(plain, name, threads), x.numpy())
            run()
        except SpecError:
            raise
        except Exception as problem:  # engines raise anything, for example if a compiler is missing
            failed[name] = str(problem).strip().partition("\n")[0] or type(problem).__name__
        else:
            ways["fused", name] = run
    return ways, failed


def _files(files: Sequence[Path], x: torch.Tensor, names: Sequence[str], threads: int) -> dict[Way, Pass]:
    """Each file on each engine that runs it."""
    if wrong := [file for file in files if file.suffix not in FILE_ENGINES]:
        raise SpecError(f"only files of type {', '.join(FILE_ENGINES)} can be measured, but got {wrong[0].name}")
    return {
        (file.name, name): partial(open_engine(file, name, threads), x.numpy())
        for file in files
        for name in FILE_ENGINES[file.suffix]
        if name in names
    }


def _errors(ways: dict[Way, Pass]) -> dict[Way, float]:
    """The difference of each output from that of the fused network in torch."""
    wanted = ways["fused", EAGER]()
    errors = {}
    for way, run in ways.items():
        limit = _LIMIT_FILE if way[0] not in _GRAPHS else _LIMIT_BF16 if way[1].endswith("bf16") else _LIMIT
        got = run()
        if got.shape != wanted.shape:
            raise ExportError(f"{way[1]} ({way[0]}) returns {got.shape}, but torch returns {wanted.shape}")
        errors[way] = float(np.abs(got - wanted).max() / np.abs(wanted).max())
        if not errors[way] <= limit:
            raise ExportError(
                f"{way[1]} ({way[0]}) differs by {errors[way]:.1e} of the largest value, but rounding explains at most "
                f"{limit:.0e}; nothing was timed. Leave it out, or choose another engine"
            )
    return errors


def _eager(net: nn.Module, x: torch.Tensor) -> np.ndarray:
    return net(x).numpy()
