"""Draws a block: its branches before fusing, and the one convolution after."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..algebra._linear import LinearOp, linear_op
from ..algebra._spec import ConvSpec
from ..blocks._block import ReparamBlock
from ..blocks._mobileie import SideBySide
from ..bn._frozen import FrozenStatsBN
from ..bn._norm import BatchNorm, is_norm
from ..branches import Branch, ScaledBranch, SliceBranch
from ..branches._chain import ChainBranch
from ..errors import NotLinearError, SpecError
from ..files._writing import written
from ..fusing._find import find_blocks
from ._shapes import Box, Fork, Line, Shape, as_svg


@dataclass(frozen=True)
class Drawing:
    """An SVG drawing. Notebooks show it, and `str` of it can be put into a page, whose text color it takes."""

    svg: str
    """The whole document."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the drawing to a file. It is legible on light and dark backgrounds.

        Raises:
            SpecError: if the suffix is not `.svg`.
        """
        path = Path(path)
        if path.suffix != ".svg":
            raise SpecError(f"a drawing is saved as SVG: the name must end in .svg, but got {path.name!r}")
        with written(path) as unfinished:
            unfinished.write_text(self.svg, encoding="utf-8")

    def __str__(self) -> str:
        return self.svg

    def _repr_svg_(self) -> str:
        return self.svg


def draw(block: nn.Module) -> Drawing:
    """Draw a block: its branches, stage by stage, and the convolution that it equals. It is read from the object.

    Args:
        block: a block or a branch, in any mode; it need not be ready for `fuse`.

    Returns:
        The drawing. A notebook shows it, `save` writes it, and `str` returns the SVG.

    Raises:
        NotLinearError: for any other module; the message names the blocks inside it.

    Example:
        >>> from reparam import RepSRBlock
        >>> drawing = draw(RepSRBlock(16))
        >>> all(words in str(drawing) for words in ("ExpandSqueezeBranch", "conv 3x3", "16 → 32"))
        True
    """
    if not isinstance(block, Branch):
        inside = ", ".join(repr(name) for name in find_blocks(block)) if isinstance(block, nn.Module) else ""
        advice = f"draw a block inside it, from get_submodule of {inside}" if inside else "it contains no block"
        raise NotLinearError(f"a drawing needs a block of this library, but got {type(block).__name__}; {advice}")
    spec, name = block.spec, type(block).__name__
    numbers = sum(parameter.numel() for parameter in block.parameters())
    conv = Box(f"conv {_size(spec.kernel_size)}", _channels(spec.in_channels, spec.out_channels, spec))
    rows = (
        (f"{name} in training: {numbers:,} parameters", Line(tuple(_parts(block)))),
        (f"after fusing: {spec.parameters:,} parameters", Line((conv,))),
    )
    return Drawing(as_svg(f"{name}({spec})", rows))


def _parts(branch: Branch) -> list[Shape]:
    """The operations of a branch, in order."""
    if isinstance(branch, ReparamBlock):
        lines = [Line(tuple(_parts(inner)), type(inner).__name__) for inner in branch.branches]  # type: ignore[arg-type]  # all are branches
        return [_fork(lines), *([] if branch.norm is None else [_norm(branch.norm)])]
    if isinstance(branch, SideBySide):
        return [_fork(_side_by_side(branch), "concat"), _box(branch.out, linear_op(branch.out, 0, branch.like))]
    if isinstance(branch, ScaledBranch):
        return [*_parts(branch.branch), _box(branch.scale, linear_op(branch.scale, branch.scale.channels, branch.like))]
    if isinstance(branch, SliceBranch):
        return [_some("channels", branch.channels), *_parts(branch.branch), _some("to channels", branch.outputs)]
    if isinstance(branch, ChainBranch):
        return [part for stage, op in branch.steps() for part in _stage(stage, op)]
    spec = branch.spec
    return [Box(f"kernel() {_size(spec.kernel_size)}", _channels(spec.in_channels, spec.out_channels, spec))]


def _some(word: str, channels: tuple[int, int]) -> Box:
    first, end = channels
    return Box(word, f"{first} to {end - 1}", "join")


def _stage(stage: nn.Module, op: LinearOp) -> list[Shape]:
    if is_norm(stage):
        return [_norm(stage)]
    return _parts(stage) if isinstance(stage, Branch) else [_box(stage, op)]


def _side_by_side(branch: SideBySide) -> list[Line]:
    """Convolutions, and batch norms of their outputs or of other convolutions' outputs."""
    convs, others = (
        [_box(m, linear_op(m, 0, branch.like)) for m in part] for part in (branch.convs, branch.norm_convs)
    )
    norms = [_norm(bn) for bn in branch.norms]  # type: ignore[arg-type]  # a ModuleList of batch norms only
    if not norms or others:
        return [Line((conv,)) for conv in convs] + [Line(pair) for pair in zip(others, norms)]
    return [Line((conv, _fork([Line(), Line((bn,))], "concat"))) for conv, bn in zip(convs, norms)]


def _fork(lines: Sequence[Line], join: str = "+") -> Shape:
    return lines[0] if len(lines) == 1 else Fork(tuple(lines), join)


def _norm(bn: BatchNorm) -> Box:
    return Box("frozen BN" if isinstance(bn, FrozenStatsBN) else "BN", str(bn.num_features), "norm", repr(bn))


def _box(stage: nn.Module, op: LinearOp) -> Box:
    outputs, inputs = op.kernel.weight.shape[0], op.kernel.weight.shape[1] * op.groups
    scale = op.groups == outputs == inputs and all(k == 1 for k in op.kernel.size)
    title = _word(stage) if scale else f"{_word(stage)} {_size(op.kernel.size)}"
    kind = "conv" if isinstance(stage, _ConvNd) else "other"
    return Box(title, str(outputs) if scale else _channels(inputs, outputs, op), kind, repr(stage))


def _word(stage: nn.Module) -> str:
    """The name of a stage; a module may set it as `drawn_as`."""
    if isinstance(stage, _ConvNd):
        return "conv"
    if isinstance(stage, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)):
        return "average pool"
    return getattr(stage, "drawn_as", type(stage).__name__)


def _size(values: Sequence[int]) -> str:
    return "x".join(map(str, values))


def _channels(inputs: int, outputs: int, geometry: ConvSpec | LinearOp) -> str:
    """Channels before and after, and stride, dilation and groups if they are not 1."""
    words = [f"{inputs} → {outputs}"]
    for name, values in (("stride", geometry.stride), ("dilation", geometry.dilation)):
        if any(v != 1 for v in values):
            words.append(f"{name} {values[0] if len(set(values)) == 1 else _size(values)}")
    return ", ".join(words + [f"groups {geometry.groups}"] * (geometry.groups > 1))
