"""Trains a swapped network in other people's training codes, with the lines of docs/training_codes.md, and compares.

    BASICSR=../BasicSR NEOSR=../neosr TRAINNER=../traiNNer-redux KAIR=../KAIR python tests/hosts/check.py basicsr neosr

Nothing is fetched: a code is found in the folder that a variable of its name in capitals names, and so is what it imports.
Each code runs in a process of its own. What it reads its options with, its models, saving and resuming are its own;
batches are made here, as two of them want a GPU for their loaders.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam import FrozenStatsBN, fuse
from reparam.bn._norm import norms

ROOT = Path(__file__).parents[2]
STEPS, RESUME, FROZEN, SCALE = 20, 10, 18, 2


def images(seed: int, count: int = 4) -> tuple[Tensor, Tensor]:
    """Smooth images small and large."""
    noise = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    large = F.interpolate(noise, size=(32, 32), mode="bicubic").clamp(0, 1)
    return F.avg_pool2d(large, SCALE), large


def lines(title: str, language: str) -> str:
    """What the page shows for a code, in a language."""
    page = (ROOT / "docs" / "training_codes.md").read_text()
    section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return text


def merged(options: dict[str, Any], shown: Mapping[str, Any]) -> dict[str, Any]:
    """The options that every run needs, and those of the page."""
    for key, value in shown.items():
        inside = isinstance(value, Mapping) and isinstance(options.get(key), dict)
        options[key] = merged(options[key], value) if inside else value
    return options


def stand_in(name: str, **contents: Any) -> None:
    """A module that a code imports and that is not there."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(contents)


class Code:
    """What differs from code to code; the rest of this file is the same for all."""

    title: str
    accumulate = 1
    ema_is_saved_alone = False
    nets = ("net_g", "net_g_ema")

    def plain(self) -> nn.Module:
        """The network without blocks, of the class of the code."""
        raise NotImplementedError

    def model(self, resume: int | None) -> Any:
        """What trains, from the start or from a step that was saved."""
        raise NotImplementedError

    def step(self, model: Any, number: int) -> None:
        """An optimizer step."""
        small, large = images(number)
        model.feed_data({"lq": small, "gt": large})
        model.optimize_parameters(number)

    def save(self, model: Any, number: int) -> None:
        model.save(0, number)


class BasicSR(Code):
    title = "BasicSR"

    def __init__(self) -> None:
        from torchvision.transforms import functional

        stand_in("basicsr.version", __version__="", __gitsha__="")  # which its setup.py writes
        stand_in("torchvision.transforms.functional_tensor", rgb_to_grayscale=functional.rgb_to_grayscale)  # has moved
        exec(lines(self.title, "py"), {"__name__": "reparam_model"})

    def options(self, resume: int | None) -> dict[str, Any]:
        import yaml

        train = {"optim_g": {"type": "Adam", "lr": 1e-4}, "total_iter": STEPS}
        train |= {"scheduler": {"type": "MultiStepLR", "milestones": [100]}, "pixel_opt": {"type": "L1Loss"}}
        state = None if resume is None else f"experiments/x/training_states/{resume}.state"
        options = {"name": "x", "scale": SCALE, "num_gpu": 0, "manual_seed": 0, "datasets": {}, "train": train}
        options |= {"path": {"pretrain_network_g": None, "strict_load_g": True, "resume_state": state}, "logger": {}}
        return merged(options, yaml.safe_load(lines(self.title, "yaml")))

    def plain(self) -> nn.Module:
        return importlib.import_module("basicsr.archs").build_network(self.options(None)["network_g"]["net"])

    def model(self, resume: int | None) -> Any:
        import yaml
        from basicsr.models import build_model
        from basicsr.utils import check_resume, make_exp_dirs
        from basicsr.utils.options import parse_options

        Path("x.yml").write_text(yaml.safe_dump(self.options(resume)))
        sys.argv = ["train.py", "-opt", "x.yml"]
        options, _ = parse_options(os.getcwd())
        if resume is None:
            make_exp_dirs(options)
            return build_model(options)
        state = torch.load(options["path"]["resume_state"], weights_only=False)
        check_resume(options, state["iter"])
        model = build_model(options)
        model.resume_training(state)
        return model


