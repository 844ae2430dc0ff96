"""Training codes that are a folder: what differs from one to the other."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .shared import SCALE, STEPS, images, lines


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


def resumed(model: Any, step: int) -> Any:
    """As the scripts of the codes do it, but for their `map_location`, which is a GPU."""
    model.resume_training(torch.load(f"experiments/x/training_states/{step}.state", weights_only=False))
    return model


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
        options, _ = parse_options(str(Path.cwd()))
        if resume is None:
            make_exp_dirs(options)
            return build_model(options)
        check_resume(options, resume)
        return resumed(build_model(options), resume)


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
        options, _ = parse_options(str(Path.cwd()))
        torch.use_deterministic_algorithms(False)
        if resume is None:
            make_exp_dirs(options)
            return build_model(options)
        check_resume(options, resume)
        return resumed(build_model(options), resume)

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
        options, _ = parse_options(str(Path.cwd()))
        if resume is None:
            make_exp_dirs(options)
            return build_model(options)
        check_resume(options, resume)
        return resumed(build_model(options), resume)

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
        model.load_optimizer = lambda path, optimizer: optimizer.load_state_dict(
            torch.load(path)
        )  # its own wants a GPU
        model.init_train()
        return model

    def step(self, model: Any, number: int) -> None:
        small, large = images(number)
        model.feed_data({"L": small, "H": large})
        model.optimize_parameters(number)

    def save(self, model: Any, number: int) -> None:
        model.save(number)


CODES: dict[str, Callable[[], Code]] = {"basicsr": BasicSR, "neosr": Neosr, "trainner": TraiNNer, "kair": KAIR}
