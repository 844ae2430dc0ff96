"""Two processes on gloo: blocks train under DDP without unused parameters, before and after freezing."""

import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from reparam import create_model, freeze_bn_stats, fuse


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


def test_ddp(tmp_path: Path):
    mp.spawn(worker, args=(free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["kind"] == "RepSR"
    for name, parameter in create_model("repsr_m1c4_x2").named_parameters():
        assert torch.equal(first["state"][name], second["state"][name]), name
        assert parameter.shape == first["state"][name].shape
    assert all(torch.isfinite(value).all() for value in first["fused"].values())
