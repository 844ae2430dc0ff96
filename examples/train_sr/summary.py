"""Finished runs side by side: those that differ in their seed alone are one row."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from rich.table import Table

from reparam.errors import CheckpointError

_KEYS = ("model", "options", "steps", "batch", "patch", "lr", "warmup", "gain", "last_gain", "freeze_at")
"""Of the recipe: what is printed, where it is not the same in all runs."""


def summary(folders: Iterable[Path], form: str = "fused") -> Table:
    """Mean PSNR and SSIM of each recipe, and the range of PSNR over its seeds, in the order that the folders come."""
    scores = defaultdict(list)
    for folder in folders:
        result = _result(folder, form)
        recipe = {key: value for key, value in result["recipe"].items() if key != "seed"}
        scores[json.dumps(recipe, sort_keys=True)].append(result[form])
    recipes = [json.loads(text) for text in scores]
    shown = [key for key in _KEYS if key == "model" or len({str(recipe.get(key)) for recipe in recipes}) > 1]
    table = Table(*shown, "seeds", "PSNR (dB)", "range (dB)", "SSIM")
    for recipe, rows in zip(recipes, scores.values()):
        psnr, ssim = ([row[name] for row in rows] for name in ("psnr_db", "ssim"))
        spread = f"{min(psnr):.3f} to {max(psnr):.3f}" if len(psnr) > 1 else ""
        values = (str(len(rows)), f"{sum(psnr) / len(psnr):.3f}", spread, f"{sum(ssim) / len(ssim):.4f}")
        table.add_row(*(str(recipe.get(key)) for key in shown), *values)
    return table


def _result(folder: Path, form: str) -> dict:
    file = folder / "result.json"
    if not file.exists():
        raise FileNotFoundError(f"{folder} holds no finished run: there is no {file.name} in it")
    result = json.loads(file.read_text())
    if form not in result:
        raise CheckpointError(f"the run in {folder} was not scored: train with --val")
    return result
