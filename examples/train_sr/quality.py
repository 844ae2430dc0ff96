"""How good an enlarged image is, measured as the papers of the field do.

Of RGB that is made small and large again by `bicubic`, in 8 bit, this gives 33.68 dB / 0.9305 (x2), 30.40 / 0.8690 (x3)
and 28.43 / 0.8113 (x4) on Set5. The published 33.66 / 0.9299, 30.39 / 0.8682 and 28.42 / 0.8104 are of luma alone,
rounded before and after, but not between; the same functions give these too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from bicubic_pytorch import imresize
from skimage import metrics  # read when it is used: processes that make batches start sooner
from skimage.color import rgb2ycbcr

if TYPE_CHECKING:
    from reparam.sr import Network

Pair = tuple[np.ndarray, np.ndarray]
"""Low and high resolution, (C, h, w) and (C, scale * h, scale * w), uint8."""


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


def shrink(high: np.ndarray, scale: int) -> Pair:
    """An image (3, H, W), uint8, made small, and itself cut to multiples of the scale at the bottom and the right."""
    height, width = (size - size % scale for size in high.shape[1:])
    high = high[:, :height, :width]
    return bicubic(high, 1 / scale), high


@torch.no_grad()
def enlarge(net: Network, low: np.ndarray) -> np.ndarray:
    """Luma (1, H, W) of what a network in eval mode makes of RGB (3, h, w), uint8.

    RGB is rounded to 8 bit first, as in a file; the output of a luma network is not, as with the authors of ECBSR.
    """
    image = luma(low) if net.colors == 1 else low
    x = torch.from_numpy(image / 255).float().to(next(net.parameters()).device)
    y = (net(x[None])[0].double() * 255).clamp(0, 255).cpu().numpy()
    return y if net.colors == 1 else luma(y.round().astype(np.uint8))


def quality(image: np.ndarray, original: np.ndarray, border: int) -> Quality:
    """PSNR and SSIM (Gaussian 11x11, sigma 1.5) of luma (1, H, W), 0 to 255, without `border` pixels all round."""
    height, width = original.shape[1:]
    image, original = (y[0, border : height - border, border : width - border] for y in (image, original))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return Quality(
        float(metrics.peak_signal_noise_ratio(original, image, data_range=255)),
        float(metrics.structural_similarity(original, image, data_range=255, **options)),
    )


def mean_quality(rows: Sequence[Quality]) -> Quality:
    """The mean over images."""
    return Quality(*np.mean(rows, axis=0).tolist())


def validate(net: Network, pairs: Sequence[Pair]) -> Quality:
    """The mean quality of a network on RGB images; a border of as many pixels as the scale is left out."""
    return mean_quality([quality(enlarge(net, low), luma(high), net.scale) for low, high in pairs])
