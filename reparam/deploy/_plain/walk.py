"""The walk over a plain network: what it asks of torch, in turn, as steps of few kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...errors import ExportError
from .readers import READERS, Writer
from .steps import Plain, Step


def plain_steps(net: nn.Module, example: Tensor, dynamic: bool = True) -> Plain:
    r"""Takes a network apart into the steps that `Step` lists.

    The network runs on the example, and each operation that torch is asked for is written down; a tensor that does not
    come from the image is a constant. Where sizes are free it runs again on a larger image, and what is not the same
    there depends on the size.

    Args:
        net: fused, in eval mode.
        example: an input (N, C, H, W).
        dynamic: whether batch, height and width are free.

    Raises:
        ExportError: for an operation that is none of these steps, or that depends on the size of the image; the message
            names the layer.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.PReLU(4), nn.PixelShuffle(2)).eval()
        >>> [step.kind for step in plain_steps(net, torch.rand(2, 1, 8, 9)).steps]
        ['conv', 'prelu', 'shuffle']
    """
    if example.dim() != 4:
        raise ExportError(f"the input must be images (N, C, H, W), but the example is {tuple(example.shape)}")
    plain = _walked(net, example)
    if dynamic:
        larger = _walked(net, example.repeat(2, 1, 2, 3))  # divisible by whatever the example is
        for one, other in zip(plain.steps, larger.steps):
            if not _same(one, other):
                raise ExportError(f"{_told(one.layer)} computes {one.kind} from the size of the image")
        if len(plain.steps) != len(larger.steps):
            raise ExportError(f"{type(net).__name__} computes other steps for an image of another size")
    return plain


def _walked(net: nn.Module, example: Tensor) -> Plain:
    example = example.clone()  # which the network may change
    walk = _Walk(example)
    with torch.no_grad(), _running(net, walk.layers), walk:
        result = net(example)
    if not isinstance(result, Tensor) or id(result) not in walk.names:
        raise ExportError(f"{type(net).__name__} gives a {type(result).__name__} that does not come from its input")
    return Plain("input", tuple(example.shape), tuple(walk.steps), walk.names[id(result)][0])


@contextmanager
def _running(net: nn.Module, layers: list[str]) -> Iterator[None]:
    """Keeps the names of the layers that are running, the innermost last."""
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
    """Writes down what is computed of one image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.names = {id(image): ("input", image)}
        """Of the values that come from the image."""
        self.steps: list[Step] = []
        self.layers = [""]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Computes what torch would, and reads it where it comes from the image."""
        kwargs = kwargs or {}
        before = {id(one): tuple(one.shape) for one in tree_leaves((args, kwargs)) if id(one) in self.names}
        result = func(*args, **kwargs)
        if before:
            self._read(func, before, result, _by_name(func, args, kwargs))
        return result

    def _read(self, func: Any, taken: Mapping[int, tuple[int, ...]], result: Any, arguments: dict[str, Any]) -> None:
        operation = str(func.overloadpacket).removeprefix("aten.")
        where = f"{_told(self.layers[-1])} computes {operation} of {' and '.join(map(str, taken.values()))}"
        if func._schema.is_mutable and not self._alone(arguments):
            raise ExportError(f"{where} in place, on a part of another tensor, which none of these formats can say")
        reader = READERS.get(operation if not operation.endswith("_") else operation[:-1])
        writer = Writer(self.names, self.steps, self.layers[-1])
        if reader is None or not reader(writer, result, **arguments):
            raise ExportError(f"{where}, which none of the steps of this format is: {_numbers(arguments)}")

    def _alone(self, arguments: Mapping[str, Any]) -> bool:
        """Whether nobody else sees what an operation in place changes: no tensor that shares its memory is named."""
        changed = next(iter(arguments.values()))
        memory = changed.untyped_storage().data_ptr()
        named = (one for _, one in self.names.values() if one is not changed)
        return all(one.untyped_storage().data_ptr() != memory for one in named)


def _by_name(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by the names of the operation's schema, all of them."""
    schema = func._schema.arguments
    given = {argument.name: value for argument, value in zip(schema, args)} | dict(kwargs)
    return {argument.name: given.get(argument.name, argument.default_value) for argument in schema}


def _same(one: Step, other: Step) -> bool:
    if (one.kind, one.name, one.inputs, one.settings.keys()) != (
        other.kind,
        other.name,
        other.inputs,
        other.settings.keys(),
    ):
        return False
    return all(
        torch.equal(value, other.settings[key]) if isinstance(value, Tensor) else value == other.settings[key]
        for key, value in one.settings.items()
    )


def _told(layer: str) -> str:
    return layer or "the network"


def _numbers(arguments: Mapping[str, Any]) -> str:
    """What is not a tensor, for a message."""
    return ", ".join(
        f"{name}={value}"
        for name, value in arguments.items()
        if not any(isinstance(one, Tensor) for one in tree_leaves(value))
    )
