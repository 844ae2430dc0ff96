"""Writes passes as WGSL, the language of WebGPU: a module with an entry point for each pass."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from .arithmetic import Language
from .kinds import lines_of
from .passes import Pass, Stored

WGSL = Language(constant="let {} = {};", variable="var {} = {};", pair="vec2i")

WORKGROUP = 8
"""Threads of a workgroup, in each direction."""


def wgsl(passes: tuple[Pass, ...], metadata: Mapping[str, str]) -> str:
    """The text of a module, with a plan at the top that says what to run.

    The plan lists the passes in order. Each has its entry point; `reads` and `writes`, the numbers of textures, which
    are also their bindings (in group 0 for reading, in group 1 for writing); `scale`, how much larger than the image
    the written texture is; `layers`, its array layers; and `threads`, per pixel of the image in each direction. Texture
    0 is the image, and all others are rgba16float. The last one, without layers, is the output of the network.

    Args:
        passes: the passes of a network with 1 or 3 colors, which are the first channels of the image.
        metadata: written at the top, as comments.
    """
    notes = [f"// {key}: {value}" for key, value in {**metadata, "plan": json.dumps(_plan(passes))}.items()]
    values = {name: stored for one in passes for name, stored in one.reads.items()}
    parts = ["\n".join(notes), "\n".join(_bindings(passes))]
    parts += [_read(name, stored) for name, stored in values.items()]
    parts += ["\n".join(_entry(one, last=one is passes[-1])) for one in passes]
    return "\n\n".join(parts) + "\n"


def _plan(passes: tuple[Pass, ...]) -> list[dict[str, object]]:
    plan = []
    for one in passes:
        last = one is passes[-1]
        (output, *_) = one.writes.values()
        reads = sorted({stored.writer for stored in one.reads.values()})
        plan.append(
            {
                "entry": f"pass_{one.number}",
                "reads": reads,
                "writes": one.number,
                "scale": output.scale if last else one.scale,
                "layers": 1 if last else one.texels,
                "threads": one.scale,
            }
        )
    return plan


def _bindings(passes: tuple[Pass, ...]) -> Iterator[str]:
    yield "@group(0) @binding(0) var texture_0: texture_2d<f32>;"
    for one in passes[:-1]:
        yield f"@group(0) @binding({one.number}) var texture_{one.number}: texture_2d_array<f32>;"
    for one in passes:
        array = "" if one is passes[-1] else "_array"
        kind = f"texture_storage_2d{array}<rgba16float, write>"
        yield f"@group(1) @binding({one.number}) var written_{one.number}: {kind};"


def _read(name: str, stored: Stored) -> str:
    """The function that reads a value, given a pixel and a group, and returns zeros outside the image."""
    texture, parts = f"texture_{stored.writer}", stored.parts
    layer = (
        f"{stored.first} + (q.y % {parts} * {parts} + q.x % {parts}) * {stored.groups} + group, "
        if stored.writer
        else ""
    )
    return (
        f"fn at_{name}(wanted: vec2i, group: i32) -> vec4f {{\n"
        f"let q = clamp(wanted, vec2i(0), vec2i(textureDimensions({texture})) * {parts} - 1);\n"
        f"return select(vec4f(0.0), textureLoad({texture}, q / {parts}, {layer}0), all(q == wanted));\n"
        "}"
    )


def _entry(one: Pass, last: bool) -> Iterator[str]:
    (output, *_) = one.writes.values()
    written = f"written_{one.number}"
    yield f"@compute @workgroup_size({WORKGROUP}, {WORKGROUP})"
    yield f"fn pass_{one.number}(@builtin(global_invocation_id) thread: vec3u) {{"
    yield "let p = vec2i(thread.xy);"
    yield f"let size = vec2i(textureDimensions({written})) / {output.parts if last else 1};"
    yield "if (any(p >= size)) { return; }"
    lines = lines_of(one, WGSL)
    values = [lines.value(value) for value in one.writes]
    yield from lines.text
    texels = [group for value in values for pixel in value for group in pixel]
    for index, numbers in enumerate(texels):
        if last:
            parts = output.parts
            color = (
                f"vec4({', '.join([f'{numbers}.x'] * 3)}, 1.0)" if output.channels == 1 else f"vec4({numbers}.xyz, 1.0)"
            )
            yield f"textureStore({written}, p * {parts} + vec2i({index % parts}, {index // parts}), {color});"
        else:
            yield f"textureStore({written}, p, {index}, {numbers});"
    yield "}"
