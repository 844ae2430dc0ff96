"""Proof by running: `verify` is right whatever models take and return, and `fuse(example=)` refuses what is another."""

import copy
import threading
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from helpers import assert_close, made, randomise
from timm.models import byobnet
from torch import nn

import reparam
from reparam import (
    ECB,
    Branch,
    FuseError,
    RepSRBlock,
    RepVGGBlock,
    Upscaler,
    create_model,
    export,
    fuse,
    fuse_file,
    kernel_of,
    quantize,
    save_checkpoint,
    verify,
)
from reparam.algebra._kernels import Kernel
from reparam.fusing._fuse import plain_copy
from reparam.fusing._prove import check_rounded
from reparam.fusing._verify import Difference
from reparam.numerics._compare import distance, largest, leaves, max_abs, tensors_of

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
NAN, INF = float("nan"), float("inf")


class Model(nn.Module):
    """A block, and whatever a test does with it."""

    def __init__(self, forward, dtype=torch.float32, block=None):
        super().__init__()
        torch.manual_seed(0)
        self.block = block or RepSRBlock(3)
        self.last = nn.Conv2d(3, 4, 3, padding=1)
        self._run = forward
        randomise(self.to(dtype), 0).eval()

    def forward(self, *args, **kwargs):
        return self._run(self, *args, **kwargs)


