"""Runs a WGSL module in WebGPU, with the package wgpu."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ExportError
from .._runners import Run
from .wgsl import WORKGROUP


@cache
def _adapter() -> Any:
    import wgpu

    return wgpu.gpu.request_adapter_sync()


def webgpu() -> tuple[str, str]:
    """The program that can run a WGSL module here and "", or "" and the reason why none can.

    Example:
        >>> name, reason = webgpu()
        >>> bool(name) != bool(reason)
        True
    """
    if find_spec("wgpu") is None:
        return "", "there is no package wgpu: pip install 'reparam[webgpu]'"
    try:
        return f"wgpu ({_adapter().info['device']})", ""
    except Exception as problem:  # of any kind
        return "", f"wgpu finds no graphics card, nor a driver such as Debian's mesa-vulkan-drivers: {problem}"


def run_webgpu(file: Path) -> Run:
    """Run a file of `write_wgsl` on images from 0 to 1.

    Raises:
        ExportError: if the file has no plan.
    """
    text = file.read_text()
    plan = re.search(r"^// plan: (.*)$", text, re.MULTILINE)
    if plan is None:
        raise ExportError(f"{file.name} does not say its plan; shaders that `export` wrote do")
    machine = _Machine(_adapter().request_device_sync(), text, json.loads(plan[1]))
    return lambda x: np.stack([machine.run(image) for image in x])


class _Machine:
    def __init__(self, device: Any, text: str, plan: list[dict[str, Any]]) -> None:
        self._device, self._plan = device, plan
        module = device.create_shader_module(code=text)
        self._pipelines = [
            device.create_compute_pipeline(layout="auto", compute={"module": module, "entry_point": one["entry"]})
            for one in plan
        ]

    def run(self, image: np.ndarray) -> np.ndarray:
        """The output for one image (C, H, W)."""
        import wgpu

        colors, height, width = image.shape
        pixels = np.ones((height, width, 4), np.float32)
        pixels[..., :colors] = image.transpose(1, 2, 0)
        usage = wgpu.TextureUsage
        textures = {0: self._texture(pixels.shape[:2], 1, "rgba32float", usage.TEXTURE_BINDING | usage.COPY_DST)}
        layout = {"bytes_per_row": 16 * width, "rows_per_image": height}
        self._device.queue.write_texture({"texture": textures[0]}, pixels, layout, (width, height, 1))
        encoder = self._device.create_command_encoder()
        for one, pipeline in zip(self._plan, self._pipelines):
            size = height * one["scale"], width * one["scale"]
            uses = usage.TEXTURE_BINDING | usage.STORAGE_BINDING | usage.COPY_SRC
            textures[one["writes"]] = self._texture(size, one["layers"], "rgba16float", uses)
            self._sweep(encoder, pipeline, one, textures, (width, height))
        self._device.queue.submit([encoder.finish()])
        return self._fetched(textures[self._plan[-1]["writes"]])[..., :colors].transpose(2, 0, 1)

    def _texture(self, size: tuple[int, ...], layers: int, format: str, usage: int) -> Any:
        return self._device.create_texture(size=(size[1], size[0], layers), format=format, usage=usage)

    def _sweep(
        self, encoder: Any, pipeline: Any, one: dict[str, Any], textures: dict[int, Any], size: tuple[int, int]
    ) -> None:
        """Run one pass."""
        sweep = encoder.begin_compute_pass()
        sweep.set_pipeline(pipeline)
        last = one is self._plan[-1]
        for group, numbers in enumerate((one["reads"], [one["writes"]])):
            flat = [number == 0 or (last and group == 1) for number in numbers]
            entries = [
                {
                    "binding": number,
                    "resource": textures[number].create_view(dimension="2d" if is_flat else "2d-array"),
                }
                for number, is_flat in zip(numbers, flat)
            ]
            layout = pipeline.get_bind_group_layout(group)
            sweep.set_bind_group(group, self._device.create_bind_group(layout=layout, entries=entries))
        groups = (-(-side * one["threads"] // WORKGROUP) for side in size)
        sweep.dispatch_workgroups(*groups)
        sweep.end()

    def _fetched(self, texture: Any) -> np.ndarray:
        width, height, _ = texture.size
        row = -(-8 * width // 256) * 256  # bytes; WebGPU requires a multiple of 256
        layout = {"bytes_per_row": row, "rows_per_image": height}
        found = self._device.queue.read_texture({"texture": texture}, layout, (width, height, 1))
        return np.frombuffer(found, np.float16).reshape(height, row // 8, 4)[:, :width].astype(np.float32)
