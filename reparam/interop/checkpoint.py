"""From a file to a network, and back."""

from __future__ import annotations

import json
import os
from functools import reduce
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from ..fuse import unwrap
from ..models import ECBSR, EDSR, SESR, CollapsibleSR, PlainSR, QARepVGGSR, RepSR, RepVGGSR
from ..models.net import SRNet
from ..models.registry import Network
from ..norm import norms
from .files import Contents, read_file, write_file
from .networks import LAYOUTS, Recipe, recognise
from .state_dict import looked_for, matched

_NETWORKS = (PlainSR, RepSR, ECBSR, RepVGGSR, QARepVGGSR, CollapsibleSR, SESR, EDSR)
_CLASSES: dict[str, type[Network]] = {network.__name__: network for network in _NETWORKS}
_USUAL_EPS = nn.BatchNorm2d(1).eps

Path = str | os.PathLike[str]


def load_checkpoint(path: Path, *, wrapper: str | None = None, **options: Any) -> Network:
    """Builds the network that a file holds the weights of, and loads them.

    The layout is recognised by the keys, sizes are read off the shapes, masks and ranges are those of the file. Known
    are the files of `save_checkpoint`, ECBSR (the authors' and BasicSR's), RepSR in JL-DY's code, SRVGGNetCompact,
    SESR with tensors in torch's layout, EDSR (BasicSR's and the authors' keys), and what `fuse_state_dict` makes of
    these. Nothing in a file is executed. What DDP and torch.compile put before the keys is taken off.

    Args:
        path: a `.safetensors` file or a file of torch.
        wrapper: the key under which a torch file has the state dict; None looks for `params_ema`, `params`,
            `state_dict` and `model`, in this order, and for a state dict without one.
        **options: arguments of the network's class which the layout leaves open, in place of their defaults: `act`
            where the file has no slopes of PReLU, `identity=None` for an ECBSR trained with `with_idt`, `res_scale`
            and `img_range` of EDSR.

    Returns:
        The network in eval mode, on the CPU, in the dtype of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged, holds code, or no state dict of a known layout. Where the layout
            is known but does not fit, the first differing key and both shapes are named.

    Example:
        >>> import tempfile
        >>> from reparam import create_model
        >>> net = create_model("plain_m1c8_x2_y").eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(net, f"{folder}/net.safetensors")
        ...     same = load_checkpoint(f"{folder}/net.safetensors")
        >>> x = torch.rand(1, 1, 5, 7)
        >>> torch.equal(net(x), same(x))
        True
    """
    contents = read_file(path, wrapper)
    try:
        return network_of(contents, **options)
    except CheckpointError as error:
        raise CheckpointError(f"cannot load {os.fspath(path)}: {error}") from error


def network_of(contents: Contents, **options: Any) -> Network:
    """The network of a file that was read; see `load_checkpoint`."""
    tensors = contents.state_dict
    known = recipe_of(contents)
    if known is None:
        kinds = ", ".join(dict.fromkeys(f"{layout.name} ({layout.marks[0]})" for layout in LAYOUTS))
        raise CheckpointError(f"no known network; looked for {kinds}. {looked_for(tensors)}")
    name, recipe = known
    recipe = recipe._replace(options={**recipe.options, **options})
    text = ", ".join(f"{key}={value}" for key, value in recipe.options.items())
    if issubclass(recipe.network, SRNet) and "act" not in recipe.options:
        raise CheckpointError(
            f"looks like {name} ({text}), but there are no slopes of PReLU, so that the activation is another "
            "one, which no key tells: pass act='relu', 'leakyrelu', 'softplus' or 'linear'"
        )
    try:
        with torch.device("meta"):  # shapes are compared first, so that a wrong one costs no memory
            wanted = recipe.build().state_dict()
        ours = matched(wanted, tensors, {key: key for key in tensors} if recipe.names is None else recipe.names)
        net = recipe.build()
        for place, bn in norms(net):
            bn.eps = _eps(contents.note.get("eps", {}).get(place, bn.eps))
        net.to(reduce(torch.promote_types, (tensor.dtype for tensor in ours.values() if tensor.is_floating_point())))
        net.load_state_dict(ours)
    except Exception as error:  # options that anyone may have written run torch into anything
        raise CheckpointError(f"looks like {name} ({text}), but does not fit: {error}") from error
    return net.eval()


