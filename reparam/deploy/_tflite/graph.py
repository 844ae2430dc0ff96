"""A TFLite graph, and its bytes in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NOTE = "reparam"
"""The name of the metadata that is this library's note."""

_OPTIONS = {
    "ABS": "AbsOptions",
    "ADD": "AddOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "COS": "CosOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DEPTH_TO_SPACE": "DepthToSpaceOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "DIV": "DivOptions",
    "EXP": "ExpOptions",
    "GATHER": "GatherOptions",
    "GELU": "GeluOptions",
    "HARD_SWISH": "HardSwishOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MIRROR_PAD": "MirrorPadOptions",
    "MUL": "MulOptions",
    "NEG": "NegOptions",
    "PAD": "PadOptions",
    "PADV2": "PadV2Options",
    "POW": "PowOptions",
    "QUANTIZE": "QuantizeOptions",
    "RESHAPE": "ReshapeOptions",
    "RESIZE_BILINEAR": "ResizeBilinearOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
    "SHAPE": "ShapeOptions",
    "SPACE_TO_DEPTH": "SpaceToDepthOptions",
    "STRIDED_SLICE": "StridedSliceOptions",
    "TRANSPOSE_CONV": "TransposeConvOptions",
}
"""The table of the schema with the settings of an operator; other operators have none."""
_VERSIONS = {
    np.dtype(np.float32): {"DEPTHWISE_CONV_2D": 2, "RESIZE_BILINEAR": 3, "RESIZE_NEAREST_NEIGHBOR": 3},
    np.dtype(np.float16): {"DEQUANTIZE": 3},
    np.dtype(np.int8): {
        "ADD": 2,
        "AVERAGE_POOL_2D": 2,
        "CONCATENATION": 2,
        "CONV_2D": 3,
        "DEPTHWISE_CONV_2D": 3,
        "DEQUANTIZE": 2,
        "GATHER": 2,
        "LEAKY_RELU": 2,
        "LOGISTIC": 2,
        "MAXIMUM": 2,
        "MAX_POOL_2D": 2,
        "MEAN": 2,
        "MINIMUM": 2,
        "MUL": 2,
        "PAD": 2,
        "PADV2": 2,
        "QUANTIZE": 2,
        "RELU": 2,
        "RELU6": 2,
        "RESIZE_BILINEAR": 3,
        "RESIZE_NEAREST_NEIGHBOR": 3,
        "SPACE_TO_DEPTH": 2,
        "STRIDED_SLICE": 2,
        "SUB": 2,
        "TANH": 2,
        "TRANSPOSE_CONV": 3,
    },
}
"""Versions of operators, by the type of their first tensor; all others are 1."""
_VERSION_OF_NIBBLES = 7
"""Versions of the convolutions with weights of 4 bits."""
_TYPES = {"float32": "FLOAT32", "float16": "FLOAT16", "int32": "INT32", "int8": "INT8", "uint8": "UINT8"}


@dataclass(frozen=True)
class Scale:
    """The quantization of integers, which stand for scale * (integer - zero)."""

    scale: np.ndarray
    """One scale, or one for each index of an axis."""
    zero: int = 0
    axis: int = 0


@dataclass(frozen=True)
class Array:
    """An input or output of an operator."""

    shape: tuple[int, ...]
    """Its shape for the example."""
    dtype: np.dtype
    free: tuple[int, ...] = ()
    """Its free axes."""
    data: np.ndarray | None = None
    """The values of a constant."""
    scale: Scale | None = None
    nibbles: bool = False
    """Whether these are 4-bit integers, two of which share a byte of the file."""


