"""Checkpoints of this library and of other codebases: loaded, saved, inspected and fused."""

from ._checkpoint import load_checkpoint, save_checkpoint
from ._fuse_file import FileReport, FusedBlock, fuse_file
from ._inspect_file import FileInspection, inspect_file
from ._state_dict import fuse_state_dict

__all__ = [
    "FileInspection",
    "FileReport",
    "FusedBlock",
    "fuse_file",
    "fuse_state_dict",
    "inspect_file",
    "load_checkpoint",
    "save_checkpoint",
]
