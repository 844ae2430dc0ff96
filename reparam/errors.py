"""The errors of this library. All derive from `ReparamError`, and each also from the fitting builtin exception."""

__all__ = [
    "CheckpointError",
    "ExportError",
    "FuseError",
    "NotAModelError",
    "NotLinearError",
    "OptionError",
    "ReparamError",
    "SpecError",
    "StatisticsError",
]


class ReparamError(Exception):
    """Base class of every error that this library raises on purpose."""


class SpecError(ReparamError, ValueError):
    """An argument value that is invalid for a convolution, branch, block or model."""


class OptionError(ReparamError, TypeError):
    """An option that a block or a network does not have."""


class NotLinearError(ReparamError, TypeError):
    """A module without a kernel, because it is not an affine convolution."""


class NotAModelError(ReparamError, TypeError):
    """An argument that should be a `torch.nn.Module` and is something else."""


class StatisticsError(ReparamError, RuntimeError):
    """A batch norm whose stored statistics cannot be used yet."""


class FuseError(ReparamError, RuntimeError):
    """A model that cannot be fused in its present state; the message says why and what to do."""


class CheckpointError(ReparamError, ValueError):
    """A file or state dict that cannot be used; the message says what was expected and what was found."""


class ExportError(ReparamError, RuntimeError):
    """A network that cannot be exported, or that computes something else after export; nothing was written."""
