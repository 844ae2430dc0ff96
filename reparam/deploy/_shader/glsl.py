"""Writes passes as a user shader: GLSL with the headers that mpv and libplacebo read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .arithmetic import Language, Value
from .kinds import lines_of
from .passes import Pass, Stored

GLSL = Language(constant="vec4 {} = {};", variable="vec4 {} = {};", pair="ivec2")

WORKGROUP = 8
"""Threads of a workgroup, in each direction."""
LARGER = 1.2
"""How much the player must enlarge the picture for an enlarging shader to run."""


def glsl(passes: tuple[Pass, ...], name: str, metadata: Mapping[str, str]) -> str:
    """The text of a user shader: a compute shader for each pass.

    Args:
        passes: the passes of a network with 1 color, which hooks LUMA, or 3, which hooks MAIN.
        name: the name of the network, for the player's list of passes.
        metadata: written at the top, as comments.
    """
    notes = [f"// {key}: {value.replace('//!', '//')}" for key, value in metadata.items()]  # "//!" would begin a header
    blocks = ["\n".join(_block(one, passes, name)) for one in passes]
    return "\n\n".join(["\n".join(notes), *blocks]) + "\n"


def texture(number: int) -> str:
    """The name of the texture that a pass writes."""
    return f"REPARAM_{number}"


def _block(one: Pass, passes: tuple[Pass, ...], name: str) -> Iterator[str]:
    last = one is passes[-1]
    (output,) = passes[-1].writes.values()
    columns, rows = grid = (output.parts, output.parts) if last else one.grid
    written = _pair((columns * one.scale, rows * one.scale))
    yield from _headers(one, passes, name, output)
    yield ""
    yield from (_read(value, stored, passes, written) for value, stored in one.reads.items())
    yield from ("void hook() {", "ivec2 p = ivec2(gl_GlobalInvocationID.xy);")
    yield f"ivec2 size = imageSize(out_image) / {_pair(grid)};"
    yield "if (any(greaterThanEqual(p, size))) return;"
    lines = lines_of(one, GLSL)
    values = [lines.value(value) for value in one.writes]
    yield from lines.text
    yield from _shown(values[0], output) if last else _kept(values, grid)
    yield "}"


def _headers(one: Pass, passes: tuple[Pass, ...], name: str, output: Stored) -> Iterator[str]:
    last = one is passes[-1]
    columns, rows = (output.parts, output.parts) if last else one.grid
    layers = dict.fromkeys(step.layer for step in one.steps if step.layer)
    yield f"//!HOOK {'LUMA' if output.channels == 1 else 'MAIN'}"
    yield f"//!DESC {name} {one.number}/{len(passes)}{': ' if layers else ''}{', '.join(layers)}"
    yield "//!BIND HOOKED"
    yield from (f"//!BIND {texture(number)}" for number in one.textures)
    if not last:
        yield f"//!SAVE {texture(one.number)}"
        yield "//!COMPONENTS 4"
    yield f"//!WIDTH HOOKED.w {columns * one.scale} *"
    yield f"//!HEIGHT HOOKED.h {rows * one.scale} *"
    if output.scale > 1:
        yield f"//!WHEN OUTPUT.w HOOKED.w {LARGER} * > OUTPUT.h HOOKED.h {LARGER} * > *"
    yield f"//!COMPUTE {columns * WORKGROUP} {rows * WORKGROUP} {WORKGROUP} {WORKGROUP}"


def _read(name: str, stored: Stored, passes: tuple[Pass, ...], written: str) -> str:
    """The function that reads a value, given a pixel and a group, and returns zeros outside the image.

    It has no branch, because drivers take twice as long to compile one.
    """
    if stored.writer:
        grid, raw = _pair(passes[stored.writer - 1].grid), f"{texture(stored.writer)}_raw"
        parts, columns = stored.parts, passes[stored.writer - 1].grid[0]
        size = f"textureSize({raw}, 0) / {grid} * {parts}"
        within = f"(q.y % {parts} * {parts} + q.x % {parts}) * {stored.groups} + " if parts > 1 else ""
        texel = f"int texel = {stored.first} + {within}group;\n"
        found = f"texelFetch({raw}, q / {parts} * {grid} + ivec2(texel % {columns}, texel / {columns}), 0)"
    else:  # the player knows its orientation and the factor of its values
        size, texel = f"imageSize(out_image) / {written}", ""
        # HOOKED_map is from a texel of what this pass writes, and not from one of the image.
        found = f"HOOKED_tex(HOOKED_map((vec2(q) + 0.5) * vec2({written}) - 0.5))"
    return (
        f"vec4 at_{name}(ivec2 wanted, int group) {{\n"
        f"ivec2 q = clamp(wanted, ivec2(0), {size} - 1);\n"
        f"{texel}return float(all(equal(q, wanted))) * {found};\n"
        "}"
    )


def _pair(numbers: tuple[int, int]) -> str:
    return f"ivec2({numbers[0]}, {numbers[1]})"


def _kept(values: list[Value], grid: tuple[int, int]) -> Iterator[str]:
    texels = (group for value in values for pixel in value for group in pixel)
    for index, numbers in enumerate(texels):
        place = f"p * {_pair(grid)} + {_pair((index % grid[0], index // grid[0]))}"
        yield f"imageStore(out_image, {place}, {numbers});"


def _shown(value: Value, output: Stored) -> Iterator[str]:
    """The output of the network."""
    for index, (numbers, *_) in enumerate(value):
        place = f"p * {output.parts} + {_pair((index % output.parts, index // output.parts))}"
        color = f"{numbers}.x, 0.0, 0.0, 1.0" if output.channels == 1 else f"{numbers}.xyz, 1.0"
        yield f"imageStore(out_image, {place}, vec4({color}));"
