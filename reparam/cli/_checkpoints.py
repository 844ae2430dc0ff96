"""The commands for files of weights: `reparam fuse`, `inspect`, `verify` and `models`."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SpecError
from ._shared import MOST_PIXELS, NETWORK, Act, Json, Network, Overwrite, Wrapper, load, told


class Keys(str, Enum):
    """Whose keys a fused file gets."""

    source = "source"
    reparam = "reparam"


def fuse(
    source: Annotated[str, typer.Argument(metavar="NETWORK", help=f"{NETWORK} Or any ONNX file.")],
    target: Annotated[Path, typer.Argument(help="File to write: .safetensors, .pth (torch) or .onnx.")],
    keys: Annotated[Keys, typer.Option(help="Whose keys to write: those of the file's own code, or reparam's.")] = (
        Keys.source
    ),
    wrapper: Wrapper = None,
    eps: Annotated[float | None, typer.Option(help="eps of the batch norms, if not torch's 1e-5.")] = None,
    identity: Annotated[
        bool | None,
        typer.Option(
            "--identity/--no-identity",
            help="Whether blocks add their input, if the keys do not say (ECBSR's with_idt).",
        ),
    ] = None,
    act: Act = None,
    with_13: Annotated[bool, typer.Option("--with-13", help="For EFDN: its blocks use their 1x1-3x3 path.")] = False,
    pool: Annotated[
        bool | None, typer.Option("--pool/--no-pool", help="Whether blocks have an average pool (V2 of QARepVGG).")
    ] = None,
    groups: Annotated[int | None, typer.Option(min=1, help="Number of channel groups, if the keys do not say.")] = None,
    dilations: Annotated[list[int] | None, typer.Option(help="Dilation of a small kernel; repeat for each.")] = None,
    img_range: Annotated[
        float | None, typer.Option(help="Range of the images that an ECBSR was trained on: 255 or 1.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fuse a checkpoint (of this library or of a paper's code) or an ONNX file, check every block, write the result."""
    from ..files import fuse_file
    from ..files._writing import check_targets
    from ..models._pretrained import network_file

    layout: Any = {"eps": eps, "identity": identity, "with_13": with_13, "pool": pool}
    layout |= {"groups": groups, "dilations": dilations or None}
    options = told(act) | ({} if img_range is None else {"img_range": img_range})
    if _is_onnx(source):
        of_others = {"wrapper": wrapper, "keys": keys if keys is Keys.reparam else None, **layout, **options}
        _fuse_onnx(source, target, of_others, overwrite, as_json)
        return
    file = network_file(source)
    check_targets([target], [file], overwrite)
    report = fuse_file(file, target, keys=keys.value, wrapper=wrapper, **layout, **options)
    typer.echo(json.dumps(asdict(report), indent=2) if as_json else f"{report}\nwritten: {target}")


def _is_onnx(source: str) -> bool:
    from ..files._kinds import ONNX, what_it_is

    path = Path(source)
    if path.suffix == ".onnx" or not path.is_file():
        return path.suffix == ".onnx"
    with path.open("rb") as file:
        return (what_it_is(path, file.read(512)) or "").startswith(ONNX)


def _fuse_onnx(source: str, target: Path, of_others: dict[str, Any], overwrite: bool, as_json: bool) -> None:
    from ..deploy import fuse_onnx
    from ..files._writing import check_targets

    if given := [name for name, value in of_others.items() if value]:
        raise SpecError(f"{source} is an ONNX file, which needs no options; leave out {', '.join(given)}")
    check_targets([target], [source], overwrite)
    report = fuse_onnx(source, target)
    typer.echo(json.dumps(asdict(report), indent=2) if as_json else f"{report}\nwritten: {target}")


def inspect(file: Network, wrapper: Wrapper = None, act: Act = None, as_json: Json = False) -> None:
    """Show what a checkpoint holds: network, blocks and sizes, and what prevents loading or fusing it."""
    from ..files import inspect_file
    from ..models._pretrained import network_file

    report = inspect_file(network_file(file), wrapper=wrapper, **told(act))
    typer.echo(json.dumps(asdict(report), indent=2) if as_json else str(report))


def verify(
    source: Network,
    wrapper: Wrapper = None,
    act: Act = None,
    size: Annotated[
        int, typer.Option(min=1, max=MOST_PIXELS, help="Height and width of the test image, in pixels.")
    ] = 64,
    as_json: Json = False,
) -> None:
    """Compare a checkpoint's network with its fused form, block by block. The exit code is 1 if they differ."""
    import torch

    from .. import fusing

    net = load(source, wrapper, act)
    image = torch.rand(1, net.colors, size, size, generator=torch.Generator().manual_seed(0))
    report = fusing.verify(net, fusing.fuse(net), image)
    typer.echo(json.dumps({"ok": report.ok, **asdict(report)}, indent=2) if as_json else str(report))
    if not report.ok:
        raise typer.Exit(1)


def models(
    pattern: Annotated[str, typer.Argument(help="Shell pattern of names, such as 'repsr_*_x2'.")] = "*",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="List only networks that have weights.")] = False,
    as_json: Json = False,
) -> None:
    """List the names of networks, and mark those that come with weights."""
    from ..models import list_models

    with_weights = set(list_models(pretrained=True))
    names = list_models(pattern, pretrained=pretrained)
    if not names:
        raise SpecError(f"no name matches {pattern!r}; there are {', '.join(list_models(pretrained=pretrained))}")
    if as_json:
        typer.echo(json.dumps([{"name": name, "pretrained": name in with_weights} for name in names], indent=2))
        return
    for name in names:
        typer.echo(f"{name}  (weights)" if name in with_weights else name)
