"""The commands that work on images: `reparam demo` and `reparam upscale`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .._tables import table
from ._shared import NETWORK, Act, Json, Overwrite, Threads, Tile, Wrapper, bar, load, refuse_told


def demo(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the weights and the picture.")] = Path(
        "reparam-demo"
    ),
    steps: Annotated[int, typer.Option(min=10, help="Training steps.")] = 1200,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed for weights and patches.")] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a small RepSR on scikit-image's photos, freeze its batch norms, fuse it, check it, and draw the result."""
    from ..files._writing import check_targets

    try:
        from ..sr._demo import files_in, run_demo  # needs the packages of the extra
    except ModuleNotFoundError as error:
        typer.echo(f"the demo needs the package {error.name!r}: pip install 'reparam[demo]'", err=True)
        raise typer.Exit(1) from None
    out.mkdir(parents=True, exist_ok=True)
    check_targets(files_in(out), (), overwrite)
    result = run_demo(out, steps, seed)
    if as_json:
        typer.echo(json.dumps(asdict(result), indent=2, default=str))
        return
    total = result.report.total
    rows: list[tuple[str | None, ...]] = [
        (f"PSNR on {name}, held out (dB)", *(f"{score:.2f}" for score in scores.values()))
        for name, scores in result.psnr_db.items()
    ]
    rows += [
        ("parameters", None, *(f"{count:,}" for count in result.parameters)),
        ("training step, batch statistics (ms)", None, *(f"{ms:.1f}" for ms in result.batch_step_ms)),
        ("training step, frozen (ms)", None, *(f"{ms:.1f}" for ms in result.frozen_step_ms)),
        ("inference, 256x256 (ms)", None, *(f"{ms:.1f}" for ms in result.inference_ms)),
        ("max |fused - train graph|", None, None, f"{total.max_abs:.1e}"),
        ("rounding alone, float32", None, None, f"{total.noise_floor:.1e}"),
    ]
    title = "RepSR-M4C16 x2 after training on scikit-image's photos"
    typer.echo(f"{title}\n\n{table({'': '', 'bicubic': '>', 'train graph': '>', 'fused': '>'}, rows)}\n")
    typer.echo(f"fused weights: {result.weights}\npicture:       {result.picture}")


def upscale(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of images.")],
    out: Annotated[Path, typer.Option("--out", "-o", file_okay=False, help="Folder for the results.")],
    model: Annotated[
        str, typer.Option(metavar="NETWORK", help=f"{NETWORK} Or a file that `reparam export` or `quantize` wrote.")
    ] = "repsr_m4c16_x2",
    wrapper: Wrapper = None,
    act: Act = None,
    engine: Annotated[
        str,
        typer.Option(
            help="What runs the network: auto (the fastest), torch, torch-compile, onnxruntime, openvino, "
            "openvino-bf16, ncnn, litert or executorch."
        ),
    ] = "auto",
    tile: Tile = 256,
    threads: Threads = 0,
    edges: Annotated[str, typer.Option(help="Borders of images: pad, or wrap for textures that repeat.")] = "pad",
    scale: Annotated[int | None, typer.Option(min=1, help="Scale of another program's file; else measured.")] = None,
    colors: Annotated[int | None, typer.Option(help="Its colors, 1 (luma) or 3 (RGB); else measured.")] = None,
    suffix: Annotated[str, typer.Option(help="Format of the results, such as .png; else that of the source.")] = "",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Include folders inside folders.")] = False,
    skip: Annotated[bool, typer.Option("--skip", help="Skip images whose result exists already.")] = False,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse images with more pixels than this.")] = 1_000_000_000,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Enlarge images with a network: photo.png becomes photo_x2.png in the folder --out."""
    from .. import sr
    from ..deploy import FILE_ENGINES
    from ..sr._upscale.reader import file_reader

    file_reader()
    from ..sr._upscale.batch import plan, upscale_files  # its packages are installed, as checked above

    graph = Path(model).suffix in FILE_ENGINES
    if graph:
        refuse_told(model, "is an exported network, which needs no options", wrapper, act)
    net = model if graph else load(model, wrapper, act, fused=True)
    upscaler = sr.Upscaler(net, engine=engine, tile=tile, threads=threads, edges=edges, scale=scale, colors=colors)  # type: ignore[arg-type]  # which it checks
    todo = plan(images, out, upscaler.scale, suffix, overwrite=overwrite, skip=skip, recursive=recursive)
    failed = todo.failed
    for source, why in failed.items():
        typer.echo(f"error: {source}: {why}", err=True)
    with bar(upscaler.engine, len(todo.targets)) as advance:
        for source, why in upscale_files(upscaler, todo.targets, max_pixels):
            failed |= {source: why} if why else {}
            if why or not as_json:
                typer.echo(f"error: {source}: {why}" if why else f"{source} -> {todo.targets[source]}", err=bool(why))
            advance()
    if as_json:
        every = {**todo.targets, **dict.fromkeys(failed)}
        files = [
            {"source": str(source), "target": target and str(target), "error": failed.get(source)}
            for source, target in sorted(every.items())
        ]
        counts = {"there": len(todo.there), "passed_over": len(todo.passed)}
        typer.echo(json.dumps({"engine": upscaler.engine, "scale": upscaler.scale, "files": files, **counts}, indent=2))
    else:
        counts = {"failed": len(failed), "there already": len(todo.there), "passed over (not images)": len(todo.passed)}
        done = len(todo.targets.keys() - failed)
        if told := [f"{count} {what}" for what, count in counts.items() if count]:
            typer.echo(", ".join([f"{done} enlarged", *told]), err=True)
    if failed:
        raise typer.Exit(1)
