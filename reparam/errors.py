"""The errors of this library: all are `ReparamError`, and each is also the builtin kind a caller would expect."""

__all__ = [
    "CheckpointError",
    "ExportError",
    "FuseError",
    "NotLinearError",
    "OptionError",
    "ReparamError",
    "SpecError",
    "StatisticsError",
]


class ReparamError(Exception):
    """Base of every error raised on purpose by this library."""


class SpecError(ReparamError, ValueError):
    """An argument that no convolution, branch, block or model can have."""


class OptionError(ReparamError, TypeError):
    """An option that a block or a network does not have."""


class NotLinearError(ReparamError, TypeError):
    """A module that is not an affine convolution, so that it has no kernel."""


class StatisticsError(ReparamError, RuntimeError):
    """A batch norm whose stored statistics cannot be used as they are."""


class FuseError(ReparamError, RuntimeError):
    """A model that cannot be fused now; the message says why and what to do."""


class CheckpointError(ReparamError, ValueError):
    """A file or a state dict that cannot be used; the message says what was looked for and what was found."""


class ExportError(ReparamError, RuntimeError):
    """A network that cannot be written for another program, or is another one there; nothing was written."""
