"""Convolutions, linear layers, norms, pools and padding of ONNX as linear maps."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch

from ...algebra._affine import after, padded, scaled
from ...algebra._linear import LinearOp, conv_op, vector_op
from ...algebra._spec import Pads
from ...errors import NotLinearError
from .call import Call, Read, agree, all_equal, side

Reader = Callable[[Call], Read]
READERS: dict[str, Reader] = {}
"""By the names of operations; each raises NotLinearError for a node that is no linear map."""


_MODES = {"constant": "zeros", "edge": "replicate", "wrap": "circular"}


def reads(*operations: str) -> Callable[[Reader], Reader]:
    """Makes a function the reader of operations."""

    def registered(reader: Reader) -> Reader:
        READERS.update(dict.fromkeys(operations, reader))
        return reader

    return registered


def as_it_is(value: LinearOp) -> LinearOp:
    """The map of an operation that does nothing."""
    return value


@reads("Conv")
def _conv(call: Call) -> Read:
    weight = call.tensor(1)
    bias = call.tensor(2) if call.name(2) else None
    size = tuple(weight.shape[2:])
    if len(size) not in (1, 2, 3):
        raise NotLinearError(f"a convolution has {len(size)} axes, but only 1 to 3 are known")
    stride, pads = _grid(call, size)
    dilation = tuple(call.given.get("dilations", (1,) * len(size)))
    bias = None if bias is None or not bias.any() else bias
    op = conv_op(weight, bias, stride, 0, dilation, call.given.get("group", 1))._replace(pads=pads)
    return (call.name(0),), lambda x: after(x, op)


@reads("AveragePool")
def _average_pool(call: Call) -> Read:
    size = tuple(call.given["kernel_shape"])
    stride, pads = _grid(call, size)
    if pads and not call.given.get("count_include_pad", 0):
        raise NotLinearError("AveragePool divides by a different number at the border")
    dilation = tuple(call.given.get("dilations", (1,) * len(size)))
    if call.given.get("ceil_mode", 0):
        _check_windows(call, size, stride, dilation, pads)
    weight = torch.full((1, 1, *size), 1 / prod(size), dtype=torch.float64)
    op = conv_op(weight, None, stride, 0, dilation)._replace(pads=pads)  # for one channel, as all are treated equally
    return (call.name(0),), lambda x: after(x, op)


def _check_windows(
    call: Call, size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], pads: Pads
) -> None:
    """Refuse windows that extend beyond the border."""
    dims = (call.dims(0) or (None, None))[2:] or (None,) * len(size)
    for axis, (k, s, d, length) in enumerate(zip(size, stride, dilation, dims)):
        spare = None if length is None else length + sum(pads[axis] if pads else ()) - d * (k - 1) - 1
        if s > 1 and (spare is None or spare % s):
            raise NotLinearError("AveragePool with ceil_mode=1 divides by a different number at the border")


def _grid(call: Call, size: tuple[int, ...]) -> tuple[tuple[int, ...], Pads]:
    """Stride and pads of a convolution or a pool, including pads that follow from the size of the image."""
    stride = tuple(call.given.get("strides", (1,) * len(size)))
    dilation = call.given.get("dilations", (1,) * len(size))
    how = call.given.get("auto_pad", "NOTSET")
    if how == "VALID":
        return stride, ()
    if how in ("SAME_UPPER", "SAME_LOWER"):
        lengths = (call.dims(0) or ())[2:] or (None,) * len(size)
        totals = [_total(length, *one) for length, *one in zip(lengths, size, stride, dilation)]
        pads = tuple((t // 2, t - t // 2) if how == "SAME_UPPER" else (t - t // 2, t // 2) for t in totals)
    else:
        flat = call.given.get("pads", (0,) * 2 * len(size))
        pads = tuple(zip(flat[: len(size)], flat[len(size) :]))
    return stride, pads if any(map(any, pads)) else ()


def _total(length: int | None, k: int, s: int, d: int) -> int:
    """Pixels around an axis that make its output as long as the input over the stride, rounded up."""
    reach = d * (k - 1)
    if s == 1:
        return reach
    if length is None:
        raise NotLinearError(f"the padding at stride {s} depends on the size of the image")
    return max((-(-length // s) - 1) * s + reach + 1 - length, 0)


@reads("BatchNormalization")
def _norm(call: Call) -> Read:
    if call.given.get("training_mode", 0) or len([name for name in call.node.output if name]) > 1:
        raise NotLinearError("BatchNormalization is in training mode, and uses batch statistics")
    weight, bias, mean, var = (call.tensor(index).double() for index in (1, 2, 3, 4))
    scale = weight / (var + call.given.get("epsilon", 1e-5)).sqrt()
    shift = bias - mean * scale
    rank = len(call.dims(0) or ())

    def apply(x: LinearOp) -> LinearOp:
        agree({side(x, rank), "first" if rank != 2 else None})
        return scaled(x, scale, shift)

    return (call.name(0),), apply


@reads("Gemm")
def _gemm(call: Call) -> Read:
    if call.given.get("transA", 0):
        raise NotLinearError("Gemm transposes its input")
    weight = call.tensor(1).double() * call.given.get("alpha", 1.0)
    weight = weight if call.given.get("transB", 0) else weight.T
    bias = None
    if call.name(2):
        bias = call.tensor(2).double() * call.given.get("beta", 1.0)
        if bias.numel() not in (1, len(weight)):
            raise NotLinearError(f"Gemm adds a constant of shape {tuple(bias.shape)} to {len(weight)} channels")
        bias = bias.reshape(-1).expand(len(weight)) if bias.any() else None
    return (call.name(0),), lambda x: after(x, vector_op(weight, bias))


@reads("MatMul")
def _matmul(call: Call) -> Read:
    weight, dims = call.tensor(1), call.dims(0)
    if weight.dim() != 2 or dims is None or len(dims) < 2:
        raise NotLinearError(f"MatMul by a constant of shape {tuple(weight.shape)} is not a linear layer")

    def apply(x: LinearOp) -> LinearOp:
        agree({side(x, len(dims)), "last" if len(dims) > 2 else None})
        if x.is_padded and not x.flat:
            raise NotLinearError("features are padded or cropped before a linear layer")
        return after(x, vector_op(weight.T))

    return (call.name(0),), apply


@reads("Pad")
def _pad(call: Call) -> Read:
    pads, mode = pads_of(call)
    return (call.name(0),), lambda x: around(x, pads, mode)


def pads_of(call: Call) -> tuple[Pads, str]:
    """What a `Pad` adds on the axes of images, and its mode in torch's words.

    Raises:
        NotLinearError: if it pads with another constant than zero, or pads another axis.
    """
    how = call.given.get("mode", "constant")
    dims, amounts = call.dims(0), call.integers("pads", 1) or ()
    if how == "constant" and call.name(2) and call.numbers(2).any():
        raise NotLinearError(f"Pad adds {call.numbers(2).ravel()[0]}, not zeros")
    axes, half = call.integers("axes", 3), len(amounts) // 2
    rank = len(dims) if dims else half
    pairs = zip(range(rank) if axes is None else [axis % rank for axis in axes], zip(amounts, amounts[half:]))
    amount = dict(pairs)
    if any(amount.get(0, ())) or any(amount.get(1, ())):
        raise NotLinearError("Pad adds channels, or images to a batch")
    return tuple(amount.get(axis, (0, 0)) for axis in range(2, rank)), _MODES.get(how, how)


def around(x: LinearOp, pads: Pads, mode: str) -> LinearOp:
    """A value that is padded, or cropped.

    Raises:
        NotLinearError: if it acts on tokens.
    """
    if not any(map(any, pads)):
        return x
    if x.flat:
        raise NotLinearError("Pad adds tokens to a sequence")
    return after(x, padded(pads, mode, x.kernel.bias))


@reads("Identity")
def _identity(call: Call) -> Read:
    return (call.name(0),), as_it_is


@reads("Dropout")
def _dropout(call: Call) -> Read:
    if call.name(2) and call.numbers(2).any():
        raise NotLinearError("dropout is active")
    return (call.name(0),), as_it_is


@reads("Cast", "CastLike")
def _cast(call: Call) -> Read:
    types = call.graph.type_of(call.name(0)), call.graph.type_of(call.node.output[0])
    if types[0] != types[1]:
        raise NotLinearError(f"the type changes from {types[0]} to {types[1]}")
    return (call.name(0),), as_it_is


@reads("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def same_shape(call: Call) -> Read:
    """An operation that turns out not to change the shape."""
    if not all_equal(call.dims(0), call.graph.dims(call.node.output[0])):
        raise NotLinearError(f"{call.node.op_type} changes the shape")
    return (call.name(0),), as_it_is