def photo(dtype=torch.float32, size=12, seed=0):
    """Smooth, with an edge: what images are like."""
    ramp = torch.linspace(0, 1, size, dtype=torch.float64)
    x = torch.stack(
        [0.6 * ramp[:, None] + 0.3 * ramp, ramp[:, None] * ramp, 0.5 + 0.4 * (3 * ramp).sin()[:, None] * ramp]
    )
    x[:, :, size // 2 :] *= 0.4 + 0.1 * seed
    return x[None].to(dtype)


def simple(self, x):
    return self.last(self.block(x).relu())


@dataclass
class Output:
    y: torch.Tensor
    classes: torch.Tensor
    rest: object = None


class ModelOutput(OrderedDict):
    """As transformers has it: a dict whose values are attributes as well."""

    def __post_init__(self):
        for name in self.__dataclass_fields__:
            self[name] = getattr(self, name)


@dataclass
class Enlarged(ModelOutput):
    y: torch.Tensor = None
    hidden: tuple = None


class Boxes:
    def __init__(self, y):
        self.y, self.me = y, self


Pair = namedtuple("Pair", "y z")
RETURNS = {
    "tensor": lambda y: y,
    "argmax": lambda y: y.argmax(1),
    "mask": lambda y: {"mask": y > 0, "y": y},
    "dataclass": lambda y: Output(y, y.argmax(1), [None, "text", 2]),
    "model_output": lambda y: Enlarged(y=y, hidden=(y.relu(), y.exp())),
    "namedtuple": lambda y: Pair(y, y.mean(1)),
    "object": Boxes,
    "number": lambda y: (y.double().sum().item(), y),
    "numpy": lambda y: y.double().numpy(),
    "infinite": lambda y: y.masked_fill(torch.ones_like(y).triu().bool(), -INF),
    "complex": lambda y: torch.fft.fft2(y.double()),
    "empty": lambda y: [y, y[:0]],
}


class TestWhatModelsReturn:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", RETURNS)
    def test_right_is_ok_and_wrong_is_not(self, name, dtype):
        model = Model(lambda self, x: RETURNS[name](simple(self, x)), dtype)
        plain = fuse(model, example=photo())
        report = verify(model, plain, photo(dtype))
        assert report.ok, report
        with torch.no_grad():
            plain.last.weight.mul_(-1.5)
        assert not verify(model, plain, photo(dtype)).total.ok

    @pytest.mark.parametrize("place", range(3))
    def test_a_nan_anywhere_is_not_ok(self, place):
        """Python's max drops it, unless it comes first."""

        def forward(self, x):
            y = simple(self, x)
            outputs = [y, y + 1, 2 * y]
            outputs[place] = outputs[place] * self.factor
            return outputs

        model = Model(forward)
        model.factor = torch.ones(())
        plain = fuse(model)
        plain.factor = torch.tensor(NAN)
        report = verify(model, plain, photo())
        assert not report.ok and not report.total.ok and report.total.max_abs != report.total.max_abs
        assert all(block.ok for block in report.blocks)

    def test_a_nan_in_a_later_call_of_a_block_is_not_ok(self):
        model = Model(lambda self, x: (self.block(x), self.block(x * INF))[0])
        report = verify(model, fuse(model), photo())
        assert report.total.ok and not report.blocks[0].ok and not report.ok

    def test_overflow_in_both_is_not_ok(self):
        model = Model(lambda self, x: simple(self, x) * 1e38 * 1e4)
        assert not verify(model, fuse(model), photo()).ok

    @pytest.mark.parametrize(
        ("wrong", "match"),
        [
            (lambda y: [y], "Tensor.*|do not match"),
            (
                lambda y: y[..., 1:],
                r"do not match: a tensor of shape \(1, 4, 12, 12\) .* and a tensor of shape \(1, 4, 12, 11",
            ),
            (lambda y: y.double(), "returns torch.float32, but the fused model returns torch.float64"),
            (lambda y: y.argmax(1), "do not match: a tensor of shape .* torch.int64"),
        ],
    )
    def test_outputs_that_are_not_alike(self, wrong, match):
        model = Model(lambda self, x: self.change(simple(self, x)))
        model.change = lambda y: y
        plain = fuse(model)
        plain.change = wrong
        with pytest.raises(FuseError, match=match):
            verify(model, plain, photo())

    def test_one_output_less(self):
        model = Model(lambda self, x: {"y": simple(self, x), **self.more})
        model.more = {"z": torch.ones(2)}
        plain = fuse(model)
        plain.more = {}
        with pytest.raises(FuseError, match=r"do not match at \['z'\]: a tensor of shape \(2,\) .* and 'nothing'"):
            verify(model, plain, photo())

    def test_a_number_of_python_has_all_its_digits(self):
        model = Model(lambda self, x: (simple(self, x).sum() > 0, 1.0))
        plain = fuse(model)
        plain._run = lambda self, x: (simple(self, x).sum() > 0, 1.0 + 1e-9)
        assert verify(model, plain, photo()).total.max_abs == pytest.approx(1e-9, rel=1e-3)

    def test_no_numbers(self):
        model = Model(lambda self, x: str(self.block(x).shape))
        with pytest.raises(FuseError, match="the model returns no numbers"):
            verify(model, fuse(model), photo())
        with pytest.raises(FuseError, match="the model itself returns no tensor in float64"):
            fuse(model, example=photo())


class TestWhatModelsTake:
    def test_a_last_layer_that_is_too_large_behind_a_change_in_place(self):
        def forward(self, x):
            x -= 0.5
            return self.last(self.block(x))

        model, x = Model(forward), photo()
        plain, before = fuse(model), x.clone()
        good = verify(model, plain, x)
        assert good.ok and good.total.noise_floor < 1e-3 * good.total.max_abs / good.total.relative
        assert torch.equal(x, before)
        with torch.no_grad():
            plain.last.weight.mul_(1.05)
        assert not verify(model, plain, x).ok
        assert torch.equal(x, before)

    def test_what_a_block_got_survives_what_later_layers_do(self):
        def forward(self, x):
            x = 2 * x
            y = self.block(x)
            x.zero_()
            return self.last(y)

        model = Model(forward)
        plain = fuse(model)
        with torch.no_grad():
            plain.block.weight.mul_(1.05)
        assert not verify(model, plain, photo()).blocks[0].ok

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_keywords_of_the_model_and_of_the_block(self, dtype):
        block = byobnet.RepVggBlock(3, 3)
        model = Model(lambda self, *, image, factor: self.last(self.block(x=image)) * factor["by"], dtype, block)
        plain = fuse(model, example={"image": photo(dtype), "factor": {"by": 2}})
        report = verify(model, plain, image=photo(dtype), factor={"by": 2})
        assert report.ok and report.blocks[0].name == "block"
        with torch.no_grad():
            plain.block.reparam_conv.bias.add_(1)
        assert not verify(model, plain, image=photo(dtype), factor={"by": 2}).blocks[0].ok

    def test_a_keyword_that_the_convolution_does_not_know(self):
        model = Model(lambda self, x: self.block(x=x))
        with pytest.raises(
            FuseError, match=r"part 'block' \(RepSRBlock\) .* it fails: .*unexpected keyword argument 'x'"
        ):
            fuse(model, example=photo())

    def test_positional_arguments_and_one_alone(self):
        model = Model(lambda self, x, factor: factor * simple(self, x))
        fuse(model, example=(photo(), 2.0))
        listed = Model(lambda self, xs: simple(self, xs[0] + xs[1]))
        fuse(listed, example=[photo(), photo()])
        with pytest.raises(FuseError, match="the model itself fails on the example: .*missing 1 required positional"):
            fuse(model, example=photo())

    def test_random_numbers_are_the_same_for_both_and_go_on_as_before(self):
        model = Model(lambda self, x: simple(self, x + torch.rand_like(x)))
        torch.manual_seed(3)
        wanted = torch.rand(3)
        torch.manual_seed(3)
        plain = fuse(model, example=photo())
        assert verify(model, plain, photo()).ok
        assert torch.equal(torch.rand(3), wanted)

    def test_dtypes_that_a_forward_asks_for(self):
        def forward(self, x):
            weight = self.last.weight.float().to(torch.float32)
            shift = torch.zeros(1, dtype=torch.float32) + torch.ones(1)
            return nn.functional.conv2d(self.block(x.float()) + shift, weight).half()

        model = Model(forward)
        assert torch.get_default_dtype() == torch.float32
        assert verify(model, fuse(model, example=photo()), photo()).ok
        assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("far", "floor", "ok"),
    [(1.0, 0.2, True), (1.0, 0.05, False), (NAN, 1.0, False), (1.0, NAN, False), (INF, INF, False), (0.0, 0.0, True)],
)
def test_when_a_difference_is_ok(far, floor, ok):
    assert Difference("", far, 0.0, floor).ok is ok


