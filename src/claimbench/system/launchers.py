"""Commands that start one process per rank, each running `python -m claimbench.measuring.rank_process ADDRESS`.

A backend's `launch` returns such a command without the address. A launcher tells each process who it is by environment
variables; `identify` reads those of torchrun, DeepSpeed, SLURM and MPI.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import TypedDict

from claimbench.schema.cell import Device
from claimbench.system import machine
from claimbench.system.processes import LOOPBACK, die_with_parent

PROGRAM = "claimbench.measuring.rank_process"
VARIABLES = {  # the first set that is there counts
    "RANK": ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"),
    "WORLD_SIZE": ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
    "LOCAL_RANK": ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"),
}


class Place(TypedDict):
    """Who a process is among those that a launcher started, under torch's names for it."""

    RANK: int
    WORLD_SIZE: int
    LOCAL_RANK: int


def torchrun(ranks: int, nodes: int = 1) -> list[str]:
    """torch's launcher on this machine, or one on each node of a SLURM job, which meet on the first.

    On one machine `--standalone` takes a free port of its own, so none can be in use.
    """
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks // nodes)]
    if nodes == 1:
        return [*run, "--standalone", "--local-addr", LOOPBACK, "-m", PROGRAM]
    step = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpu-bind=none"]
    with socket.create_server((address(), 0)) as free:
        endpoint = f"{address()}:{free.getsockname()[1]}"
    meet = ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", endpoint]
    return [*step, "--kill-on-bad-exit=1", *run, *meet, "-m", PROGRAM]


def address() -> str:
    """By which the other nodes of a job reach this one, its first: CLAIMBENCH_ADDRESS, or the host's name."""
    return os.environ.get("CLAIMBENCH_ADDRESS") or socket.gethostname()


def processes(ranks: int) -> list[str]:
    """Processes and nothing else, for a backend that has a rendezvous of its own or needs none."""
    return [sys.executable, "-m", __name__, str(ranks)]


def srun(ranks: int) -> list[str]:
    """SLURM's launcher inside a job on one node: a step that shares the cores, memory and GPUs of the one that asks.

    What that one asked for stands in the environment and would be asked for again, so all of it is said here.
    """
    run = ["srun", "--overlap", "--nodes=1", f"--ntasks={ranks}", "--cpus-per-task=1", "--overcommit"]
    return [*run, "--cpu-bind=none", "--kill-on-bad-exit=1", sys.executable, "-m", PROGRAM]


def identify() -> Place:
    """Of this process; afterwards the environment has it under these names.

    Raises:
        RuntimeError: the launcher told this process nothing.
    """
    return {"RANK": _read("RANK"), "WORLD_SIZE": _read("WORLD_SIZE"), "LOCAL_RANK": _read("LOCAL_RANK")}


def _read(name: str) -> int:
    variables = VARIABLES[name]
    value = next((os.environ[variable] for variable in variables if variable in os.environ), None)
    if value is None:
        raise RuntimeError(f"expected one of {', '.join(variables)} in the environment: start ranks by a launcher")
    os.environ[name] = value
    return int(value)


def rank() -> int:
    """Which rank this process is; 0 where a cell runs in one process."""
    return int(os.environ.get("RANK", "0"))


def too_many(ranks: int, device: Device, *, nodes: int = 1, oversubscribe: bool = False) -> str | None:
    """Why each rank cannot have a GPU or a core of its own here, or None. All nodes of a job are taken to be alike."""
    if ranks % nodes:
        return f"{ranks} devices do not divide over {nodes} nodes"
    held = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if nodes > held:
        job = f"sbatch --exclusive --nodes={nodes} --wrap 'snakemake --cores all'"
        return f"{nodes} nodes need a SLURM job of {nodes}, and this process has {held}: {job}"
    each = ranks // nodes
    if device == "cuda":
        gpus = len(machine.identify()["gpus"])
        return f"{each} ranks need {each} GPUs, and here are {gpus}: set devices to {gpus}" if each > gpus else None
    cores = machine.usable_cores()
    if each > cores and not oversubscribe:
        return f"{each} ranks need {each} cores, and here are {cores}: set devices to {cores} at most"
    return None


def threads(ranks: int, asked: int | None) -> int:
    """Of each rank: the cell's threads, shared out."""
    return max(1, (asked or machine.usable_cores()) // ranks)


def main(ranks: int, arguments: list[str]) -> int:
    """Start the ranks, and end all when one fails; the exit status is that one's."""
    die_with_parent()
    started = []
    for number in range(ranks):
        names = {"RANK": str(number), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(number)}
        command = [sys.executable, "-m", PROGRAM, *arguments]
        started.append(subprocess.Popen(command, env={**os.environ, **names}, preexec_fn=die_with_parent))
    try:
        while True:
            statuses = [process.poll() for process in started]
            failed = next((status for status in statuses if status), None)
            if failed is not None or None not in statuses:
                return abs(failed or 0)
            time.sleep(0.1)
    finally:
        for process in started:
            process.kill()
            process.wait()


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), sys.argv[2:]))
