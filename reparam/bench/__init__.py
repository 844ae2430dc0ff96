"""Measures the cost of training and inference on this machine, as ratios within one run."""

from ._inference import InferenceCost, InferenceReport, bench_inference
from ._setting import Setting
from ._training import BlockCost, TrainingCost, bench_blocks, bench_training

__all__ = [
    "BlockCost",
    "InferenceCost",
    "InferenceReport",
    "Setting",
    "TrainingCost",
    "bench_blocks",
    "bench_inference",
    "bench_training",
]
