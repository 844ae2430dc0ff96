"""Use blocks in your own network and training loop: train, validate the fused network, freeze, fuse, check.

python examples/own_training_loop.py [--smoke]
"""

import argparse

import torch
import torch.nn.functional as F
from skimage import data
from torch import nn

from reparam import RepSRBlock, freeze_bn_stats, fuse, verify

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="run only a few steps")
steps = 20 if parser.parse_args().smoke else 600
torch.manual_seed(0)


class Denoiser(nn.Module):
    """Three convolutions. Building them as `RepSRBlock` instead of `nn.Conv2d` makes them re-parameterizable."""

    def __init__(self, conv=RepSRBlock, width=16):
        super().__init__()
        self.layers = nn.Sequential(conv(1, width, 3), nn.PReLU(), conv(width, width, 3), nn.PReLU(), conv(width, 1, 3))

    def forward(self, x):
        return x - self.layers(x)


def noisy(clean):
    return clean + 0.1 * torch.randn_like(clean)


def error_db(model):
    """PSNR on the lower half of the photo, which is not used for training."""
    with torch.no_grad():
        return -10 * torch.log10(F.mse_loss(model(noisy(photo[:, :, 256:])), photo[:, :, 256:])).item()


photo = torch.from_numpy(data.camera()).float()[None, None] / 255  # (1, 1, 512, 512)
net = Denoiser()
optimizer = torch.optim.Adam(net.parameters(), 2e-3)
for step in range(steps):
    if step == int(0.9 * steps):
        freeze_bn_stats(net)
    top, left = torch.randint(0, 192, ()), torch.randint(0, 448, ())
    clean = photo[:, :, top : top + 64, left : left + 64]
    loss = F.l1_loss(net(noisy(clean)), clean)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % (steps // 4) == 0:
        plain = fuse(net.eval())  # a copy, so validation costs one convolution per layer
        print(f"step {step:4d}: loss {loss.item():.4f}, fused {error_db(plain):.2f} dB on the held-out half")
        net.train()

plain = fuse(net)
report = verify(net, plain, photo)
print(report)
if not report.ok:
    raise SystemExit("the fused network differs from the trained one by more than rounding")
