"""Two processes on gloo: blocks train under DDP without unused parameters, before and after freezing."""

import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from reparam import RepSRBlock, RepVGGBlock, create_model, freeze_bn_stats, fuse, set_fold
from reparam.bench._launches import launches


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def worker(rank: int, port: int, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
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
    torch.save(
        {"state": net.state_dict(), "fused": plain.state_dict(), "kind": type(plain).__name__}, f"{out}/{rank}.pt"
    )
    dist.destroy_process_group()


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


def sync_worker(rank: int, port: int, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {}
    for fold in (True, False):
        net = synced(fold)  # without DDP, which refuses SyncBatchNorm on the CPU; what it does is the sum below
        x = joined_batch()[:2] if rank == 0 else joined_batch()[2:]  # batches of different sizes
        seen = launches(lambda net=net, x=x: loss_of(net, x).backward())
        for parameter in net.parameters():
            dist.all_reduce(parameter.grad)
        gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
        results[fold] = {"gradients": gradients, "buffers": dict(net.named_buffers()), "seen": seen}
    torch.save(results, f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_synced_statistics_are_those_of_the_joined_batch(tmp_path: Path):
    mp.spawn(sync_worker, args=(free_port(), str(tmp_path)), nprocs=2)
    for fold in (True, False):
        alone = synced(fold)
        loss_of(alone, joined_batch()).backward()
        for rank in range(2):
            result = torch.load(tmp_path / f"{rank}.pt")[fold]
            assert result["seen"]["allreduce_"] == 2 * 4, "one message each way for each of the norms side by side"
            assert not result["seen"]["_local_scalar_dense"], "a process waited for its device"
            for name, parameter in alone.named_parameters():
                torch.testing.assert_close(result["gradients"][name], parameter.grad, rtol=1e-10, atol=1e-10, msg=name)
            for name, buffer in alone.named_buffers():
                torch.testing.assert_close(result["buffers"][name], buffer, rtol=1e-12, atol=1e-13, msg=name)


def test_ddp(tmp_path: Path):
    mp.spawn(worker, args=(free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["kind"] == "RepSR"
    for name, parameter in create_model("repsr_m1c4_x2").named_parameters():
        assert torch.equal(first["state"][name], second["state"][name]), name
        assert parameter.shape == first["state"][name].shape
    assert all(torch.isfinite(value).all() for value in first["fused"].values())
