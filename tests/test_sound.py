"""Numbers of which no kernel can be made are refused by their dotted name, wherever a kernel would be made of them."""

import copy

import pytest
import torch
from helpers import made, randomise
from safetensors.torch import save_file
from timm.models import byobnet
from torch import nn

from reparam import (
    CheckpointError,
    FuseError,
    RepSRBlock,
    RepVGGBlock,
    fuse,
    fuse_file,
    fuse_state_dict,
    inspect_file,
    inspect_model,
    load_checkpoint,
    save_checkpoint,
)
from reparam.modules._sound import unsound

NAN, INF = float("nan"), float("inf")
MODELS = {
    "ours": (lambda: nn.Sequential(RepVGGBlock(4)), "0.branches.0.conv.weight", "0.branches.1.norm.running_var"),
    "timm": (lambda: nn.Sequential(byobnet.RepVggBlock(4, 4)), "0.conv_kxk.conv.weight", "0.identity.running_var"),
    "neighbors": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), "0.weight", "1.running_var"),
}
VALUES = {"weight": [NAN, INF, -INF], "running_var": [NAN, INF, -1e-3, -1.0]}


def tensors(model):
    return dict([*model.named_parameters(), *model.named_buffers()])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("what", "value"), [(what, value) for what, values in VALUES.items() for value in values])
def test_a_model_is_refused_by_the_name_of_the_tensor(kind, what, value):
    build, weight, var = MODELS[kind]
    name = {"weight": weight, "running_var": var}[what]
    model = randomise(build(), 0).eval()
    assert inspect_model(model).ready
    with torch.no_grad():
        tensors(model)[name].flatten()[1] = value
    report = inspect_model(model)
    assert not report.ready and f"{name}: " in str(report)
    before = copy.deepcopy(model)
    for inplace in (False, True):
        with pytest.raises(FuseError, match=rf"\n  {name}: (1 of its \d+ values are not|it holds a variance of -)"):
            fuse(model, inplace=inplace)
    assert list(model.state_dict()) == list(before.state_dict())


@pytest.mark.parametrize("name", ["running_mean", "weight", "bias"])
def test_every_number_of_a_norm_counts(name):
    model = randomise(nn.Sequential(RepSRBlock(4)), 0).eval()
    with torch.no_grad():
        getattr(model[0].branches[1].norm, name)[2] = NAN
    with pytest.raises(FuseError, match=rf"0.branches.1.norm.{name}: 1 of its"):
        fuse(model)
    with pytest.raises(FuseError, match=rf"cannot fuse RepSRBlock: 'branches.1.norm.{name}': 1 of its"):
        model[0].to_conv()


def test_what_no_kernel_is_made_of_may_be_anything():
    """A mask of infinities, an embedding that is never used."""
    model = randomise(nn.Sequential(RepSRBlock(4), nn.Conv2d(4, 4, 1)), 0).eval()
    model.register_buffer("mask", torch.full((2, 2), -INF))
    with torch.no_grad():
        model[1].weight[0] = NAN
    assert fuse(model).mask[0, 0] == -INF
    assert unsound({"running_var": torch.zeros(2), "n": torch.tensor([-1]), "mask": torch.ones(1, device="meta")}) == {}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_kernel_that_is_too_large_for_its_dtype_is_refused(kind, inplace):
    model = randomise(MODELS[kind][0](), 0).eval().half()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.fill_(60000)
            module.running_var.fill_(1e-3)
    before = [type(module) for module in model.modules()]
    with pytest.raises(FuseError, match=r"of '0\.?(reparam_conv)?\.weight', once fused, \d+ of its \d+ values are not"):
        fuse(model, inplace=inplace)
    assert [type(module) for module in model.modules()] == before


class TestFiles:
    KEY = "body.0.branches.1.norm.running_var"

    def broken(self, tmp_path, value):
        net = made("repsr_m1c8_x2")
        with torch.no_grad():
            tensors(net)[self.KEY][3] = value
        save_checkpoint(net, tmp_path / "net.safetensors")
        return tmp_path / "net.safetensors"

    @pytest.mark.parametrize("value", VALUES["running_var"])
    def test_a_network(self, value, tmp_path):
        file = self.broken(tmp_path, value)
        with pytest.raises(CheckpointError, match=f"net.safetensors: '{self.KEY}': (1 of its|it holds a variance)"):
            load_checkpoint(file)
        problems = inspect_file(file).problems
        assert len([problem for problem in problems if problem.startswith(f"{self.KEY}: ")]) == 1
        with pytest.raises((FuseError, CheckpointError), match=self.KEY):
            fuse_file(file, tmp_path / "plain.pth")
        assert not (tmp_path / "plain.pth").exists()

    @pytest.mark.parametrize("value", VALUES["running_var"])
    def test_a_block_of_another_code(self, value, tmp_path):
        parts = {"rbr_dense.conv": nn.Conv2d(4, 4, 3, bias=False), "rbr_1x1.conv": nn.Conv2d(4, 4, 1, bias=False)}
        parts |= {"rbr_dense.bn": nn.BatchNorm2d(4), "rbr_1x1.bn": nn.BatchNorm2d(4)}
        sd = {f"a.{n}.{k}": v for n, m in parts.items() for k, v in randomise(m, 0).state_dict().items()}
        fuse_state_dict(sd)
        sd["a.rbr_1x1.bn.running_var"][2] = value
        with pytest.raises(
            CheckpointError, match="^'a.rbr_1x1.bn.running_var': (1 of its 4 values|it holds a variance)"
        ):
            fuse_state_dict(sd)
        save_file(sd, tmp_path / "a.safetensors")
        assert any(
            p.startswith("a.rbr_1x1.bn.running_var: ") for p in inspect_file(tmp_path / "a.safetensors").problems
        )

    def test_one_that_is_too_large_for_its_dtype(self):
        parts = {"rbr_dense.conv": nn.Conv2d(4, 4, 3, bias=False), "rbr_1x1.conv": nn.Conv2d(4, 4, 1, bias=False)}
        parts |= {"rbr_dense.bn": nn.BatchNorm2d(4), "rbr_1x1.bn": nn.BatchNorm2d(4)}
        sd = {f"{n}.{k}": v for n, m in parts.items() for k, v in randomise(m, 0).half().state_dict().items()}
        sd["rbr_dense.bn.weight"] *= 6e4 / sd["rbr_dense.bn.weight"].abs().max()
        sd["rbr_dense.bn.running_var"].fill_(1e-3)
        with pytest.raises(FuseError, match=r"block '' \(RepVGG\) cannot be fused in torch.float16: of 'rbr_reparam.w"):
            fuse_state_dict(sd)

    def test_many_are_counted(self):
        sd = {f"rbr_dense.conv.{i}": torch.tensor([NAN]) for i in range(5)}
        from reparam.files._state_dict import refuse_unsound

        with pytest.raises(CheckpointError, match=r"'rbr_dense.conv.0': .*, and 2 more such tensors"):
            refuse_unsound(sd)
