"""PSNR: how close an image is to another one."""

from __future__ import annotations

from math import inf, log10

import numpy as np


def psnr_db(image: np.ndarray, original: np.ndarray, peak: float = 1.0) -> float:
    """10 log10(peak² / mean squared difference), in dB; infinite for equal images."""
    error = float(np.square(image - original, dtype=np.float64).mean()) / peak**2
    return -10 * log10(error) if error else inf
