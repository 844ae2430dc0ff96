"""Walks over a plain network: records its torch operations, in order, as simple steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ...errors import ExportError
from . import read_arithmetic, read_layers  # noqa: F401  # which fill the table of readers
from .moves import MOVES, as_moves, moved, places
from .steps import Plain, Step
from .writer import LOST, READERS, Writer

Dynamic = bool | Literal["batch"]
"""Which sizes of the input are free: all but the channels (True), none (False), or the number of images ("batch")."""

_OF_TWO = ("add", "sub", "rsub", "mul", "div", "maximum", "minimum")
"""These broadcast, so a pixel that was expanded can be used unexpanded."""


def plain_steps(net: nn.Module, example: Tensor, dynamic: Dynamic = True) -> Plain:
    r"""Split a network into the steps that `Step` lists.

    The network runs on the example, and each torch operation is recorded. A tensor that does not come from the image is
    a constant. Then it runs again on another image, which is larger if sizes are free. If anything differs there, it
    depends on the image in a way that no step can express.

    Args:
        net: the network, fused, in eval mode.
        example: an input (N, C, H, W).
        dynamic: whether batch, height and width are free, or only "batch"; if so, the shapes of the steps are for one
            image.

    Raises:
        ExportError: if an operation is not one of these steps, or depends on the size of the image; the message names
            the layer and the operation.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.PReLU(4), nn.PixelShuffle(2)).eval()
        >>> [step.kind for step in plain_steps(net, torch.rand(2, 1, 8, 9)).steps]
        ['conv', 'prelu', 'shuffle']
    """
    if example.dim() != 4 or not example.is_floating_point():
        came = f"{tuple(example.shape)} of {example.dtype}"
        raise ExportError(f"the input must be images (N, C, H, W) of floats, but got an example of {came}")
    first = example[:1] if dynamic else example
    plain = _walked(net, first)
    # Divisible by whatever the example is divisible by, with other values: anything read from it now differs.
    times = {True: (2, 1, 2, 3), "batch": (2, 1, 1, 1), False: (1, 1, 1, 1)}[dynamic]
    other = _walked(net, 0.9 * first.repeat(times))
    for one, again in zip(plain.steps, other.steps):
        if not _same(one, again):
            raise ExportError(f"{_told(one.layer)} computes {one.kind} from the size or the values of the image")
    if len(plain.steps) != len(other.steps) or plain.output != other.output:
        raise ExportError(f"{type(net).__name__} runs other steps for an image of another size or with other values")
    return plain


def _walked(net: nn.Module, example: Tensor) -> Plain:
    with torch.inference_mode(False), torch.no_grad():  # inference mode runs other operations
        example = example.detach().clone(memory_format=torch.contiguous_format)  # the network may change it
        walk = _Walk(example)
        with _running(net, walk.layers), _Circular(), walk:
            result = net(example)
    image = walk.writer.image_of(result) if walk.writer.knows(result) else None
    if image is None:
        raise ExportError(
            f"{type(net).__name__} returns {_shown(result)}, not an image that these steps compute from its input"
        )
    output = walk.writer.values[image].step
    steps = tuple(needed(walk.writer.steps, output))
    return Plain("input", tuple(example.shape), steps, output, flat=result.dim() == 2)


def needed(steps: Sequence[Step], output: str) -> Iterator[Step]:
    """The steps that the output depends on."""
    needed = {output}
    for step in reversed(steps):
        if step.name in needed:
            needed.update(step.inputs)
    return (step for step in steps if step.name in needed)


@contextmanager
def _running(net: nn.Module, layers: list[str]) -> Iterator[None]:
    """Tracks the names of the running layers, innermost last."""
    hooks = []
    for name, module in net.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: layers.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: layers.__delitem__(-1)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Walk(TorchDispatchMode):
    """Records everything that is computed from one image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.writer = Writer(image)
        self.dtype = image.dtype
        self.layers = [""]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute what torch would, and record it if it depends on the image."""
        kwargs = kwargs or {}
        taken = [one for one in tree_leaves((args, kwargs)) if self.writer.knows(one)]
        shapes = " and ".join(str(tuple(one.shape)) for one in taken)
        result = func(*args, **kwargs)
        arguments = _by_name(func, args, kwargs)
        operation = str(func.overloadpacket).removeprefix("aten.")
        where = f"{_told(self.layers[-1])} computes {operation} of {shapes or 'constants'}"
        if func._schema.is_mutable and not self._changes(func, arguments, bool(taken)):
            raise ExportError(f"{where} into a constant or `out`, which no step of these formats can do")
        if taken:
            self.writer.layer = self.layers[-1]
            read = self._read(func, operation.removesuffix("_"), taken, result, arguments)
            if not read or any(self._odd(one) for one in tree_leaves(result)):
                raise ExportError(f"{where}, which is not a step of these formats: {_numbers(arguments)}")
        return result

    def _read(self, func: Any, operation: str, taken: list[Tensor], result: Any, arguments: dict[str, Any]) -> bool:
        if operation in MOVES:
            return (
                len(taken) == 1
                and taken[0] is next(iter(arguments.values()))
                and self._move(func, operation, taken[0], result, arguments)
            )
        images = {id(one): self.writer.image_of(one, operation in _OF_TWO) for one in taken}
        reader = READERS.get(operation)
        if reader is None or any(one is None for one in images.values()):
            return False
        arguments = tree_map(lambda one: images.get(id(one), one), arguments)
        read = reader(self.writer, result, **arguments)
        for other in tree_leaves(result):  # such as the indices of max pooling, which no step returns
            if isinstance(other, Tensor) and not self.writer.knows(other):
                self.writer.values[other] = LOST
        return read

    def _move(self, func: Any, operation: str, tensor: Tensor, result: Any, arguments: dict[str, Any]) -> bool:
        results = tree_leaves(result)
        for _ in range(2):
            value = self.writer.values[tensor]
            index = places(value.shape) if value.where is None else value.where
            after = moved(operation, func, index, arguments) if value.step else None
            if after is None:
                return False
            if result is tensor or all(as_moves(one, value.shape) is not None for one in tree_leaves(after)):
                break
            self.writer.image_of(tensor)  # this move may be a step alone, even if all moves together are not
        for one, index in zip(results, tree_leaves(after)):
            self.writer.move(one, value, index)
        return True

    def _odd(self, result: Any) -> bool:
        """Whether it is computed in another precision than the image."""
        return isinstance(result, Tensor) and result.is_floating_point() and result.dtype != self.dtype

    def _changes(self, func: Any, arguments: Mapping[str, Any], taken: bool) -> bool:
        """Whether an in-place change can be followed. Other tensors that share the memory become unknown."""
        written = [one.name for one in func._schema.arguments if one.alias_info and one.alias_info.is_write]
        changed = arguments[written[0]]
        memory = changed.untyped_storage().data_ptr()
        for one in list(self.writer.values):
            if one is not changed and one.untyped_storage().data_ptr() == memory:
                self.writer.values[one] = LOST
        return not taken or (written == [next(iter(arguments))] and self.writer.knows(changed))


class _Circular(TorchFunctionMode):
    """Circular padding: torch would copy the borders into place; here they are indexed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass on everything else."""
        given = dict(zip(("input", "pad", "mode", "value"), args)) | (kwargs or {})
        if func is not F.pad or given.get("mode") != "circular" or given["input"].dim() != 4 or len(given["pad"]) != 4:
            return func(*args, **(kwargs or {}))
        image, (left, right, top, bottom) = given["input"], given["pad"]
        for axis, before, after in ((2, top, bottom), (3, left, right)):
            size = image.shape[axis]
            image = image.index_select(axis, torch.arange(-before, size + after, device=image.device) % size)
        return image


def _by_name(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments, by their names in the operation's schema."""
    schema = func._schema.arguments
    given = {argument.name: value for argument, value in zip(schema, args)} | dict(kwargs)
    return {argument.name: given.get(argument.name, argument.default_value) for argument in schema}


def _same(one: Step, other: Step) -> bool:
    """Whether two steps are the same, except for their shapes."""
    if (one.kind, one.name, one.inputs) != (other.kind, other.name, other.inputs):
        return False
    return one.settings.keys() == other.settings.keys() and all(
        torch.equal(value, other.settings[key]) if isinstance(value, Tensor) else value == other.settings[key]
        for key, value in one.settings.items()
    )


def _told(layer: str) -> str:
    return layer or "the network"


def _shown(result: Any) -> str:
    return f"a tensor {tuple(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"


def _numbers(arguments: Mapping[str, Any]) -> str:
    """The arguments that are not tensors, for a message."""
    told = {name: value for name, value in arguments.items() if not any(map(torch.is_tensor, tree_leaves(value)))}
    return ", ".join(f"{name}={value}" for name, value in told.items())
