"""Find re-parameterizable modules of other people's code in a model, and the layers that they become."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.conv import _ConvNd

from ...algebra._affine import the_input
from ...algebra._linear import LinearOp
from ...algebra._spec import ConvSpec
from ...branches import Branch
from ...errors import NotLinearError, ReparamError
from ...modules._walk import walk
from ...numerics._precision import has_float64, in_float64
from .._regions import Piece
from .equations import is_whole_block
from .exact import copied_with, exact
from .forms import InferenceForm, Row, form_of
from .hidden import differs, hidden_value
from .judging import (
    StaysError,
    as_a_whole,
    asks_for_geometry,
    check_dtypes,
    check_most,
    is_chain,
    is_worth_it,
    leaves_layers,
    modules_of,
    regions_of,
)
from .leaves import check_inside, is_leaf, is_registered, like_of
from .lookalikes import says_it_fuses
from .reading import Forward, Reader
from .rewriting import InPlace, Rewriting, name_pieces
from .source import used_modules
from .trace import called, is_any_norm, is_torch_layer

Form = InferenceForm | Row | Rewriting | InPlace


@dataclass(frozen=True)
class ForeignBlock:
    """A module whose branches become one or more convolutions."""

    module: nn.Module
    form: InferenceForm | Row | Rewriting | InPlace | None
    """How its class runs the convolutions; None if the whole module becomes a layer."""
    values: Mapping[str, LinearOp]
    """Its convolutions in float64, by their names in the module."""
    swallows: Mapping[str, tuple[str, ...]]
    """For each convolution, the names of the modules inside that it replaces; empty if it replaces the whole module."""
    own: frozenset[str] = frozenset()
    """Convolutions that also depend on the module's own parameters."""
    costs: Mapping[str, tuple[Fraction, Fraction]] = field(default_factory=dict)
    """Multiply-adds per pixel of the input, before and after fusing, where known."""

    def parts(self, conv: str) -> list[nn.Module]:
        """The modules that a convolution is computed from."""
        names = () if conv in self.own else self.swallows[conv]
        return [self.module.get_submodule(name) for name in names] or [self.module]

    @property
    def gone(self) -> list[nn.Module]:
        """The modules that fusing removes."""
        if self.form is None or isinstance(self.form, Row):
            return [self.module]
        return [self.module.get_submodule(name) for names in self.swallows.values() for name in names]

    def spec(self, conv: str) -> ConvSpec:
        """The geometry of a convolution; a linear layer counts as one with a single tap on one axis."""
        value = self.values[conv]
        return ConvSpec(value.inputs, value.outputs, 1, ndim=1) if value.flat else value.spec()

    @property
    def is_in_place(self) -> bool:
        """Whether it consists of consecutive layers in a forward that stays."""
        return isinstance(self.form, InPlace)

    @property
    def kept(self) -> dict[str, nn.Module]:
        """The modules inside that stay, by name."""
        if self.form is None:
            return {}
        if isinstance(self.form, Row):
            return {name: part for name, part in self.module.named_children() if name == self.form.then}
        if isinstance(self.form, Rewriting):
            return {name: self.module.get_submodule(name) for name in self.form.calls()}
        gone = set(map(id, self.gone))
        return {name: part for name, part in self.module.named_children() if id(part) not in gone}


@dataclass(frozen=True)
class Refusal:
    """Why a module that looks like a block is not one."""

    why: str
    asked: bool = False
    """Whether its type is registered with `kernel_of`: then it must not be left unfused silently."""


class Foreign(NamedTuple):
    """The modules of other people's code in a model, by dotted name."""

    blocks: dict[str, ForeignBlock]
    refusals: dict[str, Refusal]
    """Modules that look like blocks but are not."""
    apart: dict[str, str]
    """Modules that could be one convolution but are cheaper unfused."""


