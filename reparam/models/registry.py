"""Networks by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

from ..errors import SpecError
from .net import PlainSR, RepSR, SRNet

_FAMILIES: dict[str, Callable[..., SRNet]] = {"plain": PlainSR, "repsr": RepSR}
_SIZES = ("m4c8", "m4c16", "m10c16", "m10c32", "m16c64")
_NAME = re.compile(r"(?P<family>[a-z0-9]+)_m(?P<num_blocks>\d+)c(?P<channels>\d+)_x(?P<scale>[1-4])(?P<luma>_y)?")


def create_model(name: str, **options: Any) -> SRNet:
    """Builds a network from its name, such as "repsr_m4c16_x2": M=4 blocks of C=16 channels, scale 2, RGB.

    Args:
        name: family, blocks, channels, scale, and "_y" at the end for one colour (luma) in place of three. Any
            numbers will do; `list_models` shows the usual ones.
        **options: further arguments of the network's class.

    Returns:
        The network with fresh weights, in train mode.

    Raises:
        SpecError: for a name that fits nothing, or an option that the name already decides.

    Example:
        >>> create_model("repsr_m4c16_x2_y").colors
        1
    """
    match = _NAME.fullmatch(name)
    if match is None or match["family"] not in _FAMILIES:
        families = ", ".join(_FAMILIES)
        raise SpecError(
            f"no model is named {name!r}; a name is FAMILY_m<blocks>c<channels>_x<scale>, with _y for luma, for "
            f"example repsr_m4c16_x2 or repsr_m4c16_x4_y; families: {families}; scales: 1 to 4"
        )
    decided = {key: int(match[key]) for key in ("num_blocks", "channels", "scale")}
    decided["colors"] = 1 if match["luma"] else 3
    if clash := sorted(decided.keys() & options.keys()):
        raise SpecError(f"the name {name!r} already decides {', '.join(clash)}; change the name instead")
    return _FAMILIES[match["family"]](**decided, **options)


def list_models(pattern: str = "*") -> list[str]:
    """The usual names for `create_model`, those that fit a shell pattern.

    Example:
        >>> list_models("repsr_m4c16_x2*")
        ['repsr_m4c16_x2', 'repsr_m4c16_x2_y']
    """
    names = (
        f"{family}_{size}_x{scale}{luma}"
        for family in _FAMILIES
        for size in _SIZES
        for scale in (1, 2, 3, 4)
        for luma in ("", "_y")
    )
    return [name for name in names if fnmatch(name, pattern)]
