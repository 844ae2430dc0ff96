"""Core ML packages. Core ML runs only on a Mac or an iPhone, so torch checks what was written by reading it back."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ExportError
from ._lean import lean, one_by_one
from ._runners import Run

LARGEST_SIDE = 4096
"""The largest side of an image if sizes are free: a Core ML range needs an end."""


def write_coreml(
    net: nn.Module, example: Tensor, dynamic: Any, file: Path, metadata: Mapping[str, str], half: bool = False
) -> str:
    """Write a package (a folder) for one image at a time, and return the remark that Core ML has not run it."""
    with _quiet():
        import coremltools as ct

        net, image = lean(net, one_by_one), example[:1]
        traced = torch.jit.trace(net, image, check_trace=False)
        sizes = [ct.RangeDim(1, LARGEST_SIDE, default=size) if dynamic is True else size for size in image.shape[2:]]
        kind = {"dtype": np.float16 if half else np.float32}
        model = ct.convert(
            traced,
            inputs=[ct.TensorType("input", shape=(*image.shape[:2], *sizes), **kind)],
            outputs=[ct.TensorType("output", **kind)],
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            skip_model_load=True,
        )
        model.user_defined_metadata.update(metadata)
        model.save(str(file))
    return "Core ML runs only on a Mac or an iPhone and has not run this file: torch read it back and computed it"


def about_coreml(file: Path) -> tuple[dict[str, str], tuple[int | None, ...]]:
    """The note and the input shape of a package."""
    description = _model(file).get_spec().description
    image = description.input[0].type.multiArrayType
    free = image.WhichOneof("ShapeFlexibility") == "shapeRange"
    ranges = image.shapeRange.sizeRanges
    sizes = [(one.lowerBound, one.upperBound) for one in ranges] if free else [(size, size) for size in image.shape]
    shape = tuple(None if low != high else int(low) for low, high in sizes)
    return dict(description.metadata.userDefined), shape


def run_read_back(file: Path) -> Run:
    """A function that computes the operations of a package with torch, using the weights in the package."""
    with _quiet():
        from coremltools.converters.mil.frontend.milproto.load import load

        model = _model(file)
        spec = model.get_spec()
        program = load(spec, spec.specificationVersion, model.weights_dir)
    main = program.functions["main"]
    operations = [operation for operation in main.operations if operation.op_type != "const"]
    if unknown := sorted({operation.op_type for operation in operations} - _OPERATIONS.keys()):
        raise ExportError(f"Core ML's {', '.join(unknown)} cannot be checked here, and nothing is written unchecked")
    half = _model(file).get_spec().description.input[0].type.multiArrayType.dataType == _FLOAT16

    @torch.inference_mode()
    def run(x: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(x)
        values = {next(iter(main.inputs)): image.half().float() if half else image}
        for operation in operations:
            given = {name: _value(one, values) for name, one in operation.inputs.items()}
            values[operation.outputs[0].name] = _OPERATIONS[operation.op_type](**given)
        return values[main.outputs[0].name].numpy()

    return run


_FLOAT16 = 65552
"""The value of Core ML's `ArrayFeatureType` for float16."""


def _model(file: Path) -> Any:
    with _quiet():
        import coremltools as ct

        return ct.models.MLModel(str(file), skip_model_load=True)


def _value(given: Any, values: Mapping[str, Tensor]) -> Any:
    """The value of an argument: computed before, or a constant, with floats in float32."""
    if isinstance(given, (tuple, list)):
        return [_value(one, values) for one in given]
    if given.name in values:
        return values[given.name]
    constant = given.val
    if isinstance(constant, np.ndarray):
        return torch.from_numpy(constant.astype(np.float32 if constant.dtype.kind == "f" else constant.dtype))
    return constant.item() if isinstance(constant, np.generic) else constant


def _padded(x: Tensor, pad_type: str, pad: Any, **_: Any) -> Tensor:
    top, bottom, left, right = (0, 0, 0, 0) if pad_type == "valid" else pad.tolist()
    return F.pad(x, (left, right, top, bottom))


def _conv(
    x: Tensor, weight: Tensor, strides: Tensor, dilations: Tensor, groups: int, bias: Any = None, **padding: Any
) -> Tensor:
    if padding["pad_type"] not in ("custom", "valid"):
        raise ExportError(f"a Core ML convolution with pad_type {padding['pad_type']!r} cannot be checked here")
    x = _padded(x, **padding)
    return F.conv2d(x, weight, bias, strides.tolist(), 0, dilations.tolist(), groups)


def _gather(x: Tensor, indices: Tensor, axis: int, **_: Any) -> Tensor:
    return x.index_select(axis, indices.long())


def _enlarged(x: Tensor, scale_factor_height: Any, scale_factor_width: Any) -> Tensor:
    return F.interpolate(x, scale_factor=(float(scale_factor_height), float(scale_factor_width)), mode="nearest")


_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "conv": _conv,
    "prelu": lambda x, alpha: F.prelu(x, alpha),
    "relu": lambda x: x.relu(),
    "leaky_relu": lambda x, alpha: F.leaky_relu(x, float(alpha)),
    "softplus": lambda x: F.softplus(x, threshold=1e3),
    "sigmoid": lambda x: x.sigmoid(),
    "tanh": lambda x: x.tanh(),
    "silu": lambda x: F.silu(x),
    "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "real_div": lambda x, y: x / y,
    "concat": lambda values, axis, interleave=False: torch.cat(values, axis),
    "gather": _gather,
    "pixel_shuffle": lambda x, upscale_factor: F.pixel_shuffle(x, int(upscale_factor)),
    "upsample_nearest_neighbor": _enlarged,
    "identity": lambda x: x,
    "cast": lambda x, dtype: x.half().float() if dtype == "fp16" else x,
}
"""The operations of MIL, the language of Core ML programs."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence coremltools: it warns about versions that it was not tested with, and draws progress bars."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
