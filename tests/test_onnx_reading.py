"""What is read of an ONNX graph is what ONNX's own reference computes, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_graphs import Sketch

from reparam.algebra._affine import repeated, the_input
from reparam.algebra._linear import LinearOp
from reparam.algebra._spec import convolve
from reparam.deploy._onnx.graph import Graph
from reparam.deploy._onnx.steps import steps_of
from reparam.errors import NotLinearError
from reparam.fusing._regions import applied as applied_step


def applied(value: LinearOp, x: torch.Tensor) -> torch.Tensor:
    """What a value is of its source: written with torch alone."""
    if value.turned:
        return applied(value._replace(turned=False, flat=False), x).movedim(1, -1)
    if value.flat:
        return F.linear(x, value.kernel.weight[..., 0], value.kernel.bias)
    if value.reads:
        x = x[:, value.reads[0] : value.reads[0] + value.kernel.weight.shape[1] * value.groups]
    value = repeated(value, x.shape[1])
    weight, bias = value.kernel
    ones = (1,) * (x.dim() - 2)
    if not value.ndim:
        weight = weight.reshape(*weight.shape, *ones)
    if x.dim() == 2:
        return convolve(x[..., None], weight[..., None], bias, stride=(1,), dilation=(1,), groups=value.groups)[..., 0]
    return convolve(
        x, weight, bias, stride=value.stride or ones, dilation=value.dilation or ones, groups=value.groups,
        pads=value.pads or ((0, 0),) * len(ones), padding_mode=value.padding_mode,
    )  # fmt: skip


def read_of(sketch: Sketch, *outputs: str) -> dict[str, LinearOp]:
    """The values that are linear maps of the input, by name."""
    steps, _ = steps_of(Graph(sketch.model(*outputs)))
    known = {"x": the_input(torch.empty(0, dtype=torch.float64))}
    for step in steps:
        try:
            known[step.key] = applied_step(step, known)
        except (NotLinearError, KeyError):
            continue
    return known


def check(sketch: Sketch, shape: tuple[int, ...], *names: str) -> None:
    """Every value that is read is what the reference gives; those named must be."""
    known = read_of(sketch, *names)
    assert set(names) <= set(known), f"not read: {set(names) - set(known)}"
    made = [name for node in sketch.nodes for name in node.output if name in known]
    x = np.random.default_rng(1).standard_normal(shape)
    wanted = ReferenceEvaluator(sketch.model(*made)).run(None, {"x": x})
    for name, y in zip(made, wanted):
        got = applied(known[name], torch.from_numpy(x)).numpy()
        assert got.shape == y.shape, name
        assert np.abs(got - y).max() <= 1e-12 * max(1, np.abs(y).max()), name


def double(*dims: int | str, opset: int = 18, seed: int = 0) -> Sketch:
    return Sketch(dims, opset, TensorProto.DOUBLE, seed)


@pytest.mark.parametrize("opset", [15, 18, 22])  # before 14, the reference takes norms for those of training
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_convolutions_norms_and_numbers(ndim, opset):
    size = ("h", "w", "d")[:ndim]
    s = double("n", 6, *size, opset=opset)
    y = s.norm(s.conv("x", 6, 8, *(3, 2, 1)[:ndim], groups=2, strides=(2, 1, 1)[:ndim], dilations=(1, 2, 1)[:ndim]), 8)
    ones = (1,) * ndim
    z = s.node("Mul", [y, s.numbers(8, *ones)])
    z = s.node("Add", [s.numbers(1, 8, *ones), z])
    z = s.node("Sub", [s.node("Div", [z, s.numbers(1, 8, *ones)]), s.numbers()])
    z = s.node("Sub", [s.numbers(8, *ones), s.node("Neg", [z])])
    z = s.node("Sub", [s.node("Sum", [z, y, s.numbers(*ones)]), y])
    check(s, (2, 6, 9, 8, 7)[: ndim + 2], z, s.node("Mean", [z, y]))


@pytest.mark.parametrize("how", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("size", "stride"), [((3, 2), (1, 1)), ((3, 3), (2, 3)), ((2, 1), (1, 2)), ((1, 4), (2, 1))])
def test_padding_that_follows_from_the_size(how, size, stride):
    s = double(2, 4, 9, 10)
    check(s, (2, 4, 9, 10), s.conv("x", 4, 5, *size, auto_pad=how, strides=stride, dilations=(1, 1)))


def test_padding_that_follows_from_a_free_size_only_at_stride_1():
    s = double("n", 4, "h", "w")
    check(s, (2, 4, 9, 10), s.conv("x", 4, 5, auto_pad="SAME_UPPER"))
    assert why(s, s.conv("x", 4, 5, auto_pad="SAME_UPPER", strides=(2, 2))) == (
        "the padding at stride 2 depends on the size of the image"
    )


@pytest.mark.parametrize("pads", [(1, 0, 0, 1), (0, 0, 0, 0), (1, 1, 1, 1)])
def test_average_pools(pads):
    s = double("n", 4, "h", "w", opset=19)
    y = s.node("AveragePool", ["x"], kernel_shape=(3, 2), pads=pads, count_include_pad=1, strides=(1, 2))
    z = s.node("AveragePool", ["x"], kernel_shape=(2, 2), dilations=(2, 1))
    check(s, (2, 4, 9, 10), s.conv(y, 4, 3, pads=(0, 0, 0, 0)), s.node("Add", [y, y]), z)
    s = double("n", 4, 9, 10)
    check(s, (1, 4, 9, 10), s.node("AveragePool", ["x"], kernel_shape=(3, 2), strides=(2, 2), ceil_mode=1))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("opset", [11, 18, 21])
def test_padding(mode, opset):
    if mode == "wrap" and opset < 19:
        return
    s = double("n", 4, "h", "w", opset=opset)
    pads = [0, 0, 1, 2, 0, 0, 0, 1]
    y = s.node("Pad", ["x", np.array(pads)], mode=mode)
    found = [s.conv(y, 4, 3, pads=(0, 0, 0, 0)), s.conv(s.node("Mul", [y, s.numbers()]), 4, 3, pads=(0, 0, 0, 0))]
    if opset >= 18:
        found.append(s.node("Pad", ["x", np.array([2, 1, 0, 1]), "", np.array([-1, 2])], mode=mode))
    check(s, (2, 4, 5, 6), *found)


def test_crops():
    s = double("n", 4, "h", "w")
    z = s.node("Slice", ["x", np.array([1, 0]), np.array([-1, 2**62]), np.array([2, -1])])
    z = s.conv(z, 4, 3, pads=(0, 0, 0, 0))
    check(s, (1, 4, 6, 7), z, s.node("Slice", ["x", np.array([1]), np.array([2**31 - 1]), np.array([3])]))


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_channels_taken_apart_and_put_together(opset):
    s = double("n", 8, "h", "w", opset=opset)
    lengths = np.array([3, 5])
    by = ["x"] if opset < 13 else ["x", lengths]
    a, b = s.node("Split", by, outputs=2, axis=1, **({"split": lengths} if opset < 13 else {}))
    c, d = s.node("Split", [s.conv("x", 8, 6)], outputs=2, axis=-3, **({"num_outputs": 2} if opset >= 18 else {}))
    e = s.node("Slice", ["x", np.array([-4]), np.array([-1]), np.array([1])])
    f = s.node("Gather", [s.conv("x", 8, 6, groups=2), np.array([4, 5, 0, -3])], axis=1)
    whole = s.node("Concat", [s.conv(a, 3, 4), b, d, s.node("Add", [c, e]), f], axis=1)
    check(
        s,
        (2, 8, 5, 6),
        whole,
        s.conv(whole, 19, 2, 1, 1),
        s.node("Slice", ["x", np.array([1]), np.array([4]), np.array([1])]),
    )


def test_channels_that_a_sequence_holds():
    s = double("n", 8, "h", "w")
    two, rest = (s.node("SplitToSequence", ["x", lengths], axis=1) for lengths in (np.array(3), np.array([2, 5, 1])))
    y = s.node("SequenceAt", [two, np.array(2)])
    z = s.node("SequenceAt", [rest, np.array(-2)])
    check(s, (1, 8, 4, 5), y, z, s.node("Concat", [z, y], axis=1))


def test_every_other_pixel():
    s = double("n", 3, 8, 6)
    parts = [
        s.node("Slice", ["x", np.array([a, b]), np.array([2**31 - 1] * 2), np.array([2, 3]), np.array([2, 2])])
        for a in (0, 1)
        for b in (0, 1)
    ]
    check(s, (1, 3, 8, 6), *parts, s.conv(parts[0], 3, 2, pads=(0, 0, 0, 0)))


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("reduce", ["ReduceSum", "ReduceMean"])
def test_sums_of_stacks(reduce, opset):
    s = double("n", 4, "h", "w", opset=opset)
    values = ["x", s.conv("x", 4, 4), s.conv("x", 4, 4, 1, 1)]
    by_input = opset >= 13

    def axes(axis, as_input):
        return ([np.array([axis])], {}) if as_input else ([], {"axes": [axis]})

    for axis in (0, 1):
        more, given = axes(axis, by_input)
        singles = [s.node("Unsqueeze", [value, *more], **given) for value in values]
        more, given = axes(axis, by_input and (reduce == "ReduceSum" or opset >= 18))
        y = s.node(reduce, [s.node("Concat", singles, axis=axis), *more], keepdims=0, **given)
        check(s, (2, 4, 5, 6), y)
    sequence = s.node("SequenceConstruct", values)
    more, given = axes(0, by_input and (reduce == "ReduceSum" or opset >= 18))
    stack = s.node("ConcatFromSequence", [sequence], axis=0, new_axis=1)
    check(s, (2, 4, 5, 6), s.node(reduce, [stack, *more], keepdims=0, **given))


def test_one_number_everywhere():
    s = double("n", 4, "h", "w")
    y = s.conv("x", 4, 4)
    zeros = s.node("ConstantOfShape", [s.node("Shape", ["x"])], value=zero_of_double(0.5))
    more = s.node("Expand", [s.numbers(), s.node("Shape", [y])])
    check(s, (2, 4, 5, 6), s.node("Add", [y, zeros]), s.node("Sub", [y, more]))


def zero_of_double(number: float):
    return numpy_helper.from_array(np.array([number]))


def test_what_does_nothing():
    s = double("n", 4, "h", "w", opset=13)
    y = s.node("Dropout", [s.node("Identity", [s.conv("x", 4, 4)]), np.array(0.5), np.array(False)])
    y = s.node("Cast", [y], to=TensorProto.DOUBLE)
    y = s.node("Where", [np.array(True), y, "x"])
    check(s, (2, 4, 5, 6), s.node("Where", [np.array([False]), "x", y]))
    s = double(2, 4, 5, 6)
    check(s, (2, 4, 5, 6), s.node("Reshape", [s.conv("x", 4, 4), np.array([2, 4, -1, 6])]))


@pytest.mark.parametrize("transposed", [False, True])
def test_linear_layers_of_vectors(transposed):
    s = double("n", 6)
    weight = s.numbers(*((5, 6) if transposed else (6, 5)))
    y = s.node("Gemm", ["x", weight, s.numbers(5)], alpha=0.5, beta=2.0, transB=int(transposed))
    z = s.node("MatMul", [s.norm(y, 5), s.numbers(5, 3)])
    z = s.node("Add", [z, s.node("Gemm", ["x", s.numbers(6, 3)])])
    a, b = s.node("Split", [z], outputs=2, axis=-1, num_outputs=2)
    check(s, (4, 6), s.node("Concat", [b, a], axis=1), s.node("Mul", [z, s.numbers(3)]))


def test_linear_layers_of_tokens():
    s = double("n", "t", 6)
    y = s.node("Add", [s.node("MatMul", ["x", s.numbers(6, 4)]), s.numbers(4)])
    y = s.node("Mul", [s.node("Add", [y, s.node("MatMul", ["x", s.numbers(6, 4)])]), s.numbers()])
    part = s.node("Slice", [y, np.array([1]), np.array([3]), np.array([2])])
    check(s, (2, 3, 6), y, part, s.node("MatMul", [part, s.numbers(2, 5)]))


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_any_graph_of_such_nodes(seed, ndim):
    """Nodes at random, on values at random: what is read is what is computed."""
    draw = np.random.default_rng(seed)
    s = double("n", 4, *("h", "w", "d")[:ndim], seed=seed)
    values = ["x"]
    for _ in range(draw.integers(2, 9)):
        values += random_node(s, draw, [values[index] for index in draw.integers(0, len(values), 2)], ndim)
    known = read_of(s, *values[1:])
    check(s, (2, 4, *draw.integers(7, 10, ndim)), *[name for name in values[1:2] if name in known])
    assert len(known) > 1


def random_node(s: Sketch, draw: np.random.Generator, values: list[str], ndim: int) -> list[str]:
    """All values have four channels, and those that are added one size."""
    x, other = values
    size = draw.integers(1, 4, ndim)
    ones = (1,) * ndim
    dilation = draw.integers(1, 3, ndim)
    total = (size - 1) * dilation
    before = [int(draw.integers(0, t + 1)) for t in total]
    pads = [*before, *(total - before)]
    kind = draw.integers(0, 10)
    if kind < 3:
        groups = int(draw.choice([1, 2, 4]))
        return [s.conv(x, 4, 4, *size, groups=groups, bias=bool(draw.integers(2)), dilations=dilation, pads=pads)]
    if kind == 3:
        return [s.norm(x, 4)]
    if kind == 4:
        pool = s.node("AveragePool", [x], kernel_shape=size, pads=[0] * 2 * ndim)
        return [s.node("Pad", [pool, np.array([0, 0, *(size - 1), 0, 0, *(0 * size)])])]
    if kind == 5:
        a, b = s.node("Split", [x], outputs=2, axis=1, num_outputs=2)
        return [s.node("Concat", [b, a], axis=1)]
    if kind == 6:
        return [s.node("Mul", [x, s.numbers(4, *ones)])]
    if kind == 7:
        return [s.node("Gather", [x, draw.integers(0, 4, 4)], axis=1)]
    return [s.node(str(draw.choice(["Add", "Sub", "Mean"])), [x, other])]


def why(s: Sketch, name: str) -> str:
    """Why a value is no linear map of its inputs: what a user is told."""
    steps, reasons = steps_of(Graph(s.model(name)))
    known = {"x": the_input(torch.empty(0, dtype=torch.float64))}
    for step in steps:
        try:
            known[step.key] = applied_step(step, known)
        except NotLinearError as error:
            reasons.setdefault(name, str(error))
    assert name not in known, f"{name} is read"
    return reasons[name]


def image(*dims: int | str, opset: int = 18) -> Sketch:
    return double(*(dims or ("n", 4, "h", "w")), opset=opset)


def with_shape(s: Sketch, operation: str, **attributes) -> str:
    """What stands for a value of whose shape nothing is known: of an operation that ONNX does not have."""
    s.nodes.append(helper.make_node("Unknown", ["x"], ["unknown"], domain="elsewhere"))
    return s.node(operation, ["unknown"], **attributes)


NOT_LINEAR = [
    (
        "a convolution has 4 axes, but only 1 to 3 are known",
        lambda s: s.conv("x", 4, 4, 1, 1, 1, 1),
        ("n", 4, 2, 2, 2, 2),
    ),
    ("input 'relu_0' of Conv is not a known constant", lambda s: s.node("Conv", ["x", s.node("Relu", ["x"])]), None),
    (
        "divides by a different number",
        lambda s: s.node("AveragePool", ["x"], kernel_shape=(3, 3), pads=(1, 1, 1, 1)),
        None,
    ),
    (
        "AveragePool with ceil_mode=1",
        lambda s: s.node("AveragePool", ["x"], kernel_shape=(2, 2), strides=(2, 2), ceil_mode=1),
        (1, 4, 9, 8),
    ),
    ("BatchNormalization is in training mode", lambda s: trained(s), None),
    ("Gemm transposes its input", lambda s: s.node("Gemm", ["x", s.numbers(4, 3)], transA=1), (4, 5)),
    (
        "Gemm adds a constant of shape (2, 3) to 3",
        lambda s: s.node("Gemm", ["x", s.numbers(5, 3), s.numbers(2, 3)]),
        (2, 5),
    ),
    ("MatMul by a constant of shape (2, 4, 3)", lambda s: s.node("MatMul", ["x", s.numbers(2, 4, 3)]), (2, 5, 4)),
    ("features are padded or cropped", lambda s: s.node("MatMul", [cut(s), s.numbers(3, 2)]), ("n", 5, 4)),
    (
        "Pad adds 0.5, not zeros",
        lambda s: s.node("Pad", ["x", np.array([0, 0, 1, 1, 0, 0, 1, 1]), np.array(0.5)]),
        None,
    ),
    ("Pad adds channels, or images to a batch", lambda s: s.node("Pad", ["x", np.array([0, 1, 0, 0] * 2)]), None),
    ("Pad adds tokens to a sequence", lambda s: s.node("Pad", [tokens(s), np.array([0, 0, 1] * 2)]), ("n", 5, 4)),
    ("dropout is active", lambda s: s.node("Dropout", ["x", np.array(0.5), np.array(True)]), None),
    ("the type changes from 1 to 11", lambda s: s.node("Cast", [s.node("Cast", ["x"], to=1)], to=11), None),
    ("Reshape changes the shape", lambda s: s.node("Reshape", ["x", np.array([-1, 2])]), (1, 4, 6, 6)),
    ("Where combines parts", lambda s: s.node("Where", [np.array([True, False]), "x", "x"]), ("n", 4, "h", 2)),
    (
        "ConstantOfShape has a shape",
        lambda s: s.node("ConstantOfShape", [s.node("Gather", [s.node("Shape", ["x"]), np.array([0])])]),
        None,
    ),
    (
        "a constant of shape (1, 1, 5, 5) is not one number per channel",
        lambda s: s.node("Add", ["x", s.numbers(5, 5)]),
        (1, 4, 5, 5),
    ),
    ("axis 2 of 4 is not an axis of channels", lambda s: s.node("Add", ["x", s.numbers(5, 1)]), (1, 4, 5, 5)),
    ("not one number per channel of (1, 1, 5, 5)", lambda s: s.node("Mul", ["x", s.numbers(3, 1, 1)]), (1, 1, 5, 5)),
    ("constants on the last axis follow", lambda s: s.node("Add", ["x", s.numbers(4)]), ("n", 5, 4)),
    ("with their channels on different axes", lambda s: s.norm(tokens(s), 5), ("n", 5, 4)),
    (
        "with their channels on different axes",
        lambda s: s.node("MatMul", [s.norm("x", 5), s.numbers(4, 4)]),
        ("n", 5, 4),
    ),
    ("with their channels on different axes", lambda s: s.node("Add", [s.norm("x", 5), tokens(s)]), ("n", 5, 4)),
    (
        "with their channels on different axes",
        lambda s: s.node("Mul", [s.conv("x", 5, 5, 3), s.numbers(4)]),
        ("n", 5, 4),
    ),
    (
        "values of [(None, 4, None, None), (None, 4, 1, 1)] are combined",
        lambda s: s.node("Add", ["x", s.node("GlobalAveragePool", ["x"])]),
        None,
    ),
    ("ReduceSum sums over positions or channels", lambda s: s.node("ReduceSum", ["x", np.array([1])]), None),
    ("the sum is not over a stack", lambda s: s.node("ReduceSum", ["x", np.array([1])], keepdims=0), None),
    (
        "Concat joins a constant and a value",
        lambda s: s.node("Concat", ["x", s.numbers(1, 2, 5, 5)], axis=1),
        (1, 4, 5, 5),
    ),
    ("axis 2 of 4 is not an axis of channels", lambda s: s.node("Concat", ["x", "x"], axis=2), None),
    (
        "Concat has an input of unknown shape",
        lambda s: s.node("Concat", [with_shape(s, "Identity"), "x"], axis=1),
        None,
    ),
    (
        "Split has an input with an unknown number of channels",
        lambda s: s.node("Split", ["x"], outputs=2, axis=1, num_outputs=2)[0],
        ("n", "c", 5),
    ),
    (
        "SequenceAt reads something that is not a split",
        lambda s: s.node("SequenceAt", [s.node("SequenceConstruct", ["x"]), np.array(0)]),
        None,
    ),
    (
        "a value with an unknown number of channels is split",
        lambda s: s.node("SequenceAt", [s.node("SplitToSequence", ["x", np.array(2)], axis=1), np.array(0)]),
        ("n", "c", 5),
    ),
    (
        "Slice selects images of a batch",
        lambda s: s.node("Slice", ["x", np.array([1]), np.array([9]), np.array([0])]),
        (9, 4, 5),
    ),
    (
        "or reverses an axis",
        lambda s: s.node("Slice", ["x", np.array([-1]), np.array([-9]), np.array([2]), np.array([-1])]),
        (9, 4, 5),
    ),
    (
        "the slice from 0 to 3 depends on the size",
        lambda s: s.node("Slice", ["x", np.array([0]), np.array([3]), np.array([2])]),
        None,
    ),
    (
        "Slice selects tokens of a sequence",
        lambda s: s.node("Slice", [tokens(s), np.array([1]), np.array([4]), np.array([1])]),
        ("n", 5, 4),
    ),
    (
        "or with a step",
        lambda s: s.node("Slice", ["x", np.array([0]), np.array([4]), np.array([1]), np.array([2])]),
        None,
    ),
    ("Transpose orders the axes as (0, 1, 3, 2)", lambda s: s.node("Transpose", ["x"], perm=(0, 1, 3, 2)), None),
    ("Gather selects a single channel", lambda s: s.node("Gather", ["x", np.array(1)], axis=1), None),
    ("ScatterND writes into a value that is not padded", lambda s: scattered(s, "x"), (1, 4, 5, 5)),
    ("padding that is not zeros", lambda s: ringed(s, mode="edge"), (1, 4, 5, 5)),
    ("ScatterND writes into an image of unknown size", lambda s: ringed(s), None),
    ("ScatterND does not write one number", lambda s: scattered(s, padded(s)), (1, 4, 5, 5)),
    ("the ring around an image is not the bias", lambda s: ringed(s, more=0.1), (1, 4, 5, 5)),
    ("is not linear", lambda s: s.node("Relu", ["x"]), None),
    ("input 'x' of Mul is not a known constant", lambda s: s.node("Mul", ["x", "x"]), None),
    ("input 'x' of Div is not a known constant", lambda s: s.node("Div", [s.numbers(), "x"]), None),
]


@pytest.mark.parametrize(("reason", "build", "dims"), NOT_LINEAR)
def test_what_is_no_linear_map_is_not_read(reason, build, dims):
    s = image(*dims) if dims else image()
    assert reason in why(s, build(s))


def trained(s: Sketch) -> str:
    weights = [s.tensor(np.ones(4)) for _ in range(4)]
    return s.node("BatchNormalization", ["x", *weights], outputs=3, training_mode=1)[0]


def tokens(s: Sketch) -> str:
    return s.node("MatMul", ["x", s.numbers(4, 4)])


def cut(s: Sketch) -> str:
    return s.node("Slice", ["x", np.array([1]), np.array([4]), np.array([2])])


def padded(s: Sketch, **attributes) -> str:
    bias = s.numbers(4)
    s.bias = bias
    one = s.node("Conv", ["x", s.numbers(4, 4, 1, 1), bias])
    return s.node("Pad", [one, np.array([0, 0, 1, 1] * 2)], **attributes)


def scattered(s: Sketch, x: str) -> str:
    return s.node("ScatterND", [x, np.array([[[0, 1]]]), np.ones((1, 1, 5 if x == "x" else 7, 5 if x == "x" else 7))])


def ringed(s: Sketch, more: float = 0, **attributes) -> str:
    """Each side written on its own, as torch's older exporter does."""
    y = padded(s, **attributes)
    batch, channel = np.meshgrid([0], range(4), indexing="ij")
    for axis, place in ((2, 0), (2, 6), (3, 0), (3, 6)):
        others = np.arange(7)
        index = np.stack(np.broadcast_arrays(
            batch[..., None], channel[..., None], place if axis == 2 else others, others if axis == 2 else place
        ), -1)  # fmt: skip
        y = s.node("ScatterND", [y, index, np.broadcast_to((s.bias + more)[None, :, None], index.shape[:-1])])
    return y


def test_a_ring_of_the_bias_around_an_image():
    s = image(1, 4, 5, 5)
    ring = ringed(s)
    check(s, (1, 4, 5, 5), ring, s.conv(ring, 4, 3, pads=(0, 0, 0, 0)))


@pytest.mark.parametrize("size", [("h",), ("h", "w"), ("h", "w", "d")])
def test_channels_on_the_last_axis_and_back(size):
    rank = len(size) + 2
    s = image("n", 4, *size)
    last = s.node("Transpose", [s.norm(s.conv("x", 4, 4, *(3,) * (rank - 2)), 4)], perm=(0, *range(2, rank), 1))
    y = s.node("Add", [s.node("MatMul", [last, s.numbers(4, 5)]), s.numbers(5)])
    back = s.node("Transpose", [y], perm=(0, rank - 1, *range(1, rank - 1)))
    known = read_of(s, back)
    assert known[y].flat and not known[back].turned
    check(s, (2, 4, 5, 6, 7)[:rank], back)
