"""Two processes on gloo: what blocks learn under DDP is what they learn in one process."""

import re
from contextlib import nullcontext
from itertools import product

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch_start  # noqa: F401  # the two processes start as the tests do
from helpers import assert_close
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from reparam import (
    Branch,
    FrozenStatsBN,
    ReparamBlock,
    RepSRBlock,
    RepVGGBlock,
    create_model,
    export,
    freeze_bn_stats,
    fuse,
    macs,
    save_checkpoint,
    set_fold,
    swap_convs,
    tune_fold,
    verify,
)
from reparam.bench._launches import launches
from reparam.errors import ReparamError


def train(rank: int) -> dict:
    torch.manual_seed(0)
    net = create_model("repsr_m1c4_x2").double()
    model = DistributedDataParallel(net, find_unused_parameters=False)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(6):
        if step == 3:
            freeze_bn_stats(model)
        x = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(10 * step + rank)).double()
        optimizer.zero_grad()
        (model(x) - 0.5).square().mean().backward()
        optimizer.step()
    plain = fuse(model)
    return {"state": net.state_dict(), "fused": plain.state_dict(), "kind": type(plain).__name__}


def synced(fold) -> torch.nn.Module:
    torch.manual_seed(0)
    net = torch.nn.Sequential(RepSRBlock(3, 4, gain=1.0), torch.nn.PReLU(4), RepVGGBlock(4)).double()
    net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    set_fold(net, fold)
    return net


def joined_batch() -> torch.Tensor:
    return torch.rand(5, 3, 6, 7, generator=torch.Generator().manual_seed(0)).double()


def loss_of(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net(x).pow(3).sum()


def sum_synced(rank: int) -> dict:
    results = {}
    for fold in (True, False):
        net = synced(fold)  # without DDP, which refuses SyncBatchNorm on the CPU; what it does is the sum below
        x = joined_batch()[:2] if rank == 0 else joined_batch()[2:]  # batches of different sizes
        seen = launches(lambda net=net, x=x: loss_of(net, x).backward())
        for parameter in net.parameters():
            dist.all_reduce(parameter.grad)
        gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
        results[fold] = {"gradients": gradients, "buffers": dict(net.named_buffers()), "seen": seen}
    return results


WAYS = {
    "plain": {},
    "unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
    "views": {"gradient_as_bucket_view": True},
    "checkpoints": {},
    "checkpoints, static": {"static_graph": True},
    "skips one": {"find_unused_parameters": True},
    "skips one by rank": {"find_unused_parameters": True},
    "accumulates": {},
}
"""What DDP is told, by what is tried."""


class Net(torch.nn.Module):
    """Frozen blocks that compute their kernels at once."""

    def __init__(self, way: str, rank: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = create_model("repsr_m2c4_x2").body
        self.body(torch.rand(2, 3, 6, 6))
        freeze_bn_stats(self.body)
        set_fold(self.double(), True)
        self.checkpoints = way.startswith("checkpoints")
        self.skipped = {"skips one": 2, "skips one by rank": 2 + 2 * rank}.get(way)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.body):
            if index != self.skipped:
                x = checkpoint(layer, x, use_reentrant=False) if self.checkpoints else layer(x)
        return x


def batch(rank: int, number: int) -> torch.Tensor:
    return torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(10 * number + rank)).double()


def gather_gradients(rank: int) -> dict:
    results = {}
    for way, options in WAYS.items():
        net = Net(way, rank)
        model = DistributedDataParallel(net, **options)
        for step in range(3):  # more than the one that a static graph is learnt from
            model.zero_grad()
            with model.no_sync() if way == "accumulates" else nullcontext():
                loss_of(model, batch(rank, step)).backward()
            if way == "accumulates":
                loss_of(model, batch(rank, step + 3)).backward()
        at_once = [block._share._taken for block in net.modules() if isinstance(block, ReparamBlock)]
        results[way] = [p.grad for p in net.parameters()], at_once
    return results


def mean_of_gradients(way: str) -> list[torch.Tensor | None]:
    """Those of both shares, each by branches in this process."""
    of_ranks = []
    for rank in range(2):
        net = Net(way, rank)
        set_fold(net, False)
        for number in (2, 5) if way == "accumulates" else (2,):
            loss_of(net, batch(rank, number)).backward()
        of_ranks.append([p.grad for p in net.parameters()])
    return [
        None if a is b is None else ((a if a is not None else 0) + (b if b is not None else 0)) / 2
        for a, b in zip(*of_ranks)
    ]


SHARDED = {
    "the network": lambda module: False,
    "blocks": lambda module: isinstance(module, ReparamBlock),
    "branches": lambda module: isinstance(module, Branch) and not isinstance(module, ReparamBlock),
    "layers": lambda module: isinstance(module, (nn.Conv2d, nn.BatchNorm2d)),
}
"""What `fully_shard` is called on besides the network."""
FOLDS = (True, False, "auto")