def _eps(value: Any) -> float:
    if not float(value) >= 0:
        raise CheckpointError(f"the file says that a batch norm has eps={value}")
    return float(value)


def recipe_of(contents: Contents) -> tuple[str, Recipe] | None:
    """What to build for a file, by what it says of itself or by its keys; None if that is unknown."""
    return _noted(contents) or recognise(contents.state_dict)


def save_checkpoint(model: nn.Module, path: Path, *, wrapper: str | None = None) -> None:
    """Writes the weights of a model, whole or not at all: an existing file is replaced in one step, at the end.

    A network of this library is described beside its weights, where there is room (in a safetensors file, or beside the
    wrapper of a torch file), so that `load_checkpoint` needs no options; the eps of batch norms too, where it is not
    torch's. A fused network has the keys of SRVGGNetCompact if it is of that kind, and loads wherever that does.

    Args:
        model: any module; wrappers (DDP, `torch.compile`, `AveragedModel`) are taken off.
        path: a name that ends in `.safetensors`, or another one for a file of torch.
        wrapper: the key to put the state dict under in a torch file, such as "params" for BasicSR.

    Raises:
        CheckpointError: for a wrapper in a safetensors file, an extra state that is no tensor, or if writing fails.
        FileNotFoundError: if there is no such directory.
    """
    model = unwrap(model)
    tensors = model.state_dict()
    if extra := [key for key, value in tensors.items() if not isinstance(value, torch.Tensor)]:
        raise CheckpointError(
            f"cannot write {os.fspath(path)}: {', '.join(extra)} of {type(model).__name__} (get_extra_state) holds a "
            f"{type(tensors[extra[0]]).__name__}, and a file of weights holds tensors only; save it beside the weights"
        )
    write_file(tensors, path, wrapper=wrapper, note=_note(model))


def _note(model: nn.Module) -> dict[str, Any]:
    """What no state dict tells: what a network of ours is, if its class and plain values say it, and unusual eps."""
    eps = {name: bn.eps for name, bn in norms(model) if bn.eps != _USUAL_EPS}
    note: dict[str, Any] = {"eps": eps} if eps else {}
    if _CLASSES.get(type(model).__name__) is not type(model):
        return note
    options = {key: value for key, value in model.options.items() if key != "device" and _is_plain(value)}
    keys = {key: tensor.shape for key, tensor in model.state_dict().items()}
    for fused in (False, True):
        with torch.device("meta"):
            built = Recipe(type(model), options, None, fused).build().state_dict()
        if {key: tensor.shape for key, tensor in built.items()} == keys:
            return {**note, "model": type(model).__name__, "options": options, "fused": fused}
    return note  # it was changed after it was built


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _noted(contents: Contents) -> tuple[str, Recipe] | None:
    """What the file says of itself."""
    note = contents.note
    if "model" not in note:
        return None
    name, options = str(note["model"]), note.get("options")
    if name not in _CLASSES or not isinstance(options, dict):
        known = ", ".join(_CLASSES)
        raise CheckpointError(
            f"the file says that it holds a {name} with {options!r:.99}; known are options of {known}"
        )
    total = sum(tensor.numel() for tensor in contents.state_dict.values())
    for key, value in options.items():
        most = len(contents.state_dict) if key == "num_blocks" else total + 255  # img_range is no size
        if key == "device" or (isinstance(value, (int, float)) and value > most):
            raise CheckpointError(f"the file says {key}={value}, which does not belong to a network of {total} numbers")
    return name, Recipe(_CLASSES[name], options, None, bool(note.get("fused")))