class TestComparing:
    def test_largest_never_drops_a_nan(self):
        assert largest([1.0, 3.0, 2.0]) == 3 and largest([]) == 0
        for place in range(3):
            values = [1.0, 2.0]
            values.insert(place, NAN)
            assert largest(values) != largest(values)

    def test_distances(self):
        a = torch.tensor([1.0, INF, -INF, 3.0])
        assert distance(a, a) == 0 and max_abs(a) == 3 and distance(a[:0], a[:0]) == 0
        assert distance(a, torch.tensor([1.5, INF, -INF, 3.0])) == 0.5
        assert distance(a, -a) == INF
        assert distance(torch.tensor([NAN]), torch.tensor([NAN])) != distance(a, a)
        assert distance(torch.tensor([1, 2, 9]), torch.tensor([1, 3, 1])) == 2
        assert distance(torch.tensor([1j]), torch.tensor([3 + 1j])) == 3
        assert max_abs(torch.tensor([NAN])) == max_abs(torch.tensor(3)) == 0

    def test_a_value_that_holds_itself(self):
        loop = []
        loop += [1, loop]
        assert [place for place, _ in leaves(loop)] == ["", "[0]", "[1]"]

    def test_tensors_are_found_in_place(self):
        value = {"a": [torch.ones(1), Pair(torch.ones(2), None)]}
        assert [place for place, _ in tensors_of(value, value)] == ["['a'][0]", "['a'][1][0]"]


class Two(nn.Module):
    """A norm after a convolution, which an untraceable forward also uses without it; beside another block."""

    def __init__(self):
        super().__init__()
        self.first = RepVGGBlock(3, 8)
        self.part = Alone()
        randomise(self, 0).eval()

    def forward(self, x):
        return self.part(self.first(x))


class Alone(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))

    def forward(self, x):
        return self.p[0](x) if float(x.sum()) > -1e9 else self.p(x)


class Mistaken(nn.Conv2d):
    """Registered with a kernel that lacks what its forward does to images; on small ones the two are the same."""

    def forward(self, x):
        y = super().forward(x)
        return y.relu() if x.shape[-1] > 8 else y


kernel_of.register(Mistaken)(lambda module: Kernel(module.weight, module.bias))


