"""How good an enlarged image is, measured as the papers of the field do."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from bicubic_pytorch import imresize
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn


class Quality(NamedTuple):
    """PSNR in dB, and SSIM."""

    psnr_db: float
    ssim: float


def bicubic(image: np.ndarray, factor: float) -> np.ndarray:
    """Resizes (C, H, W) as MATLAB's imresize does: a = -0.5, antialiased, symmetric borders; uint8 stays uint8."""
    return imresize(torch.from_numpy(image)[None], scale=factor)[0].numpy()


def luma(rgb: np.ndarray) -> np.ndarray:
    """Y of BT.601, (1, H, W), 16 to 235 and not rounded, of RGB (3, H, W), uint8."""
    return rgb2ycbcr(rgb, channel_axis=0)[:1]


def modulo_crop(image: np.ndarray, scale: int) -> np.ndarray:
    """Cuts (C, H, W) at the bottom and at the right to multiples of the scale."""
    height, width = (size - size % scale for size in image.shape[1:])
    return image[:, :height, :width]


@torch.no_grad()
def enlarge(net: nn.Module, low: np.ndarray) -> np.ndarray:
    """Luma (1, H, W) of what a network in eval mode makes of RGB (3, h, w), uint8.

    RGB is rounded to 8 bit first, as in a file; the output of a luma network is not, as with the authors of ECBSR.
    """
    device = next(net.parameters()).device
    image = luma(low) if net.colors == 1 else low
    x = torch.from_numpy(image / 255).float().to(device)
    y = (net(x[None])[0].double() * 255).clamp(0, 255).cpu().numpy()
    return y if net.colors == 1 else luma(y.round().astype(np.uint8))


def quality(image: np.ndarray, original: np.ndarray, border: int) -> Quality:
    """PSNR and SSIM (Gaussian 11x11, sigma 1.5) of luma (1, H, W), 0 to 255, without `border` pixels all round."""
    height, width = original.shape[1:]
    image, original = (a[0, border : height - border, border : width - border] for a in (image, original))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return Quality(
        float(peak_signal_noise_ratio(original, image, data_range=255)),
        float(structural_similarity(original, image, data_range=255, **options)),
    )


def mean_quality(rows: list[Quality]) -> Quality:
    """The mean over images."""
    return Quality(*np.mean(rows, axis=0).tolist())
