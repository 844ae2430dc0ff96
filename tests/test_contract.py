"""Every exported branch and block against the contract, over geometry."""

import inspect

import pytest
import torch
from contract import (
    check_copies,
    check_dtype,
    check_equals_its_convolution,
    check_gradients,
    check_is_affine,
    check_meta,
)
from helpers import image, randomise
from hypothesis import given
from strategies import KINDS, cases

import reparam


def build(case):
    kind, spec, seed, size = case
    branch = randomise(KINDS[kind](spec).double(), seed).eval()
    reparam.set_fold(branch, False)  # a folded block would be compared with itself; test_fold.py compares the two
    return branch, image(spec, seed + 1, size)


@given(cases())
def test_equals_its_convolution(case):
    check_equals_its_convolution(*build(case))


@given(cases())
def test_is_affine(case):
    check_is_affine(*build(case))


@given(cases())
def test_gradients(case):
    check_gradients(*build(case))


@given(cases())
def test_copies(case):
    branch, x = build(case)
    fresh = KINDS[case[0]](case[1]).double().eval()
    reparam.set_fold(fresh, False)
    check_copies(branch, fresh, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@given(case=cases())
def test_dtype(case, dtype):
    check_dtype(*build(case), dtype)


@given(cases())
def test_meta(case):
    check_meta(*build(case))


@given(cases())
def test_frozen_in_train_mode_is_eval(case):
    branch, x = build(case)
    expected = branch(x)
    reparam.freeze_bn_stats(branch.train())
    torch.testing.assert_close(branch(x), expected, rtol=0, atol=0)
    assert branch.to_conv().training


def test_no_exported_branch_is_left_out():
    exported = {
        name
        for name in reparam.__all__
        if inspect.isclass(getattr(reparam, name)) and issubclass(getattr(reparam, name), reparam.Branch)
    }
    covered = {name.split()[0] for name in KINDS}
    assert exported - {"Branch"} == covered
