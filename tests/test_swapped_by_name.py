"""Networks of a training code with blocks swapped in, built from the options of a file."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from helpers import assert_close, relative_error
from PIL import Image
from torch import nn

from reparam import ECB, OptionError, RepSRBlock, SpecError, create_model, fuse
from reparam.interop.basicsr import register_archs
from reparam.interop.kair import add_archs

SIZES = {"num_feat": 6, "num_in_ch": 3}


class Registry(dict):
    """As in BasicSR."""

    def register(self, obj):
        assert obj.__name__ not in self
        self[obj.__name__] = obj

    def get(self, name):
        return self[name]


class Net(nn.Module):
    """A network of a code."""

    def __init__(self, num_feat: int = 6, num_in_ch: int = 3, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(num_feat, num_feat, 3, padding=1), nn.ReLU(), nn.Conv2d(num_feat, 3, 3))

    def forward(self, x):
        return self.body(self.head(x))


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A registry that knows one network and ours, and a folder with its weights and images."""
    monkeypatch.chdir(tmp_path)
    registry = Registry(Net=Net)
    register_archs(registry)
    torch.save({"params": Net(**SIZES).state_dict()}, "net.pth")
    (tmp_path / "lr").mkdir()
    (tmp_path / "empty").mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (12, 14, 3), np.uint8)).save(f"lr/{number}.png")
    return registry


def plain() -> nn.Module:
    net = Net(**SIZES)
    net.load_state_dict(torch.load("net.pth")["params"])
    return net.eval()


def options(**more):
    return {"net": {"type": "Net", **SIZES}, "weights": "net.pth", "block": "RepSRBlock", **more}


def test_it_computes_what_its_weights_did_and_fuses_into_its_class(code):
    net, x = code["reparam_swapped"](**options(match="body.*")), torch.rand(2, 3, 9, 9)
    assert [isinstance(net.get_submodule(name), RepSRBlock) for name in ("head", "body.0", "body.2")] == [
        False,
        True,
        True,
    ]
    assert net.training and not any(isinstance(module, ECB) for module in net.modules())
    assert_close(net.eval()(x), plain()(x), 1e-5)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    net.body[0].train()(torch.rand(2, 6, 9, 9)), net.body[2].train()(torch.rand(2, 6, 9, 9))
    again = Net(**SIZES)
    again.load_state_dict(fuse(net.eval()).state_dict())
    assert_close(again(x), net(x), 1e-5)


def test_built_twice_it_has_the_same_keys_and_takes_its_own_numbers(code):
    """As a run that is resumed does, or an EMA that is built beside the network."""
    one, other = (code["reparam_swapped"](**options()) for _ in range(2))
    other.load_state_dict(one.state_dict())
    x = torch.rand(1, 3, 9, 9)
    assert torch.equal(one.eval()(x), other.eval()(x))


def test_a_block_has_options_and_there_may_be_several_patterns(code):
    net = code["reparam_swapped"](**options(block={"type": "ECB", "expansion": 3.0}, match=["head", "body.2"]))
    assert [name for name, module in net.named_modules() if isinstance(module, ECB)] == ["head", "body.2"]
    assert net.head.expansion == 3.0


@pytest.mark.parametrize("colors", [1, 3])
def test_calibrated_it_computes_the_same_on_batch_statistics(code, colors):
    torch.save(Net(num_feat=6, num_in_ch=colors).state_dict(), "net.pth")
    images = [torch.tensor(np.asarray(Image.open(f"lr/{number}.png"))) for number in range(3)]
    x = torch.stack(images).permute(0, 3, 1, 2).float() / 255
    if colors == 1:
        x = (x * torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 255).sum(1, keepdim=True) + 16 / 255
    section = {"type": "Net", "num_feat": 6, "num_in_ch": colors}
    net = code["reparam_swapped"](**options(net=section, calibrate="lr"))
    assert_close(net(x), net.eval()(x), 5e-3)  # whose variances differ by n / (n - 1), n = 504 or less
    lost = code["reparam_swapped"](**options(net=section))
    assert relative_error(lost(x), lost.eval()(x)) > 0.1


