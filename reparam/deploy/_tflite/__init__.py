"""Networks as files of TFLite, written operator by operator."""

from .graph import note_in
from .write import run_litert, write_tflite

__all__ = ["note_in", "run_litert", "write_tflite"]
