"""torch's process group of the ranks of a cell: gloo on a CPU, nccl on GPUs, each rank on a GPU of its own."""

from __future__ import annotations

import os

from claimbench.errors import Unavailable
from claimbench.schema.cell import Device


def join(device: Device) -> tuple[int, int]:
    """This process's rank and how many there are; MASTER_ADDR and MASTER_PORT come from the launcher.

    Raises:
        Unavailable: torch was built without it, or sees too few GPUs.
    """
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise Unavailable("this build of torch has no torch.distributed")
    if device == "cuda":
        local, seen = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= seen:
            raise Unavailable(f"rank {local} of this machine needs a GPU of its own, and torch sees {seen}")
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        own = torch.device("cuda", local) if device == "cuda" else None
        dist.init_process_group("nccl" if device == "cuda" else "gloo", device_id=own)
    return dist.get_rank(), dist.get_world_size()


def leave() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
