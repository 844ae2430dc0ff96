"""Every exported branch and block against the contract, over geometry."""

import copy
import inspect
import pickle

import pytest
import torch
from contract import (
    check_autocast,
    check_built_on_meta,
    check_copies,
    check_dtype,
    check_equals_its_convolution,
    check_frozen,
    check_gradients,
    check_is_affine,
    check_meta,
    check_reset,
)
from helpers import image, randomise
from hypothesis import given
from hypothesis import strategies as st
from strategies import KINDS, cases, fits

import reparam
from reparam.algebra._spec import PADDING_MODES


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


@given(cases())
def test_frozen(case):
    branch, x = build(case)
    fresh = KINDS[case[0]](case[1]).double()
    reparam.set_fold(fresh, False)
    check_frozen(branch, fresh, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@given(case=cases())
def test_dtype(case, dtype):
    check_dtype(*build(case), dtype)


@given(cases())
def test_meta(case):
    check_meta(*build(case))


@given(cases())
def test_built_on_meta(case):
    branch, x = build(case)

    def fresh():
        made = KINDS[case[0]](case[1]).double()
        reparam.set_fold(made, False)
        return made

    check_built_on_meta(branch, fresh, x)


@given(case=cases(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_reset(case, dtype):
    kind, spec, seed, _ = case
    handed_in = kind.startswith("SequentialBranch")  # layers that torch draws anew in the dtype that they have
    branch = randomise(KINDS[kind](spec), seed).to(torch.float32 if handed_in else dtype)
    pickled = [pickle.loads(pickle.dumps(branch))] * (kind != "ReparamBlock nested")  # which is built of a lambda
    for copied in (branch, copy.deepcopy(branch), *pickled):
        check_reset(copied, lambda: KINDS[kind](spec), seed)


@pytest.mark.parametrize("mode", ["eval", "frozen", "batch"])
@given(case=cases())
def test_autocast(case, mode):
    branch, x = build(case)
    branch.float().train(mode != "eval")
    if mode == "frozen":
        reparam.freeze_bn_stats(branch)
    reparam.set_fold(branch, case[2] % 2 == 1 and "auto")
    check_autocast(branch, x)


@pytest.mark.parametrize("size", [4, 64])
@pytest.mark.parametrize("kind", ["RepSRBlock", "RepVGGBlock", "ECB", "MBRConvBlock", "QARepVGGBlock"])
def test_autocast_whatever_the_size(kind, size):
    """Small images run the branches, large ones are folded."""
    check_autocast(KINDS[kind](reparam.ConvSpec(4)), torch.rand(4, 4, size, size))


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_autocast_whatever_the_padding(kind, padding_mode):
    """Also of a branch that pads and does no more, or normalizes only."""
    spec = reparam.ConvSpec(4, kernel_size=1, padding=1, padding_mode=padding_mode)
    if fits(kind, spec):
        branch = randomise(KINDS[kind](spec), 0)
        reparam.set_fold(branch, False)
        check_autocast(branch, torch.rand(2, 4, 6, 5))


@pytest.mark.parametrize(("mode", "bias"), [("batch", True), ("batch", False), ("frozen", True), ("eval", False)])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_empty_batch(kind, bias, mode):
    """As of a convolution and a batch norm of torch's: empty, counted, without a trace, and with gradients of zero."""
    spec = reparam.ConvSpec(3, bias=bias)
    if not fits(kind, spec):
        return
    for fold in (False, "auto", True):
        branch = randomise(KINDS[kind](spec), 0).train(mode != "eval")
        if mode == "frozen":
            reparam.freeze_bn_stats(branch)
        reparam.set_fold(branch, fold)
        before = {name: buffer.clone() for name, buffer in branch.named_buffers()}
        x = torch.rand(0, 3, 6, 7, requires_grad=True)
        y = branch(x)
        assert y.shape == (0, 3, 6, 7)
        y.sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in branch.parameters())
        for name, buffer in branch.named_buffers():
            counts = mode == "batch" and name.endswith("num_batches_tracked")
            assert torch.equal(buffer, before[name] + counts), name


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
    assert exported - {"Branch", "ChainBranch", "ConvBlock"} == covered
