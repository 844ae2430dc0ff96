"""Batch norm as a scale and a shift; freezing its statistics late in training."""

from ._freeze import freeze_bn_stats, recalibrate_bn_stats, unfreeze_bn_stats
from ._frozen import FrozenStatsBN
from ._gap import BNGap, BNGapReport, bn_gap
from ._norm import norms
from ._schedule import BNFreezeSchedule

__all__ = [
    "BNFreezeSchedule",
    "BNGap",
    "BNGapReport",
    "FrozenStatsBN",
    "bn_gap",
    "freeze_bn_stats",
    "norms",
    "recalibrate_bn_stats",
    "unfreeze_bn_stats",
]
