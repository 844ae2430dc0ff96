"""Graphs of ONNX files: read, rewritten, and tried. Imports the package onnx."""
