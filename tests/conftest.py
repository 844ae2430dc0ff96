"""One thread, fixed seeds, and how many examples hypothesis draws (HYPOTHESIS_PROFILE=nightly or quick)."""

import os

import pytest
import torch
from hypothesis import settings
from torch_start import as_users_get_it as _as_users_get_it

settings.register_profile("default", max_examples=50, deadline=None, print_blob=True, derandomize=True)
settings.register_profile("quick", settings.get_profile("default"), max_examples=20)
settings.register_profile("nightly", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def as_users_get_it(monkeypatch):
    _as_users_get_it(monkeypatch)
