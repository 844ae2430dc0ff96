"""One thread, fixed seeds, and how many examples hypothesis draws (HYPOTHESIS_PROFILE=nightly or quick)."""

import os

import pytest
import torch
from hypothesis import settings

import reparam.models._net as net_module

settings.register_profile("default", max_examples=50, deadline=None, print_blob=True, derandomize=True)
settings.register_profile("quick", settings.get_profile("default"), max_examples=20)
settings.register_profile("nightly", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
torch.set_num_threads(1)

# Networks start as their enlarged input, to which a wrong kernel would change next to nothing. Untrained networks of
# the tests are compared, so they start as torch's layers do. tests/test_start.py puts the function back.
net_module.scale_start = lambda *_: None  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
