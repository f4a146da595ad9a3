"""The machine's measured limits: how fast memory can be read, how fast matrices multiply.

A roofline from a data sheet flatters nobody but its author: these are the best of several plain kernels on this
machine, so that a cell at 90 % of its ceiling really has only 10 % left.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claimbench.errors import Unavailable
from claimbench.measuring.device_lock import device_lock
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.cell import Device, PageCache
from claimbench.system import machine, page_cache

if TYPE_CHECKING:
    import torch

Seconds = Callable[[Callable[[], "torch.Tensor"]], float]
"""How long a kernel takes."""

REPEATS = 7
ROUNDS = 3
"""Of everything: a shared machine's slow phases last some ten seconds, and a limit must not come from one."""
AT_LEAST_S = 0.6
"""Short kernels are repeated this long, so that one quiet moment of a shared machine is among them."""
DTYPES = ("float32", "bfloat16", "float16")
READ_BYTES = {"cpu": 1 << 29, "cuda": 1 << 32}
"""At most: several such arrays have to fit into a GPU beside what is there already."""
PARTS_OF_MEMORY = 8
FILE_BYTES = 1 << 28
FILE_READS = 3
MATRIX_SIDES = (256, 512, 1024, 2048, 4096, 8192)
LONGEST_PRODUCT_S = 0.25
"""Some CPUs multiply 16-bit floats a thousand times slower than 32-bit ones; larger matrices are then not tried."""


def measure_ceilings(device: Device, machine_key: str) -> Ceilings:
    """The best of some rounds; `copy_bytes_per_s` is of a GPU's memory only."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), machine.usable_cores()))  # torch knows nothing of a quota
    with device_lock(device), torch.inference_mode():
        rounds = [_rates(device) for _ in range(ROUNDS)]
        best = {name: max(rates[name] for rates in rounds) for name in rounds[0]}
        return Ceilings(
            device=device,
            machine=machine_key,
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            read_bytes_per_s=best["read"],
            matmul_flops_per_s={name: best[name] for name in DTYPES},
            file_read_bytes_per_s=file_read_rates(Path.cwd(), FILE_BYTES),
            copy_bytes_per_s=best.get("copy"),
        )


def _rates(device: Device) -> dict[str, float]:
    """Per second: bytes read, operations by dtype, and on a GPU bytes copied."""
    seconds = functools.partial(best_seconds, device)
    rates = {name: max(product_rates(device, name, LONGEST_PRODUCT_S, seconds).values()) for name in DTYPES}
    rates["read"] = _read_bandwidth(device)
    return rates | ({"copy": _copy_bandwidth()} if device == "cuda" else {})


def best_seconds(
    device: Device, run: Callable[[], torch.Tensor], at_least_s: float = AT_LEAST_S, repeats: int = REPEATS
) -> float:
    """The fastest of several runs: a limit is what the machine can do, not what it does on average."""
    import torch

    times: list[float] = []
    while len(times) < repeats + 2 or sum(times) < at_least_s:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[2:])


def read_bytes(device: Device) -> int:
    """By one run of a kernel that reads: whole rows of 4096 floats, and of a small memory an eighth."""
    if device == "cpu":
        rows = min(READ_BYTES[device], machine.memory_bytes() // PARTS_OF_MEMORY) // (4 * 4096)
        return rows * 4 * 4096
    import torch

    cuda: Any = torch.cuda
    rows = min(READ_BYTES[device], cuda.get_device_properties(0).total_memory // PARTS_OF_MEMORY) // (4 * 4096)
    return int(rows * 4 * 4096)


def reading_kernels(device: Device) -> list[Callable[[], torch.Tensor]]:
    """Each reads `read_bytes`, far more than any cache holds: a sum, and a matrix-vector product."""
    import torch

    matrix = torch.ones(read_bytes(device) // 4 // 4096, 4096, device=device)
    vector = torch.ones(4096, device=device)
    return [matrix.sum, lambda: matrix @ vector]


def _read_bandwidth(device: Device) -> float:
    """Bytes per second: the better of the kernels that read."""
    return read_bytes(device) / min(best_seconds(device, run) for run in reading_kernels(device))


def _copy_bandwidth() -> float:
    import torch

    source = torch.ones(read_bytes("cuda") // 4, device="cuda")
    target = torch.empty_like(source)
    return float(2 * source.nbytes / best_seconds("cuda", lambda: target.copy_(source)))


def file_read_rates(folder: Path, size: int) -> dict[str, float | None]:
    """Bytes per second of reading a file in `folder` from end to end, the best of some runs: `cold`, `warm`.

    None where the page cache cannot be brought into that state, as on a file system that lives in memory. A virtual
    machine's disk may be cached by its host: then even a cold read comes from memory, and is as real as a block's.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".claimbench-read-") as file:
        noise = os.urandom(1 << 20)  # a disk that compresses would read zeros for nothing
        for _ in range(-(-size // len(noise))):
            file.write(noise)
        file.flush()
        os.fsync(file.fileno())
        return {state: _file_read_rate(Path(file.name), state) for state in ("cold", "warm")}


def _file_read_rate(path: Path, state: PageCache) -> float | None:
    best = 0.0
    for _ in range(FILE_READS):
        try:
            page_cache.prepare([path], state)
        except Unavailable:
            return None
        start = time.perf_counter()
        page_cache.read(path)
        best = max(best, path.stat().st_size / (time.perf_counter() - start))
    return best


def product(device: Device, dtype: str, side: int) -> Callable[[], torch.Tensor]:
    """Multiplies two square matrices: 2 x side^3 operations."""
    import torch

    left, right = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
    return functools.partial(torch.matmul, left, right)


def product_rates(device: Device, dtype: str, longest_s: float, seconds_of: Seconds) -> dict[int, float]:
    """Operations per second, 2 per multiply-add, by the side of the matrices, up to one that takes `longest_s`."""
    rates: dict[int, float] = {}
    for side in MATRIX_SIDES:
        seconds = seconds_of(product(device, dtype, side))
        rates[side] = 2 * side**3 / seconds
        if seconds * 8 > longest_s:
            break
    return rates
