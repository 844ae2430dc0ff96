"""What it looks like when memory runs out."""

from __future__ import annotations

_WORDS = ("not enough memory", "out of memory", "can't allocate memory", "failed to allocate memory", "bad_alloc")
"""Of torch on its devices, of ONNX Runtime and of OpenVINO: there is no type that all of them raise."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory.

    Example:
        >>> ran_out(MemoryError()), ran_out(RuntimeError("DefaultCPUAllocator: not enough memory")), ran_out(OSError())
        (True, True, False)
    """
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _WORDS)