class OnCPU:
    """torch, in which every device is the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def device(self, name: str) -> torch.device:
        return torch.device("cpu")


class Neosr(Code):
    title = "neosr"
    accumulate = 2
    ema_is_saved_alone = True

    def __init__(self) -> None:
        self.write(None)  # it reads its options when it is imported
        importlib.import_module("neosr.models.base").torch = OnCPU()
        exec(lines(self.title, "py"), {"__name__": "reparam"})

    def write(self, resume: int | None) -> None:
        state = "" if resume is None else f"resume_state = 'experiments/x/training_states/{resume}.state'"
        more = f"""
            [datasets.train]
            type = "paired"
            accumulate = {self.accumulate}
            [path]
            {state}
            [train.optim_g]
            type = "adamw"
            lr = 1e-4
            [train.pixel_opt]
            type = "L1Loss"
            loss_weight = 1.0
            [logger]
            total_iter = {STEPS}
        """
        start = f'name = "x"\nscale = {SCALE}\nmanual_seed = 1\nnum_gpu = 0\n'
        Path("x.toml").write_text(start + lines(self.title, "toml") + re.sub("^ +", "", more, flags=re.MULTILINE))
        sys.argv = ["train.py", "-opt", "x.toml"]

    def plain(self) -> nn.Module:
        import tomllib

        options = tomllib.loads(lines(self.title, "toml"))
        return importlib.import_module("neosr.archs").build_network(options["network_g"]["net"])

    def model(self, resume: int | None) -> Any:
        from neosr.models import build_model
        from neosr.utils import check_resume, make_exp_dirs
        from neosr.utils.options import parse_options

        self.write(resume)
        options, _ = parse_options(os.getcwd())
        torch.use_deterministic_algorithms(False)
        if resume is None:
            make_exp_dirs(options)
            return build_model(options)
        state = torch.load(options["path"]["resume_state"], weights_only=True)
        check_resume(options, state["iter"])
        model = build_model(options)
        model.resume_training(state)
        return model

    def step(self, model: Any, number: int) -> None:
        for batch in range(self.accumulate):
            small, large = images(1000 * batch + number)
            model.feed_data({"lq": small, "gt": large})
            model.optimize_parameters((number - 1) * self.accumulate + batch + 1)


class TraiNNer(Code):
    title = "traiNNer-redux"
    accumulate = 2

    def __init__(self) -> None:
        exec(lines(self.title, "py"), {"__name__": "train_reparam"})

    def options(self, resume: int | None) -> dict[str, Any]:
        import yaml

        train = {"optim_g": {"type": "AdamW", "lr": 1e-4}, "total_iter": STEPS}
        train |= {"losses": [{"type": "l1loss", "loss_weight": 1.0}]}
        data = {"name": "x", "type": "PairedImageDataset", "accum_iter": self.accumulate}
        path = {} if resume is None else {"resume_state": f"experiments/x/training_states/{resume}.state"}
        options = {"name": "x", "scale": SCALE, "num_gpu": 0, "manual_seed": 1, "datasets": {"train": data}}
        options |= {"train": train, "path": path}
        options |= {"logger": {"save_checkpoint_freq": 1, "use_tb_logger": False, "print_freq": 1}}
        return merged(options, yaml.safe_load(lines(self.title, "yaml")))

    def plain(self) -> nn.Module:
        build = importlib.import_module("traiNNer.archs").build_network
        return build({**self.options(None)["network_g"]["net"], "scale": SCALE})

    def model(self, resume: int | None) -> Any:
        import yaml
        from traiNNer.models import build_model
        from traiNNer.utils import check_resume, make_exp_dirs
        from traiNNer.utils.options import parse_options

        Path("x.yml").write_text(yaml.safe_dump(self.options(resume)))
        sys.argv = ["train.py", "-opt", "x.yml"]
        options, _ = parse_options(os.getcwd())
        if resume is None:
            make_exp_dirs(options)
            return build_model(options)
        state = torch.load(options.path.resume_state, weights_only=True)
        check_resume(options, state["iter"])
        model = build_model(options)
        model.resume_training(state)
        return model

    def step(self, model: Any, number: int) -> None:
        for batch in range(self.accumulate):
            small, large = images(1000 * batch + number)
            model.feed_data({"lq": small, "gt": large})
            last = batch == self.accumulate - 1
            model.optimize_parameters(number if last else number - 1, 0 if last else batch + 1, last)


class KAIR(Code):
    title = "KAIR"
    nets = ("netG", "netE")

    def __init__(self) -> None:
        self.space: dict[str, Any] = {"__name__": "main_train_reparam"}
        exec(lines(self.title, "py"), self.space)

    def options(self) -> Any:
        from utils import utils_option

        file = Path("options/train_msrresnet_psnr.json")
        kair = Path(os.environ["KAIR"]).resolve()
        text = re.sub(r"//.*", "", (kair / file).read_text())
        options, shown = json.loads(text), json.loads(lines(self.title, "json"))
        options = {**merged(options, shown), "netG": shown["netG"]}
        options |= {"scale": SCALE, "dist": False, "gpu_ids": []}
        Path("x.json").write_text(json.dumps(options))
        options = utils_option.parse("x.json", is_train=True)
        options["gpu_ids"] = None
        return options

    def plain(self) -> nn.Module:
        from models.select_network import define_G
        from utils.utils_option import dict_to_nonedict

        options = self.options()
        return define_G(dict_to_nonedict({**options, "netG": {**options["netG"]["net"], "scale": SCALE}}))

    def model(self, resume: int | None) -> Any:
        from utils import utils_option

        options = self.options()
        Path(options["path"]["models"]).mkdir(parents=True, exist_ok=True)
        for net in ("G", "E", "optimizerG"):
            number, path = utils_option.find_last_checkpoint(options["path"]["models"], net_type=net)
            assert number == (resume or 0)
            options["path"][f"pretrained_{net if net[0] == 'o' else 'net' + net}"] = path
        model = self.space["main_train_psnr"].define_Model(utils_option.dict_to_nonedict(options))
        model.load_optimizer = lambda path, optimizer: optimizer.load_state_dict(torch.load(path))  # its own wants a GPU
        model.init_train()
        return model

    def step(self, model: Any, number: int) -> None:
        small, large = images(number)
        model.feed_data({"L": small, "H": large})
        model.optimize_parameters(number)

    def save(self, model: Any, number: int) -> None:
        model.save(number)


CODES: dict[str, Callable[[], Code]] = {"basicsr": BasicSR, "neosr": Neosr, "trainner": TraiNNer, "kair": KAIR}


def nets_of(code: Code, model: Any) -> list[nn.Module]:
    """The network and its EMA."""
    found = []
    for name in code.nets:
        net = getattr(model, name)
        found.append(getattr(net, "ema_model", getattr(net, "module", net)))
    return found


def numbers(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def away(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|b|."""
    return float((a - b).abs().max() / b.abs().max())


