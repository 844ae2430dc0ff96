"""From a network to large images."""

from .upscaler import Upscaler

__all__ = ["Upscaler"]
