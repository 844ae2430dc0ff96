"""For KAIR, which selects networks in one function: adds this library's networks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ._networks import networks


def add_archs(define_G: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
    """Extend KAIR's `define_G` by the names of `reparam.interop.basicsr.register_archs`.

    Use a name as `net_type` under `netG`. For `reparam_swapped`, the section `net` has what `netG` would have without
    it, except `scale`, which KAIR adds:

        "netG": {
          "net_type": "reparam_swapped", "weights": "x2.pth", "block": "RepSRBlock", "match": "model.1.*",
          "net": {"net_type": "msrresnet0", "in_nc": 3, "out_nc": 3, "nc": 64, "nb": 16, "act_mode": "R",
                  "upsample_mode": "upconv", "init_type": "orthogonal", "init_bn_type": "uniform", "init_gain": 0.2}
        }

    Args:
        define_G: the `define_G` of KAIR's `models.select_network`.

    Returns:
        The function that replaces it where a model class calls it, such as `models.model_plain.define_G`.
    """

    def define(opt: Any) -> nn.Module:
        section = opt["netG"]

        def build(net: Mapping[str, Any]) -> nn.Module:
            return define_G(type(opt)({**opt, "netG": type(section)(net)}))  # KAIR's dicts return None for missing keys

        make = networks(build).get(section["net_type"])
        if make is None:
            return define_G(opt)
        return make(**{key: value for key, value in section.items() if key != "net_type"})

    return define