def find_foreign(model: nn.Module, stays: Container[int] = ()) -> Foreign:
    """Find the foreign blocks of a model, and modules that look like one, by dotted name, each once.

    The search includes modules that a block keeps. Modules whose ids are in `stays` are left alone.
    """
    survey = _Survey(model, stays)
    seen: dict[int, ForeignBlock | Refusal | None] = {}

    def inside(module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        block = seen[id(module)] = _look_at(module, survey)
        if isinstance(block, ForeignBlock):
            return block.kept.items()
        return () if isinstance(module, Branch) else module.named_children()

    found = {name: seen[id(module)] for name, module in list(walk(model, inside))}
    blocks = {name: block for name, block in found.items() if isinstance(block, ForeignBlock)}
    refusals = {name: block for name, block in found.items() if isinstance(block, Refusal)}
    names = {id(module): name for name, module in model.named_modules()}
    apart = {names[key]: why for key, why in survey.apart.items()}
    return Foreign(blocks, refusals, apart)


def foreign_block(module: nn.Module) -> ForeignBlock | None:
    """The module as a foreign block, or None if it is not one."""
    block = _look_at(module, _Survey(module))
    return block if isinstance(block, ForeignBlock) else None


class _Survey:
    """Copies of the modules of a model, in eval mode, which can be read in float64."""

    def __init__(self, model: nn.Module, stays: Container[int] = ()) -> None:
        self.model, self.stays = model, stays
        self.apart: dict[int, str] = {}
        """Why a module that could be one layer stays several, by id."""

    @cached_property
    def twins(self) -> dict[int, nn.Module]:
        """The copy of a module, by its id."""
        return {id(module): twin for module, twin in zip(self.model.modules(), to_read(self.model).modules())}

    @cached_property
    def opaque(self) -> set[int]:
        """The ids of copies that are not searched: blocks of this library, and modules that stay."""
        kept = [module for module in self.model.modules() if id(module) in self.stays or isinstance(module, Branch)]
        inside = {id(part) for module in kept for part in module.modules()}
        touched = [module for module in self.model.modules() if any(id(part) in inside for part in module.modules())]
        return {id(self.twins[id(module)]) for module in touched}

    @cached_property
    def reader(self) -> Reader:
        """Reads the copies."""
        return Reader(in_float64(like_of(self.model)))

    @property
    def calls(self) -> Counter[int]:
        """How often each copy is called, by id."""
        return self._calls[0]

    @property
    def odd(self) -> set[int]:
        """The ids of copies that are called with options or by keyword, which a convolution cannot replace."""
        return self._calls[1]

    @cached_property
    def _calls(self) -> tuple[Counter[int], set[int]]:
        counts: Counter[int] = Counter()
        odd: set[int] = set()
        opaque = []
        for twin in self.twins.values():
            if is_leaf(twin):
                continue
            try:
                forward = self.reader.forward_of(twin)
            except NotLinearError:
                opaque.append(twin)
                continue
            for node in forward.graph.nodes:
                if (part := called(twin, node)) is not None:
                    counts[id(part)] += 1
                    odd.update({id(part)} if _is_odd(part, node) else ())
                elif node.op == "get_attr":  # its values are read directly
                    counts[id(twin.get_submodule(str(node.target).rpartition(".")[0]))] += 2
        found = used_modules(opaque)
        counts.update(found.modules.keys())
        return counts, odd | found.otherwise


def _is_odd(module: nn.Module, node: Node) -> bool:
    """Whether a call passes more than the required arguments, or passes them by keyword."""
    parameters = inspect.signature(module.forward).parameters.values()
    asked = sum(one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD for one in parameters)
    return bool(node.kwargs) or len(node.args) > asked


def _look_at(module: nn.Module, survey: _Survey) -> ForeignBlock | Refusal | None:
    if isinstance(module, Branch):
        return None
    registered = is_registered(module)
    form = None if registered else form_of(module)
    try:
        return _read(module, form, survey)
    except Exception as error:  # a part that cannot be read must not prevent the others
        stays = isinstance(error, StaysError) or not isinstance(error, ReparamError)
        if not (stays or registered or form or is_whole_block(module) or says_it_fuses(module)):
            return None
        why = str(error) if isinstance(error, ReparamError) else f"{type(error).__name__}: {error}"
        return Refusal(f"{type(module).__name__}: {why}", registered)


@torch.no_grad()
def _read(module: nn.Module, form: InferenceForm | Row | None, survey: _Survey) -> ForeignBlock | None:
    if (is_torch_layer(module) and not is_registered(module)) or id(module) in survey.stays:
        return None
    block = read_block(module, survey.twins[id(module)], form, survey.reader, survey)
    if block is None:
        return None
    for conv in block.values:
        block.spec(conv)
    stands_in = not isinstance(block.form, (InferenceForm, InPlace))
    if stands_in and module is not survey.model and id(survey.twins[id(module)]) in survey.odd:
        raise StaysError("it is called with options or by keyword arguments, which a convolution does not take")
    for name in dict.fromkeys(name for names in block.swallows.values() for name in names or ("",)):
        for part in module.get_submodule(name).modules():
            if is_registered(part):
                check_registered(part, survey.reader.like)
    return block


def read_block(
    module: nn.Module, twin: nn.Module, form: InferenceForm | Row | None, reader: Reader, survey: _Survey | None = None
) -> ForeignBlock | None:
    """Read a module as a block; None if nothing in it becomes another convolution.

    Args:
        module: the user's module.
        twin: the copy of it that is read.
        form: how it gets its inference form, if its class is known.
        reader: reads the twin.
        survey: the survey of the model; without it, only parallel branches are found.
    """
    like = reader.like
    if is_registered(module) or is_whole_block(module):
        return ForeignBlock(module, None, {"": reader.apply(twin, the_input(like))}, {"": ()})
    if isinstance(form, Row):
        check_inside(twin)
        parts = tuple(name for name in module._modules if name != form.then and module._modules[name] is not None)
        return ForeignBlock(module, form, {form.conv: form.equation(twin, like)}, {form.conv: parts})
    if _is_ours(module):
        return None
    try:
        forward = reader.forward_of(twin)
    except NotLinearError as error:
        # A forward that branches on values has no kernel, even if one is right on all inputs that are tried.
        tried = survey is not None and id(twin) not in survey.opaque and "control flow" not in str(error)
        if tried and (value := hidden_value(module, reader)) is not None:
            return ForeignBlock(module, None, {"": value}, {"": ()})
        raise
    found = regions_of(forward, survey.opaque if survey else ())
    pieces = found.pieces
    if survey is not None and found.apart and not pieces:
        survey.apart[id(module)] = next(iter(found.apart.values()))
    if isinstance(form, InferenceForm) and len(pieces) == len(form.convs):
        values = {conv: piece.value(like) for conv, piece in zip(form.convs, pieces)}
        swallows = {conv: _children(forward, piece) for conv, piece in zip(form.convs, pieces)}
        named = dict(zip(form.convs, pieces))
        return ForeignBlock(module, form, values, swallows, _own(forward, named), _costs(named))
    may_be_whole = survey is not None and id(twin) not in survey.opaque
    says = may_be_whole and says_it_fuses(module)
    if says and (value := as_a_whole(forward, like)) is not None:
        return ForeignBlock(module, None, {"": value}, {"": ()})
    pieces = [piece for piece in pieces if is_worth_it(piece, forward)]
    if pieces:
        return _placed(module, forward, pieces, reader, survey)
    if may_be_whole and leaves_layers(forward) and (value := hidden_value(module, reader)) is not None:
        return ForeignBlock(module, None, {"": value}, {"": ()})
    if says:
        forward.apply(the_input(like))  # raises the reason, if it is known
    if found.refused:
        raise StaysError(f"it sums several layers of the same input, but {next(iter(found.refused.values()))}")
    return None


def _placed(
    module: nn.Module, forward: Forward, pieces: list[Piece], reader: Reader, survey: _Survey | None
) -> ForeignBlock | None:
    """Decide where the convolutions go in a module without its own inference form."""
    chains = [piece for piece in pieces if is_chain(piece, forward)]
    if chains == pieces:
        return None if survey is None else _in_place(module, forward, pieces, reader, survey)
    whole = pieces[0].source in forward.inputs and forward.output.args[0] is pieces[0].output
    if whole and len(forward.inputs) == 1:
        return ForeignBlock(module, None, {"": pieces[0].value(reader.like)}, {"": ()}, costs=_costs({"": pieces[0]}))
    if survey is not None and module is survey.model:
        check_most(module, forward, pieces)
    check_dtypes(forward, like_of(module))
    named = name_pieces(forward, pieces)
    values = {name: piece.value(reader.like) for name, piece in named.items()}
    swallows = {name: modules_of(forward, piece) for name, piece in named.items()}
    return ForeignBlock(module, Rewriting(forward, named), values, swallows, _own(forward, named), _costs(named))


def _own(forward: Forward, named: Mapping[str, Piece]) -> frozenset[str]:
    return frozenset(name for name, piece in named.items() if forward.has_own(piece))


def _costs(named: Mapping[str, Piece]) -> dict[str, tuple[Fraction, Fraction]]:
    return {name: (piece.before, piece.after) for name, piece in named.items()}


def _in_place(
    module: nn.Module, forward: Forward, pieces: list[Piece], reader: Reader, survey: _Survey
) -> ForeignBlock | None:
    """Consecutive layers: the first becomes the convolution, the others are removed."""
    values, swallows, placed = {}, {}, {}
    for piece in pieces:
        names = modules_of(forward, piece)
        if not asks_for_geometry(module) and all(
            survey.calls[id(forward.root.get_submodule(name))] == 1 for name in names
        ):
            first = next(name for name in names if not is_any_norm(forward.root.get_submodule(name)))
            values[first] = piece.value(reader.like)
            swallows[first] = names
            placed[first] = piece
    return ForeignBlock(module, InPlace(), values, swallows, costs=_costs(placed)) if values else None


def _is_ours(module: nn.Module) -> bool:
    return type(module).__module__.split(".")[0] == "reparam"


def _children(forward: Forward, piece: Piece) -> tuple[str, ...]:
    """The names of the attributes that hold the modules of a piece."""
    return tuple(dict.fromkeys(name.partition(".")[0] for name in modules_of(forward, piece)))


def to_read(module: nn.Module) -> Any:
    """Like `exact`, but the weights of torch's convolutions keep their dtype.

    They are large, and are converted to float64 when a kernel is computed. The copy can be read but not run.
    """
    opaque = [part for part in module.modules() if is_registered(part) or isinstance(part, Branch)]
    inside = {id(inner) for part in opaque for inner in part.modules()}
    convs = [part for part in module.modules() if isinstance(part, _ConvNd) and is_torch_layer(part)]
    weights = [part._parameters.get("weight") for part in convs if id(part) not in inside]
    raw = {id(weight) for weight in weights if weight is not None and has_float64(weight.device)}

    def made(tensor: Tensor) -> Tensor:
        return tensor if id(tensor) in raw else in_float64(tensor)

    return copied_with(module, made, quietly=True)


def check_registered(module: nn.Module, like: Tensor) -> None:
    """Run a module of a registered type on random values, if it accepts them, and compare it with its kernel.

    Raises:
        NotLinearError: if it computes anything but its registered kernel.
    """
    found = differs(module, Reader(like).apply(exact(module), the_input(like)))
    if found is not None and not found.error <= 1e-6 * found.largest + 1e-12:  # a forward may compute in float32
        raise NotLinearError(
            f"its forward differs from the kernel that is registered with kernel_of: by {found.error:.3g} at values up "
            f"to {found.largest:.3g}, on random inputs of shape {found.shape}; a kernel cannot contain an activation, "
            "a gate or quantization: register the linear part only, or do not register this type"
        )
