"""State dicts and files of other people's codes."""

from .checkpoint import load_checkpoint, save_checkpoint
from .fuse_file import BlockReport, FileReport, fuse_file
from .inspect_file import FileInspection, inspect_file
from .state_dict import fuse_state_dict

__all__ = [
    "BlockReport",
    "FileInspection",
    "FileReport",
    "fuse_file",
    "fuse_state_dict",
    "inspect_file",
    "load_checkpoint",
    "save_checkpoint",
]
