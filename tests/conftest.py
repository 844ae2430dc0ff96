"""One thread, fixed seeds, and how many examples hypothesis draws (HYPOTHESIS_PROFILE=nightly or quick)."""

import os
from functools import wraps

import pytest
import torch
from hypothesis import settings

import reparam.models._net as net_module
from reparam import ConvSpec

settings.register_profile("default", max_examples=50, deadline=None, print_blob=True, derandomize=True)
settings.register_profile("quick", settings.get_profile("default"), max_examples=20)
settings.register_profile("nightly", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
torch.set_num_threads(1)

# Blocks start with biases of zero, and networks as their enlarged input. A test that compares untrained ones would miss
# a wrong bias, and a wrong kernel next to always. So in tests they start as torch's layers do, but where one asks for
# `as_users_get_it`.
zero_bias = ConvSpec.new_conv


@wraps(zero_bias)
def torch_bias(spec: ConvSpec) -> torch.nn.Module:
    before = torch.get_rng_state()
    conv = zero_bias(spec)
    torch.set_rng_state(before)
    conv.reset_parameters()
    return conv


ConvSpec.new_conv = torch_bias  # type: ignore[method-assign,assignment]
net_module.scale_start = wraps(net_module.scale_start)(lambda *_: None)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def as_users_get_it(monkeypatch):
    monkeypatch.setattr(ConvSpec, "new_conv", ConvSpec.new_conv.__wrapped__)
    monkeypatch.setattr(net_module, "scale_start", net_module.scale_start.__wrapped__)
