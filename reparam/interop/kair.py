"""KAIR, which picks a network in one function: ours by name there, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ._networks import networks


def add_archs(define_G: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
    """KAIR's `define_G`, which knows the names of `reparam.interop.basicsr.register_archs` as well.

    The names are `net_type`s under `netG`, and the section `net` of a `reparam_swapped` is as `netG` was without it,
    except for `scale`, which KAIR adds:

        "netG": {
          "net_type": "reparam_swapped", "weights": "x2.pth", "block": "RepSRBlock", "match": "model.1.*",
          "net": {"net_type": "msrresnet0", "in_nc": 3, "out_nc": 3, "nc": 64, "nb": 16, "act_mode": "R",
                  "upsample_mode": "upconv", "init_type": "orthogonal", "init_bn_type": "uniform", "init_gain": 0.2}
        }

    Args:
        define_G: `define_G` of KAIR's `models.select_network`.

    Returns:
        The function to put in its place where a model class calls it, such as `models.model_plain.define_G`.
    """

    def define(opt: Any) -> nn.Module:
        section = opt["netG"]

        def build(net: Mapping[str, Any]) -> nn.Module:
            return define_G(
                type(opt)({**opt, "netG": type(section)(net)})
            )  # whose dicts give None for what is not there

        make = networks(build).get(section["net_type"])
        if make is None:
            return define_G(opt)
        return make(**{key: value for key, value in section.items() if key != "net_type"})

    return define
