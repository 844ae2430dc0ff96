"""List the blocks of a model, and whether each is ready to be fused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from .._tables import table
from ..algebra._spec import ConvSpec
from ..bn._frozen import FrozenStatsBN
from ..bn._norm import is_norm, norms, why_not_ready
from ..branches import Branch
from ..errors import check_model
from ..modules._sound import unsound_in
from ._find import find_all
from ._foreign import ForeignBlock, Survey


@dataclass(frozen=True)
class BlockReport:
    """One block of a model."""

    name: str
    """Dotted name; empty for the model itself."""
    kind: str
    """Name of its class."""
    spec: ConvSpec
    """Geometry of the convolution that it equals."""
    parameters: int
    """Number of parameters of the block."""
    fused_parameters: int
    """Number of parameters of the convolution."""
    frozen: bool | None
    """Whether the statistics of all its batch norms are frozen; None if it has none."""
    problems: dict[str, str]
    """Why it cannot be fused now, by the dotted name of the batch norm or tensor; empty if it can."""
    replaces: tuple[str, ...] = ()
    """Dotted names of the modules that the convolution replaces."""
    multiply_adds: float | None = None
    """Multiply-adds of the replaced modules, per pixel of the input; None if they are not counted."""
    fused_multiply_adds: float | None = None
    """Multiply-adds of the convolution, per pixel of the input."""

    @property
    def ready(self) -> bool:
        """Whether `fuse` can fuse it now."""
        return not self.problems


@dataclass(frozen=True)
class ModelReport:
    """The result of `inspect_model`; prints as a table."""

    blocks: tuple[BlockReport, ...]
    """The blocks, in the order of the model."""
    parameters: int
    """Parameters of the whole model."""
    fused_parameters: int
    """Parameters of the whole model after fusing."""
    batch_norms: Mapping[str, str] = field(default_factory=dict)
    """Batch norms outside blocks that are merged into a layer next to them, with the name of that (first) layer."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Why one of these cannot be merged now, by its dotted name, or that of a tensor in it or in the layer."""
    left: Mapping[str, str] = field(default_factory=dict)
    """Why `fuse` does not change a part that looks like branches, or a batch norm, by dotted name."""
    apart: Mapping[str, str] = field(default_factory=dict)
    """Why a part that could be one convolution is cheaper unfused, by dotted name."""

    @property
    def ready(self) -> bool:
        """Whether `fuse` can fuse the model now."""
        found = bool(self.blocks or self.batch_norms)
        return found and not self.problems and all(block.ready for block in self.blocks)

    def __str__(self) -> str:
        lines = [f"{len(self.blocks)} blocks, {self.parameters:,} parameters, {self.fused_parameters:,} after fusing"]
        if self.blocks:
            lines.append(_table(self.blocks))
        lines += [f"{name}: {why}" for block in self.blocks for name, why in block.problems.items()]
        for name, layer in self.batch_norms.items():
            lines.append(f"{name} goes into {layer}: {self.problems.get(name, 'ready')}")
        lines += [f"{name}: {why}" for name, why in self.problems.items() if name not in self.batch_norms]
        lines += [f"{name or '(model)'} stays: {why}" for name, why in self.left.items()]
        lines += [f"{name or '(model)'} is cheaper unfused: {why}" for name, why in self.apart.items()]
        return "\n".join(lines)


def _table(blocks: Sequence[BlockReport]) -> str:
    states = {True: "frozen", False: "not frozen", None: "none"}
    counted = any(block.multiply_adds is not None for block in blocks)
    titles = {"block": "", "kind": "", "convolution": "", "parameters": ",", "fused": ","}
    titles |= {"multiply-adds": ""} if counted else {}
    return table(
        titles | {"norms": "", "": ""},
        (
            (
                block.name or "(model)",
                block.kind,
                str(block.spec),
                block.parameters,
                block.fused_parameters,
                *([_multiply_adds(block)] if counted else []),
                states[block.frozen],
                "ready" if block.ready else "NOT READY",
            )
            for block in blocks
        ),
    )


def _multiply_adds(block: BlockReport) -> str:
    """Multiply-adds before and after fusing, per pixel of the input."""
    if block.multiply_adds is None or block.fused_multiply_adds is None:
        return ""
    return f"{block.multiply_adds:,.0f} -> {block.fused_multiply_adds:,.0f}"


