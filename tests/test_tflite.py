"""Networks as files of TFLite: the same numbers at any size, in few operators, or refused."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from helpers import made, randomise
from hypothesis import given, settings
from plain_nets import FUNCTIONS_OF_TORCH, KINDS_OF_STEP, LIBRARY, NETS, Of, nets, picture
from torch import nn

from reparam import ExportError, load_checkpoint
from reparam.deploy._plain import FUNCTIONS, plain_steps
from reparam.deploy._tflite.emit import graph_of
from reparam.deploy._tflite.graph import packed
from reparam.models._pretrained import network_file
from reparam.sr import list_models

SIZES = ((1, 8, 12), (2, 12, 16), (1, 20, 36))


def run(file: bytes, x: np.ndarray) -> np.ndarray:
    """What a user's program does."""
    interpreter = Interpreter(model_content=file)
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    x = x.transpose(0, 2, 3, 1)
    if tuple(source["shape"]) != x.shape:
        interpreter.resize_tensor_input(source["index"], x.shape, strict=True)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], np.ascontiguousarray(x))
    interpreter.invoke()
    y = interpreter.get_tensor(target["index"])
    return y.transpose(0, 3, 1, 2) if y.ndim == 4 else y


def written(net: nn.Module, colors: int = 3, dynamic: bool = True, **options) -> tuple[bytes, Counter]:
    graph = graph_of(plain_steps(net, picture(2, colors, 8, 12).float(), dynamic), dynamic, **options)
    return packed(graph, {}), Counter(operator.kind for operator in graph.operators)


def assert_equal_there(net: nn.Module, colors: int = 3, sizes=SIZES, dynamic: bool = True, **options) -> Counter:
    net = copy.deepcopy(net).float().eval()
    file, kinds = written(net, colors, dynamic, **options)
    for batch, *size in sizes if dynamic else [(2, 8, 12)]:
        x = picture(batch, colors, *size, seed=1).float()
        with torch.inference_mode():
            y = net(x.clone()).numpy()
        got = run(file, x.numpy())
        assert got.shape == y.shape and np.abs(got - y).max() <= 1e-5 * np.abs(y).max(), size
    return kinds


# Networks


@pytest.mark.parametrize("name", list_models(pretrained=True))
def test_networks_with_weights(name):
    net = load_checkpoint(network_file(name, fused=True))
    awkward = ((1, 1, 1), (1, 3, 5), (2, 8, 9), (1, 17, 4), (1, 4, 33))
    kinds = assert_equal_there(net, net.colors, awkward)
    few = {
        "CONV_2D": net.num_blocks + 2,
        "PRELU": net.num_blocks + 1,
        "CONCATENATION": 1,
        "ADD": 1,
        "DEPTH_TO_SPACE": 1,
    }
    assert kinds == few
    as_conv = assert_equal_there(net, net.colors, awkward, shuffle_as_conv=True)
    del few["DEPTH_TO_SPACE"]
    assert as_conv == {**few, "ADD": 2, "TRANSPOSE_CONV": 1, "SHAPE": 1, "MUL": 1}
    fixed = assert_equal_there(net, net.colors, dynamic=False, shuffle_as_conv=True)
    assert fixed == {**few, "TRANSPOSE_CONV": 1}


@pytest.mark.parametrize(("name", "options"), LIBRARY)
def test_every_kind_of_network_of_this_library(name, options):
    net = made(name, **options)
    assert_equal_there(net, net.colors)


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_networks_of_others(name, dynamic):
    net = randomise(NETS[name](), 0)
    assert_equal_there(net, dynamic=dynamic)
    assert_equal_there(net, dynamic=dynamic, shuffle_as_conv=True)


NO_OPERATOR = {
    "resize-2": "bicubic interpolation",
    "average-1": r"means of \(2, 1\) pixels .* leave out \(1, 0\) around",
}


@pytest.mark.parametrize(
    ("name", "net"), [(f"{kind}-{i}", net) for kind, nets in KINDS_OF_STEP.items() for i, net in enumerate(nets)]
)
def test_a_kind_of_step(name, net):
    if name in NO_OPERATOR:
        with pytest.raises(ExportError, match=f"computes {NO_OPERATOR[name]}.*, which no operator of TFLite does"):
            assert_equal_there(net)
    else:
        assert_equal_there(net)
        assert_equal_there(net, dynamic=False)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function(name):
    function = FUNCTIONS_OF_TORCH[name]
    assert_equal_there(Of(lambda x: function(x + 0.1) if name in ("log", "sqrt") else function(8 * x - 4)))


@settings(max_examples=40)
@given(nets())
def test_networks_drawn(net):
    assert_equal_there(net, sizes=((1, 32, 48), (2, 64, 48)))
