"""The gap between stored statistics and those of images, against numbers worked out by hand or by loops."""

import copy
import math
import re

import pytest
import torch
from helpers import randomise
from torch import nn

from reparam import (
    BNGap,
    BNGapReport,
    RepSRBlock,
    StatisticsError,
    bn_gap,
    create_model,
    freeze_bn_stats,
    recalibrate_bn_stats,
    set_fold,
)


def test_by_hand():
    bn = nn.BatchNorm1d(3, eps=0.5).double()
    bn.running_mean.copy_(torch.tensor([0.0, 1.0, -2.0]))
    bn.running_var.copy_(torch.tensor([0.5, 1.5, 3.5]))
    x = torch.tensor([[1.0, 1.0, 0.0], [3.0, 1.0, 4.0]]).double()  # means 2, 1, 2; variances 2, 0, 8
    row = bn_gap(bn, x).layers[0]
    assert row.name == ""
    shifts, ratios = [2 / 1, 0, 4 / 2], [2.5 / 1, 0.5 / 2, 8.5 / 4]
    assert row.shift == pytest.approx(sum(shifts) / 3)
    assert row.worst_shift == pytest.approx(2)
    assert row.ratio == pytest.approx(math.exp(sum(abs(math.log(r)) for r in ratios) / 3))
    assert row.worst_ratio == pytest.approx(0.25)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("fold", [True, False, "auto"])
def test_inside_of_folded_blocks_it_is_that_of_the_branches(fold, frozen):
    """Oracle: the input of each batch norm, branch by branch, in eval mode."""
    torch.manual_seed(0)
    model = randomise(nn.Sequential(RepSRBlock(3, 4), nn.PReLU(4), RepSRBlock(4)).double(), 1)
    images = torch.rand(3, 3, 7, 6).double()
    x, expected = images, {}
    for index in (0, 2):
        for number, branch in enumerate(model[index].branches):
            if getattr(branch, "norm", None) is not None:
                z = nn.functional.conv2d(x, branch.expand.weight, branch.expand.bias, padding=1).transpose(0, 1)
                z, bn = z.flatten(1), branch.norm
                shift = (z.mean(1) - bn.running_mean).abs() / (bn.running_var + bn.eps).sqrt()
                ratio = (z.var(1) + bn.eps) / (bn.running_var + bn.eps)
                expected[f"{index}.branches.{number}.norm"] = (shift, ratio)
        x = copy.deepcopy(model).eval()[:2](images)
    set_fold(model, fold)
    if frozen:
        freeze_bn_stats(model)
    report = bn_gap(model, images)
    assert [row.name for row in report.layers] == list(expected)
    for row in report.layers:
        shift, ratio = expected[row.name]
        worst = max(ratio.tolist(), key=lambda r: abs(math.log(r)))
        numbers = (row.shift, row.worst_shift, row.ratio, row.worst_ratio)
        assert numbers == pytest.approx(
            (shift.mean().item(), shift.max().item(), ratio.log().abs().mean().exp().item(), worst), rel=1e-10
        )
    assert report.worst is max(report.layers, key=lambda row: row.worst_shift)
    assert report.shift == pytest.approx(sum(row.shift for row in report.layers) / len(report.layers))


def test_it_is_nothing_after_recalibration_and_large_after_a_change_of_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    images = torch.rand(4, 3, 9, 9).double()
    recalibrate_bn_stats(model, [images])
    same, other = bn_gap(model, images).layers[0], bn_gap(model, 3 * images + 1).layers[0]
    assert same.worst_shift < 1e-12 and same.ratio == pytest.approx(1) and same.worst_ratio == pytest.approx(1)
    assert other.shift > 1 and other.ratio == pytest.approx(9, rel=0.01)


def test_the_model_is_as_before_and_batches_are_pooled():
    model = create_model("repsr_m1c4_x2")
    model(torch.rand(2, 3, 8, 8))
    before = copy.deepcopy(model.state_dict()), [(type(m), m.training) for m in model.modules()]
    images = torch.rand(5, 3, 8, 8)
    whole, parts = bn_gap(model, images), bn_gap(model, [(images[:2], "label"), images[2:]])
    for one, other in zip(whole.layers, parts.layers):
        assert one.shift == pytest.approx(other.shift, rel=1e-4) and one.ratio == pytest.approx(other.ratio, rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), model.state_dict().values()))
    assert before[1] == [(type(m), m.training) for m in model.modules()]


def test_printed_it_is_a_table():
    bn = nn.BatchNorm2d(2)
    lines = str(bn_gap(nn.Sequential(nn.Identity(), bn), torch.ones(1, 2, 3, 3))).splitlines()
    assert re.split("  +", lines[0]) == ["batch norm", "shift", "worst shift", "ratio", "worst ratio"]
    assert lines[1].split() == ["1", "1", "1", "1e+05", "1e-05"] and len(lines) == 2


def test_the_worst_layer_has_the_worst_channel():
    layers = (BNGap("a", 0.5, 0.6, 1, 1), BNGap("b", 0.2, 0.9, 1, 1), BNGap("c", 0.2, 0.3, 9, 9))
    report = BNGapReport(layers)
    assert report.worst == layers[1] and report.shift == pytest.approx(0.3)


def test_without_batch_norm():
    report = bn_gap(nn.Conv2d(3, 3, 3), torch.rand(1, 3, 5, 5))
    assert report.layers == () and report.worst is None and report.shift == 0 and str(report) == "no batch norm"


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.spare = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.bn(x)


def test_refusals():
    with pytest.raises(StatisticsError, match="'bn': it got 0 values per channel from 0 b"):
        bn_gap(Unused(), [])
    with pytest.raises(StatisticsError, match="'spare': it got 0 values per channel from 1 b"):
        bn_gap(Unused(), torch.rand(1, 2, 3, 3))