class TestProof:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("inplace", [False, True])
    def test_what_is_another_function_is_refused_by_name(self, dtype, inplace):
        net = nn.Sequential(OrderedDict(stem=ECB(3, 8), act=nn.PReLU(8), odd=Mistaken(8, 8, 3), tail=ECB(8, 3)))
        net.eval().to(dtype)
        before, keys = copy.deepcopy(net.state_dict()), [type(m) for m in net.modules()]
        fuse(net)  # nobody notices
        x = photo(dtype)
        with pytest.raises(
            FuseError, match=r"part 'odd' \(Mistaken\) would compute something else; its output differs by"
        ):
            fuse(net, example=x, inplace=inplace)
        assert [type(m) for m in net.modules()] == keys and torch.equal(x, photo(dtype))
        assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
        plain = fuse(net, example=x, inplace=inplace, skip="odd")
        assert type(plain.odd) is Mistaken and type(plain.tail) is nn.Conv2d

    def test_a_right_one_is_the_same_as_without(self):
        for dtype in DTYPES:
            model = Model(simple, dtype)
            proved, plain = fuse(model, example=photo(dtype)), fuse(model)
            assert all(map(torch.equal, proved.state_dict().values(), plain.state_dict().values()))
            assert fuse(model, example=photo(), inplace=True) is model and type(model.block) is nn.Conv2d

    def test_what_passes_through_folded_norms_is_not_blamed(self):
        """A norm before and several after a layer change what lies between them; the fault is behind these."""
        net = nn.Sequential(
            *(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Identity(), nn.BatchNorm2d(4)),
            *(nn.ReLU(), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3), Mistaken(3, 2, 1)),
        )
        randomise(net, 1).eval()
        with pytest.raises(FuseError, match=r"part '8' \(Mistaken\)"):
            fuse(net, example=photo())
        net[8] = nn.Conv2d(3, 2, 1)
        assert not [m for m in fuse(net, example=photo()).modules() if isinstance(m, nn.BatchNorm2d)]

    def test_a_layer_that_is_used_without_its_norm(self):
        model = Two()
        plain = fuse(model, batch_norms=True, example=photo())
        with torch.no_grad():
            assert_close(plain(photo()), model(photo()))

    def test_a_block_that_cancels_to_nothing_is_no_mistake(self):
        """What is left of such a sum is rounding alone, which float32 shows."""
        model = Model(lambda self, x: self.block(x) - self.same(x))
        model.same = copy.deepcopy(model.block)
        fuse(model, example=photo())

    def test_buffers_and_hooks_tell_nobody(self):
        def forward(self, x):
            self.steps += 1
            self.seen.append(x)
            return simple(self, x)

        model, calls = Model(forward), []
        model.register_buffer("steps", torch.zeros((), dtype=torch.long))
        model.seen = []
        model.block.register_forward_hook(lambda *args: calls.append(args))
        model.last.register_forward_pre_hook(lambda *args: calls.append(args))
        fuse(model, example=photo())
        assert not calls and not model.seen and model.steps == 0
        model(photo())
        assert len(calls) == 2

    def test_hooks_that_belong_to_the_model_run_on_its_copies(self):
        class Features(Model):
            def __init__(self):
                super().__init__(simple)
                self.found = []
                self.block.register_forward_hook(partial(self.keep, "block"))

            def keep(self, name, module, args, y):
                self.found.append(y)

            def forward(self, x):
                super().forward(x)
                return self.found[-1]

        model = Features()
        plain = fuse(model, example=photo())
        assert not model.found and not plain.found
        assert_close(plain(photo()), model(photo()))
        assert len(model.found) == len(plain.found) == 1

    def test_hooks_that_cannot_be_copied(self):
        class Locked:
            lock = None

            def __init__(self):
                self.lock, self.calls = threading.Lock(), 0

            def __call__(self, *args):
                self.calls += 1

        model, hook = Model(simple), Locked()
        model.block.register_forward_hook(hook)
        model.last.register_forward_hook(hook)
        plain = fuse(model, example=photo())
        assert hook.calls == 0
        plain(photo())
        assert hook.calls == 2
        assert verify(model, plain, photo()).ok

    def test_a_model_that_does_not_run(self):
        model = Model(simple)
        with pytest.raises(FuseError, match="the model itself fails on the example: .*to have 3 channels, but got 1"):
            fuse(model, example=torch.rand(1, 1, 9, 9))
        assert type(plain_copy(model, torch.rand(1, 1, 9, 9)).block) is nn.Conv2d  # no proof, where it was made up

    @pytest.mark.parametrize(
        ("make", "times"),
        [
            (fuse, 1),
            (plain_copy, 1),
            (lambda model: plain_copy(model, photo()), 2),  # and the copy in float64, on its own
            (lambda model: fuse(model, example=photo()), 2),
            (lambda model: fuse(model, example=photo(), inplace=True), 2),
        ],
    )
    def test_what_is_fused_is_worked_out_once(self, make, times, monkeypatch):
        searched, find = [], reparam.fusing._fuse.find_all
        monkeypatch.setattr(
            reparam.fusing._fuse, "find_all", lambda model, **options: searched.append(model) or find(model, **options)
        )
        model = Model(simple)
        wanted = model(photo())
        assert_close(make(model)(photo()), wanted)
        assert len(searched) == times

    def test_a_model_that_gives_nan(self):
        model = Model(lambda self, x: simple(self, x).log())
        with pytest.raises(FuseError, match="the model itself returns NaN"):
            fuse(model, example=photo())

    def test_the_meta_device(self):
        model = Model(simple).to("meta")
        with pytest.raises(FuseError, match="tensors without values"):
            fuse(model, example=photo().to("meta"))

    def test_a_fused_model_that_fails_is_refused(self):
        class Reads(Model):
            def __init__(self):
                super().__init__(lambda self, x: self.last(x) + self.block.branches[0].spec.in_channels)

        with pytest.raises(FuseError, match="it fails: .*has no attribute 'branches'"):
            fuse(Reads(), example=photo())

    def test_every_network_of_the_library(self):
        for name in ("repsr_m1c8_x2", "ecbsr_m1c8_x2_y", "qarepvggsr_m1c8_x2"):
            net = create_model(name)
            net(torch.rand(4, net.colors, 12, 12))
            fuse(net.eval(), example=torch.rand(1, net.colors, 9, 8))


