"""Small ONNX graphs for tests: written node by node, or exported by torch as they train."""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

NEWEST = 21
"""Opset; ONNX Runtime runs newer ones too, but warns of them."""


class Sketch:
    """A graph that grows node by node; every tensor is an initializer."""

    def __init__(
        self, dims: Sequence[int | str], opset: int = 18, kind: int = TensorProto.FLOAT, seed: int = 0
    ) -> None:
        self.x, self.opset, self.kind = helper.make_tensor_value_info("x", kind, dims), opset, kind
        self.generator = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.tensors: dict[str, np.ndarray] = {}

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.kind))

    def node(self, operation: str, inputs: Sequence[Any], name: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; arrays among the inputs become initializers. Gives the names of its outputs."""
        names = [one if isinstance(one, str) else self.tensor(one) for one in inputs]
        name = name or f"{operation.lower()}_{len(self.nodes)}"
        made = [name] if outputs == 1 else [f"{name}.{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operation, names, made, f"node of {name}", **attributes))
        return made[0] if outputs == 1 else made

    def tensor(self, array: Any) -> str:
        array = np.asarray(array)
        name = f"tensor_{len(self.tensors)}"
        self.tensors[name] = array if array.dtype.kind in "ib" else array.astype(self.dtype)
        return name

    def numbers(self, *shape: int) -> np.ndarray:
        return self.generator.standard_normal(shape)

    def conv(
        self, x: str, inputs: int, outputs: int, *size: int, bias: bool = True, groups: int = 1, **attributes
    ) -> str:
        size = size or (3, 3)
        if "pads" not in attributes and "auto_pad" not in attributes:
            attributes["pads"] = [(k - 1) // 2 for k in size] + [k // 2 for k in size]
        weight = self.numbers(outputs, inputs // groups, *size) / (inputs // groups * np.prod(size)) ** 0.5
        return self.node("Conv", [x, weight, *([self.numbers(outputs)] if bias else [])], group=groups, **attributes)

    def norm(self, x: str, channels: int) -> str:
        weight, bias, mean = self.numbers(channels), self.numbers(channels), self.numbers(channels)
        return self.node("BatchNormalization", [x, weight, bias, mean, self.generator.uniform(0.5, 2, channels)])

    def model(self, *outputs: str, ir_version: int = 8, dims: Any = None) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "sketch",
            [self.x],
            [helper.make_tensor_value_info(name, self.kind, dims) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.tensors.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir_version)


def save(model: ModelProto, path: Path, **options: Any) -> Path:
    onnx.save_model(model, path, **options)
    return path


def exported(
    module: nn.Module,
    x: torch.Tensor,
    path: Path,
    *,
    opset: int = 17,
    dynamo: bool = False,
    free: Sequence[int] | None = None,
) -> Path:
    """A module as torch exports it where nothing is fused: batch norms, dropout and all branches are there.

    `free` are the axes of any size; those of the batch and of images if it is not given.
    """
    options: dict[str, Any] = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    axes = (0, *range(2, x.dim())) if free is None else free
    names = {axis: f"size{axis}" for axis in axes}
    options["dynamic_axes"] = {"x": names} if names else None
    if dynamo:
        options = {"optimize": False, "dynamic_shapes": (names,) if names else None}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the older exporter is deprecated, and most files in use are its
        torch.onnx.export(
            module.eval(),
            (x,),
            path,
            input_names=["x"],
            output_names=["y"],
            opset_version=opset,
            dynamo=dynamo,
            **options,
        )
    return path


def operations(path: Path) -> list[str]:
    """Of the nodes in a file, constants left out."""
    return [node.op_type for node in onnx.load(path).graph.node if node.op_type != "Constant"]


def run(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))
