"""What `help`, the docs and type checkers say of a block is what its constructor takes."""

from __future__ import annotations

import copy
import inspect
import pickle
import pydoc
import re
import runpy
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, get_type_hints

import pytest
import torch
from contract import READ
from strategies import KINDS, of_spec
from torch import nn

import reparam
from reparam import ConvBlock, ConvBranch, ConvSpec, OptionError, ReparamBlock, RepSRBlock, SpecError, fuse

if TYPE_CHECKING:
    from collections.abc import Sized

BLOCKS = [getattr(reparam, name) for name in reparam.__all__ if getattr(reparam, name) in ConvBlock.__subclasses__()]
COMMON = list(signature(ConvBlock).parameters)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
class TestEveryBlock:
    def test_takes_all_that_its_signature_lists_and_nothing_else(self, block):
        parameters = signature(block).parameters
        assert list(parameters)[: len(COMMON)] == COMMON and len(parameters) > len(COMMON)
        usual = {name: p.default for name, p in parameters.items() if p.default is not Parameter.empty}
        geometry = {"in_channels": 6, "kernel_size": 5}
        torch.manual_seed(0)
        told = block(**{**usual, **geometry})
        torch.manual_seed(0)
        untold = block(**geometry)
        assert repr(told) == repr(untold)
        assert all(torch.equal(value, untold.state_dict()[name]) for name, value in told.state_dict().items())
        for name in ("no_such_option", "count"):
            with pytest.raises(
                OptionError, match=f"{block.__name__} has no option '{name}'; it takes {', '.join(parameters)}"
            ):
                block(**geometry, **{name: 1})

    def test_positions_are_those_of_a_convolution(self, block):
        ours = [p for p in signature(block).parameters.values() if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
        theirs = list(signature(nn.Conv2d).parameters.values())
        assert sorted(p.name for p in ours) == sorted(p.name for p in theirs)
        assert [p.name for p in ours[:9]] == [p.name for p in theirs[:9]]
        assert all(p.kind is Parameter.KEYWORD_ONLY for p in list(signature(block).parameters.values())[len(ours) :])

    def test_every_argument_has_a_type_and_is_documented(self, block):
        parameters = signature(block).parameters
        assert all(
            p.annotation is not Parameter.empty and not isinstance(p.annotation, str) for p in parameters.values()
        )
        section = re.search(r"\n    Args:\n(.*?)\n\n", block.__doc__, re.DOTALL)[1]
        documented = re.findall(r"^ {8}(\w[\w, .]*): ", section, re.MULTILINE)
        assert documented == ["in_channels, ..., sum_bn", *list(parameters)[len(COMMON) :]]

    def test_a_plain_option_is_kept_for_the_reader(self, block):
        built = block(6, kernel_size=5)
        for name in list(signature(block).parameters)[len(COMMON) :]:
            assert getattr(built, name) == signature(block).parameters[name].default


def test_the_arguments_of_every_block_are_documented_where_the_others_point():
    section = re.search(r"\n    Args:\n(.*?)\n\n", ConvBlock.__doc__, re.DOTALL)[1]
    assert re.findall(r"^ {8}(\w+): ", section, re.MULTILINE) == COMMON


def test_the_geometry_is_given_as_to_a_spec():
    takes, types = signature(ConvSpec).parameters, get_type_hints(ConvSpec.__init__)
    for name, parameter in takes.items():
        ours = signature(ConvBlock).parameters[name]
        assert (ours.default, ours.kind, ours.annotation) == (parameter.default, parameter.kind, types[name])


def test_help_shows_them():
    shown = pydoc.plain(pydoc.render_doc(RepSRBlock))
    assert "options: Any" not in shown
    assert re.search(r"RepSRBlock\(\s*in_channels: int,.*paths: int = 2,", shown, re.DOTALL)


class Keywords(ConvBlock):
    """Options as keyword arguments of `design`."""

    sum_bn = True

    @staticmethod
    def design(spec, *, kernel=2, forward: float = 0.5, **ignored):
        assert forward == 0.5
        return [ConvBranch] * kernel


class Attributes(ConvBlock):
    """Options as attributes, one of them of a type that only type checkers know."""

    times: ClassVar[int] = 1
    count: int = 2
    of: Sized | None = None
    made_of: type[ConvBranch] = ConvBranch

    def design(self, spec):
        return [self.made_of] * self.count * self.times


class OtherDefaults(Attributes):
    count = 3
    groups = 2
    more: bool = False

    @property
    def device(self):
        return next(self.parameters()).device


class OwnConstructor(Attributes):
    mask: torch.Tensor

    def __init__(self, channels: int, times: int = 1) -> None:
        super().__init__(channels, count=times)
        self.register_buffer("mask", torch.ones(1))


class TestOnesOwn:
    def test_keyword_arguments_of_a_design_are_options_under_any_name(self):
        assert list(signature(Keywords).parameters) == [*COMMON, "kernel", "forward"]
        block = Keywords(4, kernel=3)
        assert len(block.branches) == 3 and block.norm is not None
        assert block.kernel_size == (3, 3) and block.eval()(torch.rand(1, 4, 5, 5)).shape == (1, 4, 5, 5)
        with pytest.raises(OptionError, match="'ignored'.*, kernel, forward$"):
            Keywords(4, ignored=1)

    def test_attributes_are_options(self):
        assert list(signature(Attributes).parameters) == [*COMMON, "count", "of", "made_of"]
        assert len(Attributes(4).branches) == 2 and Attributes(4, count=5).count == 5

    def test_a_subclass_adds_and_gives_other_defaults(self):
        assert list(signature(OtherDefaults).parameters) == [*COMMON, "count", "of", "made_of", "more"]
        assert [signature(OtherDefaults).parameters[name].default for name in ("count", "groups")] == [3, 2]
        assert signature(OtherDefaults).parameters["groups"].kind is Parameter.POSITIONAL_OR_KEYWORD
        assert signature(OtherDefaults).parameters["device"].default is None  # a property is no default
        block = OtherDefaults(4, device="cpu")
        assert (len(block.branches), block.groups, block.device.type) == (3, 2, "cpu")
        assert len(Attributes(4).branches) == 2

    def test_another_design_has_its_own_keywords(self):
        class Child(Keywords):
            @staticmethod
            def design(spec, *, other):
                return [ConvBranch] * other

        assert list(signature(Child).parameters) == [*COMMON, "other"]
        assert len(Child(4, other=2).branches) == 2
        with pytest.raises(TypeError, match="missing a required.* argument: 'other'"):
            Child(4)

    def test_a_static_design_cannot_read_what_a_base_declares(self):
        class Simple(RepSRBlock):
            @staticmethod
            def design(spec, *, paths=1):
                return [ConvBranch] * paths

        assert list(signature(Simple).parameters) == [*COMMON, "paths"]
        assert len(Simple(4, paths=3).branches) == 3
        with pytest.raises(OptionError, match="'gain'"):
            Simple(4, gain=0.5)

    def test_a_design_may_go_on_from_that_of_its_base(self):
        class Longer(RepSRBlock):
            more: int = 1

            def design(self, spec):
                return super().design(spec) + [ConvBranch] * self.more

        assert len(Longer(4, paths=3, more=2).branches) == 1 + 3 + 2
        assert len(Longer.planned(ConvSpec(4, 6), more=2)) == 2 + 2

    def test_a_constructor_of_its_own_says_what_it_takes(self):
        assert list(signature(OwnConstructor).parameters) == ["channels", "times"]
        block = OwnConstructor(4, times=3)
        assert len(block.branches) == 3 and block.mask.shape == (1,)

    def test_the_positions_are_counted(self):
        with pytest.raises(TypeError, match="RepSRBlock: too many positional arguments"):
            RepSRBlock(3, 16, 3, 1, 1, 1, 1, True, "zeros", None, None, 2)
        with pytest.raises(TypeError, match="RepSRBlock: missing a required.* argument: 'in_channels'"):
            RepSRBlock()

    def test_a_function_that_makes_norms_is_not_kept_so_that_the_block_can_be_pickled(self):
        block = RepSRBlock(
            4, bn=lambda channels: nn.BatchNorm2d(channels, eps=0.25), sum_bn=lambda c: nn.BatchNorm2d(c)
        )
        assert block.branches[1].norm.eps == 0.25
        for copied in (pickle.loads(pickle.dumps(block)), copy.deepcopy(block)):
            assert copied.paths == 2 and repr(copied) == repr(block)


class TestRead:
    """What code that was written for convolutions reads of a block; that it is right for all, the contract checks."""

    @pytest.mark.parametrize("name", READ)
    @pytest.mark.parametrize("kind", ["RepSRBlock", "ConvBNBranch", "ReparamBlock"])
    def test_it_cannot_be_set(self, kind, name):
        module = KINDS[kind](ConvSpec(4))
        before = getattr(module, name)
        with pytest.raises(SpecError, match=rf"{name}=7 cannot be set: the spec of a {kind} is fixed .*{name}="):
            setattr(module, name, 7)
        assert getattr(module, name) == before == getattr(module.spec, name)

    def test_a_walk_over_convolutions_and_blocks_alike(self):
        net = nn.Sequential(RepSRBlock(3, 8, stride=2, bn=False), nn.Conv2d(8, 4, (1, 3), padding="same", dilation=2))
        assert [[getattr(layer, name) for name in READ] for layer in fuse(net)] == [
            [getattr(layer, name) for name in READ] for layer in net
        ]

    def test_the_class_has_them_for_documentation(self):
        assert all(inspect.isdatadescriptor(getattr(ReparamBlock, name)) for name in READ)


def test_what_type_checkers_are_asked_about_is_so_at_run_time():
    """Of the file that `mypy --strict` reads: the right lines run, and each wrong one fails."""
    path = Path(__file__).with_name("user_typed.py")
    names = runpy.run_path(str(path))
    assert (len(names["net"][2].branches), names["taps"], names["channels"]) == (2, (3, 3), 18)
    wrong = path.read_text().partition("def wrong() -> None:\n")[2].splitlines()
    assert len(wrong) == 6
    for line in wrong:
        with pytest.raises((OptionError, SpecError, TypeError), match="pathz|str|'16'|in_channels|positional|'paths'"):
            exec(line.strip(), names)


def test_a_partial_block_is_still_checked():
    with pytest.raises(OptionError, match="'pathz'"):
        of_spec(partial(RepSRBlock, pathz=1), ConvSpec(4))
