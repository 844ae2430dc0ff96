"""Networks by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple

from ..errors import SpecError
from ._edsr import EDSR
from ._net import ECBSR, CollapsibleSR, PlainSR, QARepVGGSR, RepSR, RepVGGSR, SRNet
from ._pretrained import load_pretrained, pretrained_names
from ._sesr import SESR

Network = SRNet | SESR | EDSR
"""What `create_model` and `load_checkpoint` return. Each of these has `scale`, `colors` and `options`."""
Sizes = Mapping[str, Mapping[str, int | float]]

_COMPACT: Sizes = {"m4c8": {}, "m4c16": {}, "m6c32": {}, "m10c16": {}, "m10c32": {}, "m16c64": {}}
_SESR: Sizes = {
    "m3": {"num_blocks": 3},
    "m5": {"num_blocks": 5},
    "m7": {"num_blocks": 7},
    "m11": {"num_blocks": 11, "hidden_channels": 64},
    "xl": {"num_blocks": 11, "channels": 32, "hidden_channels": 64},
}
_EDSR: Sizes = {"m16c64": {}, "m32c256": {"res_scale": 0.1}}


class Family(NamedTuple):
    """The networks of one class, and the names that they have."""

    network: Callable[..., Network]
    sizes: Sizes
    """The usual sizes, with the arguments that each sets besides the blocks and channels in its name."""
    scales: tuple[int, ...] = (1, 2, 3, 4)
    luma_only: bool = False

    def read(self, rest: str) -> dict[str, Any] | None:
        """The arguments that the rest of a name ("m4c16_x2_y") sets; None if it is not a name of this family."""
        luma = "(?P<luma>)" if self.luma_only else "(?P<luma>_y)?"
        size = "|".join(["m(?P<num_blocks>[0-9]+)c(?P<channels>[0-9]+)", *self.sizes])
        match = re.fullmatch(f"(?P<size>{size})_x(?P<scale>[{''.join(map(str, self.scales))}]){luma}", rest)
        if match is None:
            return None
        numbers = {key: int(match[key]) for key in ("num_blocks", "channels", "scale") if match[key]}
        colors = {} if self.luma_only else {"colors": 1 if match["luma"] else 3}
        return {**numbers, **self.sizes.get(match["size"], {}), **colors}


_FAMILIES = {
    "plain": Family(PlainSR, _COMPACT),
    "repsr": Family(RepSR, _COMPACT),
    "ecbsr": Family(ECBSR, _COMPACT),
    "repvggsr": Family(RepVGGSR, _COMPACT),
    "qarepvggsr": Family(QARepVGGSR, _COMPACT),
    "collapsiblesr": Family(CollapsibleSR, _COMPACT),
    "sesr": Family(SESR, _SESR, scales=(2, 4), luma_only=True),
    "edsr": Family(EDSR, _EDSR, scales=(2, 3, 4)),
}


def create_model(name: str, *, pretrained: bool = False, **options: Any) -> Network:
    """Build a network from its name, such as "repsr_m4c16_x2": M=4 blocks of C=16 channels, scale 2, RGB.

    Args:
        name: family, size and scale, with "_y" at the end for luma (one channel) instead of RGB. The size is
            m<blocks>c<channels> with any two numbers, and leaves every other argument of the class at its default. Some
            families also have the sizes that their paper names, such as "sesr_xl_x4". `list_models` lists the usual
            names. SESR is luma only, and its names have no "_y".
        pretrained: whether to load the weights that are shipped with the package for this name;
            `list_models(pretrained=True)` lists those names. Nothing is downloaded. For the larger networks only fused
            weights are shipped; the blocks are then filled from the fused kernels, as `swap_convs` does.
        **options: further arguments of the network's class. Not allowed together with `pretrained`.

    Returns:
        The network with new weights, in train mode. If pretrained: in eval mode, ready for use or for `fuse`.

    Raises:
        SpecError: if no network has this name, the name has no weights, or an option repeats what the name says.

    Example:
        >>> create_model("repsr_m4c16_x2_y").colors
        1
    """
    start, _, rest = name.partition("_")
    family = _FAMILIES.get(start)
    decided = family.read(rest) if family else None
    if family is None or decided is None:
        raise SpecError(f"no model is named {name!r}; {_how_to_name(start)}")
    if clash := sorted(decided.keys() & options.keys()):
        raise SpecError(
            f"the name {name!r} already sets {', '.join(clash)}; change the name, or build {family.network.__name__}"
        )
    if not pretrained:
        return family.network(**decided, **options)
    if options:
        raise SpecError(
            f"the weights for {name!r} fit the network without {', '.join(options)}; "
            "leave out the option or pretrained=True"
        )
    net = family.network(**decided)
    load_pretrained(net, name, decided)
    return net.eval()


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """List the usual names for `create_model` that match a shell pattern.

    Args:
        pattern: a shell pattern; "*" matches every name.
        pretrained: whether to list only the networks whose weights are shipped with the package.

    Example:
        >>> list_models("repsr_m4c16_x2*")
        ['repsr_m4c16_x2', 'repsr_m4c16_x2_y']
    """
    names = (
        pretrained_names()
        if pretrained
        else (
            f"{name}_{size}_x{scale}{luma}"
            for name, family in _FAMILIES.items()
            for size in family.sizes
            for scale in family.scales
            for luma in ([""] if family.luma_only else ["", "_y"])
        )
    )
    return [name for name in names if fnmatch(name, pattern)]


def _how_to_name(start: str) -> str:
    if start not in _FAMILIES:
        return (
            "a name is FAMILY_SIZE_x<scale>, with _y for luma, for example repsr_m4c16_x2, repsr_m4c16_x4_y or "
            f"sesr_xl_x2; families: {', '.join(_FAMILIES)}"
        )
    _, sizes, scales, luma_only = _FAMILIES[start]
    return (
        f"a name is {start}_SIZE_x<scale>{'' if luma_only else ', with _y for luma'}; sizes: m<blocks>c<channels> with "
        f"any two numbers, usually {', '.join(sizes)}; scales: {', '.join(map(str, scales))}"
    )