@dataclass(frozen=True)
class Operator:
    """An operation, with the names of its inputs and output."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    options: Mapping[str, Any]


@dataclass
class Graph:
    """Operators in the order in which they run, between one input and one output."""

    input: str
    output: str
    arrays: dict[str, Array] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)

    def constant(self, data: np.ndarray, name: str = "", scale: Scale | None = None, nibbles: bool = False) -> str:
        """Add a constant, and return its name."""
        name = name or f"constant_{len(self.arrays)}"
        data = np.ascontiguousarray(data)
        self.arrays[name] = Array(data.shape, data.dtype, data=data, scale=scale, nibbles=nibbles)
        return name


def packed(graph: Graph, note: Mapping[str, str]) -> bytes:
    """The bytes of a file.

    Args:
        graph: the graph.
        note: what else is known about the network, stored as JSON in the metadata.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    buffers = [_buffer(schema, None)]
    used = {name for one in graph.operators for name in (*one.inputs, one.output)} | {graph.input, graph.output}
    places = {name: place for place, name in enumerate(name for name in graph.arrays if name in used)}
    tensors = [_tensor(schema, name, graph.arrays[name], buffers) for name in places]
    codes = list(dict.fromkeys((one.kind, _version(graph, one)) for one in graph.operators))
    operators = [
        _operator(schema, one, codes.index((one.kind, _version(graph, one))), places) for one in graph.operators
    ]
    (source,), (target,) = ends = [places[graph.input]], [places[graph.output]]
    signature = schema.SignatureDefT(
        signatureKey="serving_default",
        inputs=[schema.TensorMapT(name=graph.input, tensorIndex=source)],
        outputs=[schema.TensorMapT(name=graph.output, tensorIndex=target)],
    )
    buffers.append(_buffer(schema, np.frombuffer(json.dumps(dict(note)).encode(), np.uint8)))
    model = schema.ModelT(
        version=3,
        description="reparam",
        operatorCodes=[_code(schema, *code) for code in codes],
        subgraphs=[
            schema.SubGraphT(name="main", tensors=tensors, inputs=ends[0], outputs=ends[1], operators=operators)
        ],
        buffers=buffers,
        metadata=[schema.MetadataT(name=NOTE, buffer=len(buffers) - 1)],
        signatureDefs=[signature],
    )
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def note_in(file: bytes) -> dict[str, str]:
    """The note in the bytes of a file; empty if there is none."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(file)
    places = [one.buffer for one in model.metadata or () if one.name in (NOTE, NOTE.encode())]
    return json.loads(bytes(model.buffers[places[0]].data)) if places else {}


def operators_in(file: bytes) -> int:
    """How many there are in the bytes of a file."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.Model.GetRootAs(file).Subgraphs(0).OperatorsLength()


def _version(graph: Graph, operator: Operator) -> int:
    if any(graph.arrays[name].nibbles for name in operator.inputs):
        return _VERSION_OF_NIBBLES
    dtypes = [graph.arrays[name].dtype for name in (*operator.inputs, operator.output)]
    first = next((dtype for dtype in dtypes if dtype in _VERSIONS), None)
    return 1 if first is None else _VERSIONS[first].get(operator.kind, 1)


def _code(schema: Any, kind: str, version: int) -> Any:
    code = getattr(schema.BuiltinOperator, kind)
    return schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=version)


def _operator(schema: Any, operator: Operator, code: int, places: Mapping[str, int]) -> Any:
    table = _OPTIONS.get(operator.kind)
    return schema.OperatorT(
        opcodeIndex=code,
        inputs=[places[name] for name in operator.inputs],
        outputs=[places[operator.output]],
        builtinOptionsType=getattr(schema.BuiltinOptions, table or "NONE"),
        builtinOptions=getattr(schema, f"{table}T")(**operator.options) if table else None,
    )


def _tensor(schema: Any, name: str, array: Array, buffers: list[Any]) -> Any:
    if array.data is not None:
        data = _in_pairs(array.data) if array.nibbles else array.data
        buffers.append(_buffer(schema, np.frombuffer(data.tobytes(), np.uint8)))
    quantized = array.scale and schema.QuantizationParametersT(
        scale=[float(one) for one in array.scale.scale],
        zeroPoint=[array.scale.zero] * len(array.scale.scale),
        quantizedDimension=array.scale.axis,
    )
    return schema.TensorT(
        name=name,
        shape=list(array.shape),
        shapeSignature=[-1 if axis in array.free else size for axis, size in enumerate(array.shape)]
        if array.free
        else None,
        type=getattr(schema.TensorType, "INT4" if array.nibbles else _TYPES[array.dtype.name]),
        buffer=0 if array.data is None else len(buffers) - 1,
        quantization=quantized,
        hasRank=True,
    )


def _in_pairs(data: np.ndarray) -> np.ndarray:
    """4-bit integers, two per byte, the first in the lower half."""
    halves = np.pad(data.ravel().astype(np.uint8) & 15, (0, data.size % 2))
    return halves[0::2] | halves[1::2] << 4


def _buffer(schema: Any, data: np.ndarray | None) -> Any:
    class Aligned(schema.BufferT):
        """Align a buffer to 16 bytes, as the schema requires and its Python code does not do."""

        def Pack(self, builder: Any) -> Any:
            if self.data is not None:
                builder.Prep(16, len(self.data))
            return super().Pack(builder)

    return Aligned(data=data)
