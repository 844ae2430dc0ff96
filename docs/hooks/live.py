"""What the page live.md runs and shows: ONNX Runtime from npm, the networks, a photo, a still picture."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import reparam
from reparam.deploy import read_note
from reparam.sr._upscale import color

RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs with the files of the site: adds those that are made here."""
    from mkdocs.structure.files import File

    cache = Path(config.config_file_path).parent / ".cache" / "live"
    cache.mkdir(parents=True, exist_ok=True)
    made = [*runtime(Path(config.docs_dir) / "live", cache), *networks(cache), sample(cache), still(cache)]
    for path in made:
        files.append(File.generated(config, f"live/{path.name}", abs_src_path=str(path)))
    return files


def runtime(pinned: Path, cache: Path) -> list[Path]:
    """The files of ONNX Runtime Web, of the version in the folder `pinned`; npm is asked once for each version."""
    lock = pinned / "package-lock.json"
    files = [cache / "node_modules" / "onnxruntime-web" / "dist" / name for name in RUNTIME]
    installed = cache / lock.name
    if installed.exists() and installed.read_bytes() == lock.read_bytes() and all(file.exists() for file in files):
        return files
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            "the page live.md runs ONNX Runtime Web, which npm fetches, but there is no npm: install Node.js"
        )
    for name in ("package.json", lock.name):
        shutil.copy(pinned / name, cache)
    done = subprocess.run([npm, "ci", "--ignore-scripts", "--no-audit"], cwd=cache, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"npm could not install ONNX Runtime Web into {cache}: {done.stderr.strip()}")
    return files


@functools.cache
def networks(cache: Path) -> list[Path]:
    """The RGB networks that come with weights, and bicubic interpolation, as ONNX; and a list of the networks."""
    files, notes = [], []
    for name in reparam.list_models(pretrained=True):
        net = reparam.load_checkpoint(reparam.pretrained_file(name))
        if net.colors == 3:
            files += reparam.export(net, cache / f"{name}.onnx").files
            note = read_note(files[-1])
            notes.append({"name": name, "scale": int(note["scale"]), "radius": int(note["radius"])})
    for scale in {note["scale"] for note in notes}:
        example = torch.rand(1, 3, 8, 9)
        files += reparam.export(bicubic(scale), cache / f"bicubic_x{scale}.onnx", example=example).files
    listed = cache / "networks.json"
    listed.write_text(json.dumps(notes))
    return [*files, listed]


def bicubic(scale: int) -> nn.Module:
    """Bicubic interpolation, which at a whole scale is one convolution and a shuffle; the kernel is read off it."""
    impulse = torch.zeros(1, 1, 9, 9)
    impulse[0, 0, 4, 4] = 1
    response = color.bicubic(impulse, scale).reshape(9, scale, 9, scale)[2:7, :, 2:7]
    conv = nn.Conv2d(3, 3 * scale**2, 5, groups=3, bias=False)
    kernel = response.flip(0, 2).permute(1, 3, 0, 2).reshape(scale**2, 1, 5, 5)
    conv.weight = nn.Parameter(kernel.repeat(3, 1, 1, 1))
    return nn.Sequential(nn.ReplicationPad2d(2), conv, nn.PixelShuffle(scale)).eval()


def sample(cache: Path) -> Path:
    """A piece of a photo that scikit-image ships."""
    from PIL import Image
    from skimage import data

    file = cache / "chelsea.png"
    Image.fromarray(data.chelsea()[60:240, 130:370]).save(file)
    return file


def still(cache: Path) -> Path:
    """What the page does, before it does it: the left half by bicubic interpolation, the right half by a network."""
    from PIL import Image
    from skimage import data

    small = data.chelsea()[72:162, 120:240]
    x = torch.from_numpy(small.transpose(2, 0, 1)[None] / np.float32(255))
    cubic = (255 * color.bicubic(x, 4)[0].permute(1, 2, 0)).round().clamp(0, 255).byte().numpy()
    sharp = reparam.Upscaler("repsr_m6c32_x4", engine="torch")(small)
    middle = cubic.shape[1] // 2
    file = cache / "still.webp"
    Image.fromarray(np.hstack([cubic[:, :middle], sharp[:, middle:]])).save(file, quality=95)
    return file
