"""Converts ONNX to the opset that a program needs."""

from __future__ import annotations

from typing import Any

from ..errors import ExportError

OPSET = 18
"""The oldest opset that torch's exporter writes directly, so that most programs can read it."""


def in_opset(model: Any, opset: int) -> Any:
    """The same graph in an older opset. ONNX's checker accepts it; only running it shows whether it is right.

    It goes down one version at a time with ONNX's converter. If the converter has no rule for an operator (such as
    `Add` from 14 to 13, which differ only in the types that they take), the nodes stay unchanged.

    Args:
        model: an `onnx.ModelProto`.
        opset: the version that is wanted; a model that has it already is returned unchanged.

    Raises:
        ExportError: if the older opset lacks something that the graph needs.
    """
    from onnx import checker, helper, version_converter

    for version in range(_opset_of(model) - 1, opset - 1, -1):
        try:
            model = version_converter.convert_version(model, version)
        except RuntimeError:  # it has no adapter
            model.opset_import[0].version = version
    if _opset_of(model) != opset:
        raise ExportError(f"the exporter wrote opset {_opset_of(model)}, but got opset={opset}")
    # Older programs look at the format version first: take the one that was current with this opset.
    model.ir_version = min(model.ir_version, helper.find_min_ir_version_for(model.opset_import))
    try:
        checker.check_model(model, full_check=True)
    except Exception as problem:  # the checker's own, and those of shape inference
        raise ExportError(f"opset {opset} lacks what the network needs: {str(problem).strip()}") from problem
    return model


def _opset_of(model: Any) -> int:
    return next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