def swapped() -> nn.Module:
    """A network of a user with blocks in it; its first and last layers stay."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3, padding=1), nn.PReLU(6), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1))
    net = nn.Sequential(nn.Sequential(*layers)).double()
    swap_convs(net, RepSRBlock, match="0.[02]")
    return net


def trained(model: nn.Module, rank: int) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)  # Adam makes large steps of gradients that are rounding alone
    for step in range(4):
        if step == 2:
            freeze_bn_stats(model)
        optimizer.zero_grad()
        loss_of(model, batch(rank, step)).backward()
        optimizer.step()
    return model


def refusal(do) -> str:
    """What is said of something that cannot be done."""
    try:
        do()
    except ReparamError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def shard(rank: int, folder: str) -> dict:
    """Under FSDP what DDP learns, and what is said where no process has all numbers."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    results = {}
    for fold, (way, also) in product(FOLDS, SHARDED.items()):
        nets = swapped(), swapped()
        for net in nets:
            set_fold(net, fold)
        for module in [module for module in nets[0].modules() if also(module)]:
            fully_shard(module)
        sharded = fully_shard(nets[0])
        result = results[way, fold] = {}
        result["trains"] = refusal(lambda sharded=sharded: trained(sharded, rank))
        if result["trains"] != "done":
            continue
        result["wanted"] = trained(DistributedDataParallel(nets[1], broadcast_buffers=False), rank).module.state_dict()
        result["got"] = get_model_state_dict(sharded, options=options)
        result["frozen"] = [
            isinstance(module, FrozenStatsBN) for module in sharded.modules() if isinstance(module, nn.BatchNorm2d)
        ]
        if fold != "auto":  # which none of these asks about
            continue
        result["fuse"] = refusal(lambda sharded=sharded: fuse(sharded))
        result["save"] = refusal(lambda sharded=sharded: save_checkpoint(sharded, f"{folder}/{rank}.safetensors"))
        result["verify"] = refusal(lambda sharded=sharded, net=nets[1]: verify(sharded, net, joined_batch()))
        result["macs"] = refusal(lambda sharded=sharded: macs(sharded, joined_batch()))
        result["export"] = refusal(lambda sharded=sharded: export(sharded, f"{folder}/net.pt2", example=joined_batch()))
        result["tune"] = refusal(lambda sharded=sharded: tune_fold(sharded, joined_batch(), rounds=1))
        result["swap"] = refusal(lambda sharded=sharded: swap_convs(sharded, RepSRBlock, match="0.3"))
    return results


def worker(rank: int, out: str) -> None:
    """Does all at once, as each start of two processes takes seconds.

    They meet in a file, as a port that was free may be taken a moment later, and part together, as what one
    of them still sends or receives fails when the other is gone.
    """
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.save(
        {"train": train(rank), "synced": sum_synced(rank), "ways": gather_gradients(rank), "shard": shard(rank, out)},
        f"{out}/{rank}.pt",
    )
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_kernels_at_once_are_those_of_one_process(ranks: list[dict], way: str):
    expected = mean_of_gradients(way)
    scale = max(float(gradient.abs().max()) for gradient in expected if gradient is not None)
    for rank in range(2):
        gradients, at_once = ranks[rank]["ways"][way]
        assert at_once.count(True) == 4 - ("skips" in way)
        for gradient, wanted in zip(gradients, expected, strict=True):
            assert (gradient is None) == (wanted is None)
            if wanted is not None:
                assert_close(gradient, wanted, scale=scale)


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("way", SHARDED)
def test_a_sharded_network_learns_what_ddp_does(ranks: list[dict], way: str, fold):
    for rank in range(2):
        result = ranks[rank]["shard"][way, fold]
        if way in ("branches", "layers") and fold is True:
            assert re.match(
                r"SpecError: fold=True is not possible for '.*sharded by itself; shard the whole block",
                result["trains"],
            )
            continue
        assert result["trains"] == "done"
        assert all(result["frozen"]) and len(result["frozen"]) == 4
        for name, wanted in result["wanted"].items() if rank == 0 else ():  # who alone gets the whole
            torch.testing.assert_close(result["got"][name], wanted, rtol=1e-9, atol=1e-9, msg=name)
        if fold != "auto":
            continue
        assert re.match("FuseError: .* sharded over processes.*get_model_state_dict", result["fuse"])
        for name in ("verify", "macs", "export"):
            assert re.match("FuseError: .* sharded over processes", result[name]), name
        assert re.match("SpecError: cannot time .* sharded: tune first, then shard", result["tune"])
        assert re.match("CheckpointError: cannot write .* sharded over processes", result["save"])
        assert re.match(
            "SpecError: cannot swap inside of .* sharded over processes: swap first, then shard", result["swap"]
        )


def test_what_was_sharded_is_fused_from_its_whole_state_dict(ranks: list[dict]):
    result = ranks[0]["shard"]["blocks", "auto"]
    net = swapped()
    net.load_state_dict(result["got"])
    net.eval()  # what is collected has no metadata, which would say that it was frozen
    x = joined_batch()
    assert_close(fuse(net)(x), net(x))


def test_synced_statistics_are_those_of_the_joined_batch(ranks: list[dict]):
    for fold in (True, False):
        alone = synced(fold)
        loss_of(alone, joined_batch()).backward()
        for rank in range(2):
            result = ranks[rank]["synced"][fold]
            assert result["seen"]["allreduce_"] == 2 * 4, "one message each way for each of the norms side by side"
            assert not result["seen"]["_local_scalar_dense"], "a process waited for its device"
            for name, parameter in alone.named_parameters():
                torch.testing.assert_close(result["gradients"][name], parameter.grad, rtol=1e-10, atol=1e-10, msg=name)
            for name, buffer in alone.named_buffers():
                torch.testing.assert_close(result["buffers"][name], buffer, rtol=1e-12, atol=1e-13, msg=name)


def test_ddp(ranks: list[dict]):
    first, second = (results["train"] for results in ranks)
    assert first["kind"] == "RepSR"
    for name, parameter in create_model("repsr_m1c4_x2").named_parameters():
        assert torch.equal(first["state"][name], second["state"][name]), name
        assert parameter.shape == first["state"][name].shape
    assert all(torch.isfinite(value).all() for value in first["fused"].values())