def test_what_cannot_be_swapped_is_told(code):
    def tied(**sizes):
        net = Net(**sizes)
        net.more = nn.Conv2d(6, 6, 3)
        net.more.weight = net.body[0].weight
        return net

    code["tied"] = tied
    with pytest.warns(UserWarning, match=r"reparam_swapped: 2 convolutions swapped, 2 skipped"):
        code["reparam_swapped"](net={"type": "tied", **SIZES}, block="ECB")


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({"blok": "ECB"}, OptionError, "no option 'blok'; it has net, block, weights, match and calibrate"),
        ({"net": None}, SpecError, "net must be the section of a network, with its type, but got net=None"),
        ({"net": {"type": "Nett"}}, SpecError, "net needs the type of a network of this codebase, but got type='Nett'"),
        ({"net": {"num_feat": 6}}, SpecError, "net needs the type of a network of this codebase, but got type=None"),
        ({"net": {"type": "Net", "feat": 6}}, OptionError, "cannot be built: .*unexpected keyword argument 'feat'"),
        ({"net": {"type": "Net", "scale": 4}, "scale": 2}, SpecError, "net has scale=4, but .* has scale=2"),
        ({"weights": "none.pth"}, SpecError, "weights='none.pth' cannot be loaded: .*No such file"),
        ({"net": {"type": "Net", "num_feat": 7}}, SpecError, r"weights='net.pth' cannot be loaded: .*size mismatch"),
        (
            {"block": "RepSRBlok"},
            SpecError,
            "block must be a block's name, .* but got 'RepSRBlok'; there are ECB, ",
        ),
        ({"block": {"expansion": 2}}, SpecError, r"block must be a block's name, .* but got \{'expansion': 2\}"),
        ({"block": None}, SpecError, "block must be a block's name, .* but got None"),
        ({"block": "ReparamBlock"}, SpecError, "block must be a block's name, .* but got 'ReparamBlock'"),
        ({"block": {"type": "ECB", "depth": 2}}, SpecError, r"block=\{'type': 'ECB', 'depth': 2\}, .*'depth'"),
        ({"match": "boody.*"}, SpecError, r"match='boody\.\*': no convolution of Net matches 'boody\.\*'"),
        ({"match": 5}, SpecError, "match must be a pattern of names, or a list of them, but got 5"),
        ({"match": ["head", 5]}, SpecError, r"match must be a pattern of names, .* but got \['head', 5\]"),
        ({"calibrate": "none"}, SpecError, "calibrate='none': there is no folder none"),
        ({"calibrate": "empty"}, SpecError, "calibrate='empty': no image in empty"),
    ],
)
def test_a_wrong_option_is_named(code, changed, kind, said):
    with pytest.raises(kind, match=f"(?s)reparam_swapped.*{said}"):
        code["reparam_swapped"](**options(**changed))


def test_the_scale_of_the_code_is_that_of_the_network(code):
    assert code["reparam_swapped"](**options(scale=3)).scale == 3
    assert code["reparam_swapped"](**options(net={"type": "Net", **SIZES, "scale": 3}, scale=3)).scale == 3


def test_the_scale_of_the_code_agrees_with_a_name(code):
    assert code["reparam_model"](name="repsr_m1c6_x2", scale=2).scale == 2
    with pytest.raises(SpecError, match=r"'repsr_m1c6_x2' means scale 2, but the option file has scale=4"):
        code["reparam_model"](name="repsr_m1c6_x2", scale=4)


def test_networks_are_looked_for_in_all_registries():
    ours, theirs = Registry(), Registry(Net=Net)
    register_archs(ours, theirs)
    assert isinstance(ours["reparam_swapped"](net={"type": "Net"}, block="ECB").head, ECB)
    assert list(theirs) == ["Net"]


class Nones(dict):
    """KAIR's dicts, which have None for what is not there."""

    def __missing__(self, key):
        return None


def define_G(opt):
    section = opt["netG"]
    assert section["init_gain"] is None and opt["is_train"]
    if section["net_type"] != "net":
        raise NotImplementedError(f"netG [{section['net_type']}] is not found.")
    return Net(num_feat=section["nc"], scale=section["scale"])


def test_kair_defines_ours_and_its_own(code):
    define = add_archs(define_G)

    def built(**section):
        return define(Nones(netG=Nones(scale=2, **section), is_train=True))

    assert isinstance(built(net_type="net", nc=6), Net)
    assert type(built(net_type="reparam_model", name="repsr_m1c6_x2")) is type(create_model("repsr_m1c6_x2"))
    net = built(net_type="reparam_swapped", net=Nones(net_type="net", nc=6), block="ECB", weights="net.pth")
    assert isinstance(net.head, ECB) and net.scale == 2
    assert_close(net.eval()(torch.ones(1, 3, 9, 9)), plain()(torch.ones(1, 3, 9, 9)), 1e-5)
    with pytest.raises(NotImplementedError, match=re.escape("netG [nett] is not found.")):
        built(net_type="nett")