class TestWhereItIsOn:
    """Wherever an input is at hand, or can be made up."""

    def wrong(self):
        net = nn.Sequential(
            OrderedDict(stem=ECB(3, 8), odd=Mistaken(8, 12, 3, padding=1), up=nn.PixelShuffle(2))
        ).eval()
        net.scale, net.colors = 2, 3
        return net

    def test_export(self, tmp_path):
        with pytest.raises(FuseError, match=r"part 'odd' \(Mistaken\)"):
            export(self.wrong(), tmp_path / "net.pt2")
        with pytest.raises(FuseError, match=r"part '0.odd' \(Mistaken\)"):
            export(nn.Sequential(self.wrong()), tmp_path / "net.pt2", example=photo())
        assert not list(tmp_path.iterdir())

    def test_upscaler(self):
        with pytest.raises(FuseError, match=r"part 'odd' \(Mistaken\)"):
            Upscaler(self.wrong(), engine="torch")

    def test_quantize(self, tmp_path):
        with pytest.raises(FuseError, match=r"part 'odd' \(Mistaken\)"):
            quantize(self.wrong(), tmp_path / "net.onnx", [photo()[0].permute(1, 2, 0).numpy()])

    def test_fuse_file(self, tmp_path, monkeypatch):
        net = made("repsr_m1c4_x2")
        save_checkpoint(net, tmp_path / "net.safetensors")
        right = Branch.to_conv

        def flipped(self):
            conv = right(self)
            conv.weight.data = conv.weight.data.flip(-1)
            return conv

        monkeypatch.setattr(Branch, "to_conv", flipped)
        with pytest.raises(FuseError, match=r"part 'body.0' \(RepSRBlock\) would compute something else"):
            fuse_file(tmp_path / "net.safetensors", tmp_path / "plain.safetensors")
        assert not (tmp_path / "plain.safetensors").exists()

    def test_an_exported_network_that_writes_into_its_input(self, tmp_path):
        class Centered(nn.Sequential):
            def forward(self, x):
                return super().forward(x.sub_(0.5))

        net, x = Centered(ECB(3)).eval(), photo()
        assert export(net, tmp_path / "net.pt2", example=x).error < 1e-5
        assert torch.equal(x, photo())


class TestRounding:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_one_step_off_is_seen(self, dtype):
        exact = fuse(Model(simple, torch.float64))
        plain = copy.deepcopy(exact).to(dtype)
        check_rounded(plain, exact)
        with torch.no_grad():
            plain.block.weight[1, 2, 0, 1] *= 1 + 2 * torch.finfo(dtype).eps
        with pytest.raises(FuseError, match="'block.weight' holds .* where rounding .* once to torch."):
            check_rounded(plain, exact)

    @pytest.mark.parametrize("value", [NAN, INF])
    def test_what_is_not_finite_is_seen(self, value):
        exact = fuse(Model(simple, torch.float64))
        plain = copy.deepcopy(exact).float()
        with torch.no_grad():
            plain.block.bias[2] = value
        with pytest.raises(FuseError, match=f"'block.bias' holds {value} where"):
            check_rounded(plain, exact)
        with torch.no_grad():
            exact.block.bias[2] = value  # as the model had it
        check_rounded(plain, exact)

    def test_other_tensors(self):
        exact, plain = (nn.Sequential(nn.Conv2d(1, 1, 1)) for _ in range(2))
        plain.load_state_dict(exact.state_dict())
        plain[0].bias = None
        with pytest.raises(FuseError, match="'0.bias' is another tensor when the model is fused in float64"):
            check_rounded(plain, exact)

    def test_counts(self):
        a, b = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        b.num_batches_tracked += 1
        with pytest.raises(FuseError, match="'num_batches_tracked' was changed by fusing"):
            check_rounded(a, b)
