"""What `reparam bench` measures: time on a device that runs behind, memory under autocast, compiled steps."""

import re

import pytest
import torch
from torch import nn

from reparam.bench import Setting, bench_blocks
from reparam.bench._training import saved_bytes
from reparam.blocks import ECB
from reparam.errors import SpecError


class Behind:
    """A device that does nothing until it is waited for, and a clock of it: one second for each thing told."""

    def __init__(self):
        self.told, self.now = 0, 0.0

    def synchronize(self):
        self.now += self.told
        self.told = 0

    def get_device_name(self):
        return "a device of this test"


def test_a_step_takes_until_the_device_has_done_it(monkeypatch):
    device = Behind()
    monkeypatch.setattr("torch.get_device_module", lambda name: device)
    monkeypatch.setattr("time.perf_counter", lambda: device.now)

    def run():
        device.told += 3

    device.told = 5  # left of what ran before
    assert Setting().seconds(run) == 3
    assert Setting().measured_on()["name"] == "a device of this test"


def test_a_device_that_is_not_there():
    with pytest.raises(SpecError, match=re.escape("got device='meta' (") + ".*available: cpu"):
        Setting("meta")
    for device in ("cpu", "cpu:0"):
        assert Setting(device).seconds(lambda: None) >= 0


def test_memory_kept_under_autocast_is_that_of_half_precision():
    x, conv = torch.rand(2, 8, 12, 12, requires_grad=True), nn.Conv2d(8, 8, 3, padding=1)
    assert saved_bytes(conv, Setting().forward(conv), x) == 4 * x.numel()
    kept = saved_bytes(conv, Setting(autocast=True).forward(conv), x)
    assert kept == 2 * (x.numel() + conv.weight.numel())  # the weight's cast is kept as well


def test_compiled_steps_are_measured_beside_one_another(monkeypatch):
    graphs = []

    def compiled(module, **options):
        graphs.append(options)
        return compiler(module, backend="aot_eager", **options)  # traced all the same, and no C++ to wait for

    compiler = torch.compile
    monkeypatch.setattr("torch.compile", compiled)
    eager, found = (bench_blocks(3, 2, 8, 1, setting=Setting(compiled=way), blocks=[ECB]) for way in (False, True))
    assert len(graphs) == 1 + 3 and all(options["fullgraph"] for options in graphs)
    assert [row.launches for row in found] == [row.launches for row in eager]
    assert all(row.step > 0 and row.saved > 0 for row in found)