def far(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest difference of two state dicts; the keys have to be the same."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[key].double() - theirs[key].double()).abs().max()) for key in ours)


@torch.no_grad()
def run(net: nn.Module, x: Tensor) -> Tensor:
    mode = net.training
    y = net.eval()(x)
    net.train(mode)
    return y


def check(code: Code) -> dict[str, float]:
    """What comes out, as errors; what has to be exact is asserted."""
    x, figures = images(999)[0], {}
    plain = code.plain()
    torch.save({"params": plain.state_dict()}, "plain_x2.pth")
    model = code.model(None)
    net, ema = nets_of(code, model)
    assert net.state_dict().keys() != plain.state_dict().keys(), "no blocks"
    figures["built"] = away(run(net, x), run(plain, x))
    figures["EMA built"] = away(run(ema, x), run(plain, x))
    with torch.no_grad():  # on the images of the calibration, whose statistics these are, but for their own n / (n - 1)
        figures["in train mode"] = away(net.train()(calibration()), run(plain, calibration()))
    net.load_state_dict(ema.state_dict())  # the statistics as they were
    saved, straight, frozen = {}, {}, 0
    for number in range(1, STEPS + 1):
        before = numbers(net)
        code.step(model, number)
        is_frozen = {isinstance(bn, FrozenStatsBN) for part in (net, ema) for _, bn in norms(part)}
        assert is_frozen == {number >= FROZEN}, f"step {number}: frozen {is_frozen}"
        after = numbers(net)
        still = {key: torch.equal(before[key], after[key]) for key in before if "running_" in key}
        assert set(still.values()) == {number >= FROZEN}, f"step {number}: {still}"
        assert not any(torch.equal(before[k], after[k]) for k in before if k.endswith("norm.weight")), "does not learn"
        if number == RESUME:
            code.save(model, number)
            saved = {"net": numbers(net), "ema": numbers(ema)}
    straight = {"net": numbers(net), "ema": numbers(ema)}
    figures["EMA"] = away(run(ema, x), run(net, x))

    fused = fuse(ema.eval())
    untouched = code.plain()
    untouched.load_state_dict(fused.state_dict(), strict=True)
    figures["fused, in the untouched class"] = away(run(untouched, x), run(ema, x))
    figures["learned"] = away(run(untouched, x), run(plain, x))

    again = code.model(RESUME)
    net, ema = nets_of(code, again)
    start = saved["ema" if code.ema_is_saved_alone else "net"]
    assert far(numbers(net), start) == 0 and far(numbers(ema), saved["ema"]) == 0, "resumed with other numbers"
    for number in range(RESUME + 1, STEPS + 1):
        code.step(again, number)
        assert {isinstance(bn, FrozenStatsBN) for _, bn in norms(net)} == {number >= FROZEN}
    figures["resumed and straight"] = max(far(numbers(net), straight["net"]), far(numbers(ema), straight["ema"]))

    last = code.model(RESUME)
    code.step(last, STEPS)  # a run that is resumed after the freeze
    assert all(isinstance(bn, FrozenStatsBN) for part in nets_of(code, last) for _, bn in norms(part))
    return figures


def calibration() -> Tensor:
    """Images to calibrate on, of eight bits."""
    return (images(77, 8)[0] * 255).round() / 255


def prepare() -> None:
    """Writes them into the folder that the page names."""
    from PIL import Image

    Path("datasets/lr").mkdir(parents=True)
    for number, image in enumerate(calibration()):
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(f"datasets/lr/{number}.png")


def main(names: list[str]) -> int:
    """Each in a process of its own."""
    if len(names) > 1:
        return max(subprocess.run([sys.executable, __file__, name], check=False).returncode for name in names)
    (name,) = names
    folder = os.environ.get(name.upper())
    if folder:
        os.environ[name.upper()] = folder = str(Path(folder).resolve())
        sys.path.insert(0, folder)
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        prepare()
        torch.manual_seed(0)
        try:
            with contextlib.redirect_stdout(said):
                figures = check(CODES[name]())
        except BaseException:
            print(said.getvalue()[-3000:])
            raise
    print(f"{name}: " + ", ".join(f"{what} {figure:.1e}" for what, figure in figures.items()))
    limits = {"built": 1e-5, "EMA built": 1e-5, "fused, in the untouched class": 1e-5, "in train mode": 1e-3}
    wrong = [what for what, most in limits.items() if not figures[what] <= most]
    wrong += [] if CODES[name].ema_is_saved_alone or figures["resumed and straight"] <= 1e-5 else ["resumed"]
    print(f"{name}: " + (f"WRONG: {wrong}" if wrong else "right"))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
