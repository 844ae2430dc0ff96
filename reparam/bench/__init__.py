"""What training and inference cost on this machine, as ratios measured in one run."""

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
