"""Makes the docstrings' sections what griffe knows, and tells it what the constructor of a block takes."""

from __future__ import annotations

import inspect
import pydoc
import re
from typing import Any

import griffe

SHAPE = re.compile(r"^Shape:\n((?: {4}.*(?:\n|$))+)", re.MULTILINE)


class Sections(griffe.Extension):
    """Told of every object that griffe reads, before its docstring is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = sections(obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Griffe reads the files only, and a block has its arguments from the attributes of its classes."""
        signature = getattr(pydoc.locate(cls.path), "__signature__", None)
        if signature is not None:
            cls.set_member("__init__", constructor(signature, cls))


def sections(docstring: str) -> str:
    """The docstring with griffe's names of sections."""
    docstring = SHAPE.sub(lambda match: f"**Shape:** {' '.join(match[1].split())}\n", docstring)
    return re.sub(r"^Example:$", "Examples:", docstring, flags=re.MULTILINE)


def constructor(signature: inspect.Signature, cls: griffe.Class) -> griffe.Function:
    """The constructor of a class as griffe would have read it."""
    parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
    for parameter in signature.parameters.values():
        kind = griffe.ParameterKind(parameter.kind.description)
        default = None if parameter.default is parameter.empty else repr(parameter.default)
        annotation = inspect.formatannotation(parameter.annotation).replace("torch.nn.modules.module", "nn")
        annotation = re.sub(r"(collections\.abc|typing)\.", "", annotation)
        parameters.append(griffe.Parameter(parameter.name, annotation=annotation, kind=kind, default=default))
    return griffe.Function("__init__", parent=cls, parameters=griffe.Parameters(*parameters), returns="None")
