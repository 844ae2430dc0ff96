"""Imported, it lets layers start as torch's do, in the processes of the tests.

Blocks start with biases of zero, and networks as their enlarged input. A test that compares untrained ones would miss a
wrong bias, and a wrong kernel next to always. Tests of the start itself use the fixture `as_users_get_it`.
"""

import pytest
import torch
from torch import nn

import reparam.models._net as net_module
from reparam import ConvSpec

_new_conv, _scale_start = ConvSpec.new_conv, net_module.scale_start


def _torch_bias(spec: ConvSpec) -> nn.Module:
    before = torch.get_rng_state()
    conv = _new_conv(spec)
    torch.set_rng_state(before)
    conv.reset_parameters()
    return conv


ConvSpec.new_conv = _torch_bias  # type: ignore[method-assign,assignment]
net_module.scale_start = lambda *_: None


def as_users_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo it."""
    monkeypatch.setattr(ConvSpec, "new_conv", _new_conv)
    monkeypatch.setattr(net_module, "scale_start", _scale_start)
