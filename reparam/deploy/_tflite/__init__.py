"""Writes networks as TFLite files, operator by operator."""

from .run import about_tflite, operators_of_tflite, run_litert
from .write import write_int8_tflite, write_tflite

__all__ = ["about_tflite", "operators_of_tflite", "run_litert", "write_int8_tflite", "write_tflite"]
