"""Says what a checkpoint holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..bn._norm import norms, why_unseen
from ..errors import CheckpointError
from ..fusing._inspect import inspect_model
from ..models._registry import Network
from ..modules._sound import unsound
from ._checkpoint import Path, blueprint_of, network_of
from ._finder import Contents, read_file
from ._found_blocks import find_blocks_in, recognised
from ._fuse_file import numbers_of


@dataclass(frozen=True)
class FileInspection:
    """The result of `inspect_file`. `print` shows it as a few lines."""

    wrapper: str | None
    """Where in the file the state dict was found, as the argument `wrapper` takes it; None if the whole file is one."""
    tensors: int
    """The number of tensors."""
    numbers: int
    """How many values they hold, integer tensors left out."""
    fused_numbers: int
    """How many values are left after fusing."""
    dtypes: tuple[str, ...]
    """The dtypes of the floating-point tensors."""
    network: str | None
    """What `load_checkpoint` builds from it; None if the network is not known."""
    blocks: dict[str, int]
    """How many blocks of each kind there are."""
    problems: tuple[str, ...]
    """What prevents loading or fusing."""

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in self.blocks.items()) or "none"
        lines = [
            f"network:  {self.network or 'not known'}",
            f"blocks:   {kinds}",
            f"values:   {self.numbers:,} in {self.tensors} tensors ({', '.join(self.dtypes)}), "
            + (f"{self.fused_numbers:,} after fusing" if self.fused_numbers < self.numbers else self._why_no_less()),
            f"wrapper:  {self.wrapper or 'none'}",
        ]
        return "\n".join([*lines, *(f"problem:  {problem}" for problem in self.problems)])

    def _why_no_less(self) -> str:
        return "no fewer after fusing, or not known" if self.blocks else "nothing to fuse"


def inspect_file(path: Path, *, wrapper: str | None = None, **options: Any) -> FileInspection:
    """Report what a checkpoint holds: network, blocks and sizes, and what prevents loading or fusing it.

    Args:
        path: as for `load_checkpoint`.
        wrapper: as for `load_checkpoint`.
        **options: as for `load_checkpoint`. An option that the keys do not determine is listed as a problem if it is
            missing here.

    Returns:
        What the file holds, and the problems with it.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged, holds code, or holds no state dict.
    """
    contents = read_file(path, wrapper)
    problems = [f"{key}: {why}" for key, why in unsound(contents.state_dict).items()]
    network, blocks, saved = _network(contents, problems, options)
    if not blocks:
        blocks, saved = _blocks(contents, problems)
    real = [tensor.dtype for tensor in contents.state_dict.values() if tensor.is_floating_point()]
    dtypes = tuple(sorted({str(dtype).removeprefix("torch.") for dtype in real}))
    numbers = numbers_of(contents.state_dict)
    sizes = (len(contents.state_dict), numbers, numbers - saved)
    return FileInspection(contents.wrapper, *sizes, dtypes, network, blocks, tuple(dict.fromkeys(problems)))


def _network(
    contents: Contents, problems: list[str], options: dict[str, Any]
) -> tuple[str | None, dict[str, int], int]:
    """Name, blocks by kind, and the number of values that fusing saves."""
    try:
        if blueprint_of(contents) is None:
            return None, {}, 0
        net = _built(contents, problems, options)
    except CheckpointError as error:
        problems.append(str(error))
        return None, {}, 0
    report = inspect_model(net)
    for block in report.blocks:
        problems += [f"{name}: {why}" for name, why in block.problems.items()]
    listed = ", ".join(f"{key}={value}" for key, value in net.options.items())
    inside = sum(numbers_of(net.get_submodule(block.name).state_dict()) for block in report.blocks)
    saved = inside - sum(block.fused_parameters for block in report.blocks)
    return f"{type(net).__name__}({listed})", dict(Counter(block.kind for block in report.blocks)), saved


def _built(contents: Contents, problems: list[str], options: dict[str, Any]) -> Network:
    """The network. A missing `img_range` is noted as a problem and does not hide what the network is."""
    try:
        return network_of(contents, **options)
    except CheckpointError as error:
        if "img_range" in options or "img_range" not in str(error):
            raise
        net = network_of(contents, **options, img_range=1)
        problems.append(str(error))
        return net


def _blocks(contents: Contents, problems: list[str]) -> tuple[dict[str, int], int]:
    try:
        found = find_blocks_in(contents.state_dict)
    except CheckpointError as error:
        problems.append(str(error))
        return dict(Counter(layout.name for _, layout in recognised(contents.state_dict))), 0
    for block in found:
        for name, bn in norms(block.block):
            if why := why_unseen(bn):
                problems.append(f"{block.name}.{name} ({block.kind}): {why}".removeprefix("."))
    gone = [block.block for block in found if not block.layout.keeps]
    before = sum(numbers_of(block.state_dict()) for block in gone)
    after = sum(numbers_of(block.spec.new_conv().state_dict()) for block in gone)
    return dict(Counter(block.kind for block in found)), before - after