def inspect_model(model: nn.Module) -> ModelReport:
    """List the blocks of a model: which are frozen, which are ready to be fused, and if not, why.

    The report lists what `fuse(model)` fuses with its default options. Blocks of other code have one line per
    convolution that they become; they are left out if `swap_convs` put blocks into the model. Batch norms outside
    blocks are listed if the model holds no block of this library. Parts that look like branches and batch norms that
    stay are in `left`. So if `blocks`, `batch_norms` and `left` of a fused model are empty, nothing is left to fuse.

    Args:
        model: any module; a wrapper such as DDP only adds a prefix to the names.

    Returns:
        The blocks, counts of parameters, and what stays, with the reasons.

    Example:
        >>> from reparam import RepSRBlock
        >>> report = inspect_model(nn.Sequential(RepSRBlock(8)))
        >>> report.blocks[0].name, report.ready
        ('0', False)
    """
    check_model(model)
    blocks, found = find_all(model)
    reports = tuple(_inspect_all(blocks, found))
    total = sum(p.numel() for p in model.parameters())
    saved = sum(report.parameters - report.fused_parameters for report in reports)
    saved += sum(p.numel() for pair in found.neighbors for p in pair.norm.parameters(recurse=False))
    layers: dict[int, Any] = {id(layer): layer for pair in found.neighbors for layer in pair.layers}
    saved -= sum(_outputs(layer) for layer in layers.values() if layer.bias is None)
    outside = {found.names[id(pair.norm)]: found.names[id(pair.layers[0])] for pair in found.neighbors}
    return ModelReport(reports, total, total - saved, outside, _outside_problems(found), found.left, found.apart)


def problems_in(blocks: Mapping[str, Branch], found: Survey) -> dict[str, str]:
    """Why parts that `fuse` would fuse cannot be fused now, by the dotted name of the batch norm or tensor."""
    problems: dict[str, str] = {}
    for name, ours in blocks.items():
        problems |= _problems(name, ours)
    for block in found.blocks.values():
        for conv in block.values:
            problems |= _foreign_problems(found, block, conv)
    return problems | _outside_problems(found)


def _problems(name: str, block: Branch) -> dict[str, str]:
    """Why a block of this library cannot be fused now, by the dotted name of the module that prevents it."""
    return {f"{name}.{inner}".strip("."): why for inner, why in block.problems().items()}


def _foreign_problems(found: Survey, block: ForeignBlock, conv: str) -> dict[str, str]:
    parts = block.parts(conv)
    return _not_ready(found, (bn for part in parts for bn in part.modules())) | _unsound(found, parts)


def _outside_problems(found: Survey) -> dict[str, str]:
    parts = {id(part): part for pair in found.neighbors for part in (pair.norm, *pair.layers)}
    norms_of = _not_ready(found, (pair.norm for pair in found.neighbors))
    return {**found.refused, **norms_of, **_unsound(found, parts.values())}


def _not_ready(found: Survey, modules: Iterable[nn.Module]) -> dict[str, str]:
    return {found.names[id(bn)]: why for bn in modules if is_norm(bn) and (why := why_not_ready(bn))}


def _unsound(found: Survey, parts: Iterable[nn.Module]) -> dict[str, str]:
    return {name: why for part in parts for name, why in unsound_in(part, found.names[id(part)]).items()}


def _outputs(layer: Any) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _inspect_all(blocks: Mapping[str, Branch], found: Survey) -> Iterator[BlockReport]:
    for name, ours in blocks.items():
        yield replace(_report(name, type(ours).__name__, ours.spec, [ours], _problems(name, ours)), replaces=(name,))
    for name, block in found.blocks.items():
        for conv in block.values:
            kind, problems = type(block.module).__name__, _foreign_problems(found, block, conv)
            row = _report(f"{name}.{conv}".strip("."), kind, block.spec(conv), block.parts(conv), problems)
            before, after = (float(cost) for cost in block.costs[conv]) if conv in block.costs else (None, None)
            replaces = tuple(f"{name}.{part}".strip(".") for part in block.swallows[conv] or ("",))
            yield replace(row, replaces=replaces, multiply_adds=before, fused_multiply_adds=after)


def _report(name: str, kind: str, spec: ConvSpec, parts: Sequence[nn.Module], problems: dict[str, str]) -> BlockReport:
    inside = [bn for part in parts for _, bn in norms(part)]
    return BlockReport(
        name=name,
        kind=kind,
        spec=spec,
        parameters=sum(p.numel() for part in parts for p in part.parameters()),
        fused_parameters=spec.parameters,
        frozen=all(isinstance(bn, FrozenStatsBN) for bn in inside) if inside else None,
        problems=problems,
    )
