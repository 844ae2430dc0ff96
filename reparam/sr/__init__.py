"""Super-resolution: networks, their weights and files, enlarging images, quantization to 8 bits."""

from ..files import load_checkpoint, save_checkpoint
from ..models import (
    ECBSR,
    EDSR,
    SESR,
    CollapsibleSR,
    Network,
    PlainSR,
    QARepVGGSR,
    RepSR,
    RepVGGSR,
    SRNet,
    create_model,
    list_models,
    pretrained_file,
)
from ._quantize import LayerRange, QuantizationReport, quantize
from ._upscale import Upscaler

__all__ = [
    "ECBSR",
    "EDSR",
    "SESR",
    "CollapsibleSR",
    "LayerRange",
    "Network",
    "PlainSR",
    "QARepVGGSR",
    "QuantizationReport",
    "RepSR",
    "RepVGGSR",
    "SRNet",
    "Upscaler",
    "create_model",
    "list_models",
    "load_checkpoint",
    "pretrained_file",
    "quantize",
    "save_checkpoint",
]
