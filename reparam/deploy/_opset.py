"""ONNX in the version of its operators that a program asks for."""

from __future__ import annotations

from typing import Any

from ..errors import ExportError

OPSET = 18
"""The oldest that torch's exporter writes as it is, so that most programs read it."""


def in_opset(model: Any, opset: int) -> Any:
    """The same graph in an older set of operators, as far as ONNX's checker tells; whether it is right, running tells.

    Each version down is a step: by ONNX's converter or, where that has no rule for an operator (for `Add` from 14 to
    13, which differ in the types they take), the node stays as it is.

    Args:
        model: an `onnx.ModelProto`.
        opset: the version that is asked for; the model itself is returned if it has that.

    Raises:
        ExportError: if the older set has not what the graph needs.
    """
    from onnx import checker, helper, version_converter

    for version in range(_opset_of(model) - 1, opset - 1, -1):
        try:
            model = version_converter.convert_version(model, version)
        except RuntimeError:  # it has no adapter
            model.opset_import[0].version = version
    if _opset_of(model) != opset:
        raise ExportError(f"the exporter wrote opset {_opset_of(model)}, where opset={opset} was asked for")
    # What older programs look at first: the newest version of the format that was there with these operators.
    model.ir_version = min(model.ir_version, helper.find_min_ir_version_for(model.opset_import))
    try:
        checker.check_model(model, full_check=True)
    except Exception as problem:  # its own, and those of the inference of shapes
        raise ExportError(f"opset {opset} has not what the network needs: {str(problem).strip()}") from problem
    return model


def _opset_of(model: Any) -> int:
    return next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
