"""From a file to a network, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ..bn._norm import norms
from ..branches import Branch
from ..errors import CheckpointError, check_model
from ..fusing._fuse import unwrap
from ..models import ECBSR, EDSR, SESR, CollapsibleSR, PlainSR, QARepVGGSR, RepSR, RepVGGSR
from ..models._net import SRNet
from ..models._registry import Network
from ..modules._shards import why_not_whole
from ._finder import Contents, read_file
from ._fits import in_our_names
from ._found_blocks import looked_for
from ._networks import LAYOUTS, Blueprint, recognise
from ._state_dict import refuse_unsound
from ._tensor_files import write_file

_NETWORKS = (PlainSR, RepSR, ECBSR, RepVGGSR, QARepVGGSR, CollapsibleSR, SESR, EDSR)
_CLASSES: dict[str, type[Network]] = {network.__name__: network for network in _NETWORKS}
_USUAL_EPS = nn.BatchNorm2d(1).eps

Path = str | os.PathLike[str]


def load_checkpoint(path: Path, *, wrapper: str | None = None, **options: Any) -> Network:
    """Build the network whose weights a file holds, and load them.

    The keys identify the layout, and the shapes give the sizes. Masks and value ranges are read from the file. These
    layouts are known:

    - files written by `save_checkpoint`
    - ECBSR (the authors' code and BasicSR)
    - RepSR in JL-DY's code
    - SRVGGNetCompact
    - SESR, with tensors in torch's layout
    - EDSR (BasicSR's and the authors' keys)
    - the output of `fuse_state_dict` for any of these

    Nothing in a file is executed. Prefixes that DDP and torch.compile add to the keys are removed.

    Args:
        path: a `.safetensors` file, or a file written by `torch.save`.
        wrapper: where in a torch file the state dict is: a key, several keys joined by dots (`"state_dict.net_g"`), or
            a prefix of the state dict's own keys. None searches the whole file for a known network. If there are
            several, it prefers an EMA, then the generator, then the one under `params`, `state_dict` or `model`.
        **options: arguments of the network's class that the layout leaves open. They replace the defaults: `act` if
            the file has no PReLU slopes, `identity=None` for an ECBSR trained with `with_idt`, `res_scale` and
            `img_range` of EDSR. For all other networks `img_range` is the range of the images that the file was
            trained on, 1 or 255; the loaded network always works on 0 to 1. ECBSR needs it, because its authors train
            on 0 to 255 and BasicSR on 0 to 1, with the same keys.

    Returns:
        The network in eval mode, on the CPU, in the dtype of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged or holds code; if it holds no state dict of a known layout, or several
            and no name says which one is meant; if a tensor has values that are not finite, or a variance below zero
            (the message names it). If the layout is known but does not fit, the message has the first key that differs
            and both shapes.

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
        refuse_unsound(contents.state_dict)
        return network_of(contents, **options)
    except CheckpointError as error:
        raise CheckpointError(f"cannot load {os.fspath(path)}: {error}{contents.beside}") from error


def network_of(contents: Contents, **options: Any) -> Network:
    """The network of a file that has been read; see `load_checkpoint`."""
    tensors = contents.state_dict
    known = blueprint_of(contents)
    if known is None:
        kinds = ", ".join(dict.fromkeys(f"{layout.name} ({layout.marks[0]})" for layout in LAYOUTS))
        raise CheckpointError(f"no known network; looked for {kinds}. {looked_for(tensors)}")
    name, blueprint = known
    img_range = options.pop("img_range", None) if issubclass(blueprint.network, SRNet) else None
    _check_told(name, blueprint, options)
    blueprint = blueprint._replace(options={**blueprint.options, **options})
    try:
        ours = in_our_names(blueprint, tensors)
        net = blueprint.build()
        for place, bn in norms(net):
            bn.eps = _eps(contents.note.get("eps", {}).get(place, bn.eps))
        net.to(reduce(torch.promote_types, (tensor.dtype for tensor in ours.values() if tensor.is_floating_point())))
        net.load_state_dict(ours if img_range is None else _of_range_one(ours, net, float(img_range)))
    except Exception as error:  # options that anyone may have written run torch into anything
        raise CheckpointError(f"looks like {name} ({_listed(blueprint)}), but does not fit: {error}") from error
    if blueprint.asks_range and img_range is None:
        raise CheckpointError(
            f"looks like {name} ({_listed(blueprint)}), but the keys do not say the range of its images: pass "
            "img_range=255 for a file of the authors' code, which trains on 0 to 255, or img_range=1 for BasicSR's "
            "(to write a file that records it: reparam fuse SOURCE TARGET --keys reparam --img-range 255)"
        )
    return net.eval()


def _listed(blueprint: Blueprint) -> str:
    return ", ".join(f"{key}={value}" for key, value in blueprint.options.items())


def _check_told(name: str, blueprint: Blueprint, options: Mapping[str, Any]) -> None:
    """Refuse to guess what neither the keys nor the file's note say."""
    start = f"looks like {name} ({_listed(blueprint)}), but"
    if issubclass(blueprint.network, SRNet) and not {"act"} & {*blueprint.options, *options}:
        raise CheckpointError(
            f"{start} the file has no PReLU slopes, and the keys do not say which other "
            "activation it uses: pass act='relu', 'leakyrelu', 'softplus' or 'linear'"
        )
    colors = blueprint.options.get("colors", 3)
    if name not in _CLASSES and colors not in (1, 3) and "colors" not in options:
        raise CheckpointError(
            f"{start} its first convolution takes {colors} channels, and an image has 1 or 3: its code may unshuffle "
            f"pixels first, which no network here does and no key shows; pass colors={colors} if it does not"
        )


def _of_range_one(ours: Mapping[str, Tensor], net: nn.Module, img_range: float) -> dict[str, Tensor]:
    """The weights of f(255 x) / 255. The activations only pass the factor on, so it is enough to divide the offsets."""
    if not img_range > 0:
        raise CheckpointError(f"img_range must be a positive number, but got {img_range}")
    if img_range != 1 and any(isinstance(module, nn.Softplus) for module in net.modules()):
        raise CheckpointError(
            f"a network with Softplus cannot be converted from another range to 0 to 1, but got img_range={img_range}"
        )
    offsets = ("bias", "running_mean")
    return {key: (t.double() / img_range).to(t.dtype) if key.endswith(offsets) else t for key, t in ours.items()}


def _eps(value: Any) -> float:
    if not float(value) >= 0:
        raise CheckpointError(f"the file says that a batch norm has eps={value}, which must not be negative")
    return float(value)


def blueprint_of(contents: Contents) -> tuple[str, Blueprint] | None:
    """What to build for a file, by its note or by its keys; None if neither says."""
    return _noted(contents) or recognise(contents.state_dict)


def save_checkpoint(model: nn.Module, path: Path, *, wrapper: str | None = None) -> None:
    """Write the weights of a model to a file. An existing file is replaced in one step at the end, or not at all.

    For a network of this library the file also gets a note: its class and arguments, and the eps of batch norms that
    differ from torch's default. With the note, `load_checkpoint` needs no options. A safetensors file has room for it,
    and so has a torch file with a wrapper. A fused network of the family `SRNet` has the keys of SRVGGNetCompact, and
    loads in every program that loads SRVGGNetCompact.

    Args:
        model: any module; wrappers (DDP, `torch.compile`, `AveragedModel`) are removed.
        path: a name that ends in `.safetensors`; any other name is written with `torch.save`.
        wrapper: the key under which a torch file holds the state dict, such as "params" for BasicSR.

    Raises:
        CheckpointError: if a safetensors file is given a wrapper; if an extra state is not a tensor; if a torch file
            without a wrapper would be loaded as another network; or if writing fails.
        FileNotFoundError: if the directory does not exist.
    """
    write_network(model, path, (wrapper,) if wrapper else ())


def write_network(model: nn.Module, path: Path, keys: Sequence[str]) -> None:
    """`save_checkpoint` under several keys, each inside the one before."""
    check_model(model)
    if why := why_not_whole(model):
        raise CheckpointError(f"cannot write {os.fspath(path)}: {why}")
    model = unwrap(model)
    tensors, note = model.state_dict(), _note(model)
    if extra := [key for key, value in tensors.items() if not isinstance(value, torch.Tensor)]:
        raise CheckpointError(
            f"cannot write {os.fspath(path)}: {', '.join(extra)} of {type(model).__name__} (get_extra_state) holds a "
            f"{type(tensors[extra[0]]).__name__}, and a file of weights holds only tensors; save it in another file"
        )
    if not keys and not os.fspath(path).endswith(".safetensors"):
        _check_bare(model, note)
    write_file(tensors, path, keys=keys, note=note)


def _check_bare(model: Any, note: Mapping[str, Any]) -> None:
    """Refuse to write a file without a note that `load_checkpoint` would take for another network."""
    lost = [f"eps={eps} of {name}" for name, eps in note.get("eps", {}).items()]
    known = recognise(model.state_dict()) if "model" in note else None
    if known:
        blueprint = known[1]
        told = {"act": model.options["act"]} if issubclass(blueprint.network, SRNet) else {}
        with torch.device("meta"):
            again = blueprint._replace(options={**blueprint.options, **told}).build()
        matters = PlainSR().options if note["fused"] else model.options  # not what the blocks were made of
        for key, value in ((key, value) for key, value in model.options.items() if key in matters):
            if json.dumps(again.options.get(key, value), default=str) != json.dumps(value, default=str):
                lost.append(f"{key}={value!r}")
        if not note["fused"] and not lost and _branches(again) != _branches(model):
            lost.append(f"the branches of {model.options}")
    if lost:
        raise CheckpointError(
            f"a torch file without a wrapper has no room for {', '.join(lost[:3])}, and without that load_checkpoint "
            "would build another network; write a .safetensors file, or pass a wrapper such as wrapper='params'"
        )


def _branches(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules() if isinstance(module, Branch)]


def check_target(plain: nn.Module) -> None:
    """Refuse a network that other readers of SRVGGNetCompact's keys would run differently.

    Raises:
        CheckpointError: if it enlarges its input in another way than they do.
    """
    if isinstance(plain, SRNet) and plain.base != "nearest":
        raise CheckpointError(
            f"keys='reparam' are those of SRVGGNetCompact, whose readers add the input enlarged by nearest neighbor, "
            f"but this network has base={plain.base!r}; use keys='source'"
        )


def _note(model: nn.Module) -> dict[str, Any]:
    """What a state dict does not say: class and arguments of our network, if they describe it, and unusual eps."""
    eps = {name: bn.eps for name, bn in norms(model) if bn.eps != _USUAL_EPS}
    note: dict[str, Any] = {"eps": eps} if eps else {}
    if _CLASSES.get(type(model).__name__) is not type(model):
        return note
    options = {key: value for key, value in model.options.items() if key != "device" and _is_plain(value)}
    keys = {key: tensor.shape for key, tensor in model.state_dict().items()}
    for fused in (False, True):
        with torch.device("meta"):
            built = Blueprint(type(model), options, None, fused).build().state_dict()
        if {key: tensor.shape for key, tensor in built.items()} == keys:
            return {**note, "model": type(model).__name__, "options": options, "fused": fused}
    return note  # it was changed after it was built


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _noted(contents: Contents) -> tuple[str, Blueprint] | None:
    """What to build by the file's note; None if it has none."""
    note = contents.note
    if "model" not in note:
        return None
    name, options = str(note["model"]), note.get("options")
    if name not in _CLASSES or not isinstance(options, dict):
        known = ", ".join(_CLASSES)
        raise CheckpointError(
            f"the file says that it holds a {name} with {options!r:.99}; expected a dict of options, for one of {known}"
        )
    total = sum(tensor.numel() for tensor in contents.state_dict.values())
    for key, value in options.items():
        most = len(contents.state_dict) if key == "num_blocks" else total + 255  # img_range is no size
        if key == "device" or (isinstance(value, (int, float)) and value > most):
            raise CheckpointError(f"the file says {key}={value}, which does not fit a network of {total} values")
    return name, Blueprint(_CLASSES[name], options, None, bool(note.get("fused")))
