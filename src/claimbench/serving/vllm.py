"""What vLLM's CPU build needs to be told, served or not, and what its counters say.

It computes on as many cores as there are threads, none kept back for its engine, which it would do by default. A number
of OpenMP threads in the environment would hold for the engine's own process as well, so it is taken away.
"""

from __future__ import annotations

import math
import os
import re
import sys
from importlib.util import find_spec

from claimbench.cost_model import cost
from claimbench.cost_model.decoder import Decoder
from claimbench.errors import Unavailable, WrongOutput
from claimbench.schema.cell import DTYPE_BYTES, Cell
from claimbench.serving.client import number
from claimbench.system import machine
from claimbench.system.cache import cache_folder

PYTHON_VARIABLE = "CLAIMBENCH_VLLM_PYTHON"
REMOVED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY")
HEAD_DIMS = frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512})
"""What its attention on a CPU says that it supports (`CPUAttentionBackend.get_supported_head_sizes`)."""
COUNTERS = ("prefix_cache_hits_total", "prompt_tokens_total", "generation_tokens_total", "num_preemptions_total")


def python() -> str:
    """The interpreter that has vLLM: this one, or the one that the variable names.

    Raises:
        Unavailable: neither.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        return named
    if find_spec("vllm") is None:
        raise Unavailable(f"not installed: vllm (envs/vllm.lock has it; {PYTHON_VARIABLE} may name its interpreter)")
    return sys.executable


def refusal(cell: Cell, started: bool) -> str | None:
    """Why a cell cannot run in the environment of `envs/vllm.lock`, or at all."""
    if cell.workload.sampling:
        return "its tokens are drawn by generators of its own: greedy workloads only"
    if not started:
        return None
    if cell.device != "cpu":
        return "envs/vllm.lock has vLLM's CPU build"
    architecture = cost.architecture_of(cell.checkpoint)
    if architecture is not None and architecture.head_dim not in HEAD_DIMS:
        return f"vLLM's attention on a CPU has no kernel for heads of {architecture.head_dim}"
    return None


def environment(cell: Cell, model: Decoder, prompt_tokens: int) -> dict[str, str]:
    cores = sorted(os.sched_getaffinity(0))
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores[: cell.protocol.threads or machine.usable_cores()])),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(cache_gib(cell, model, prompt_tokens)),
        "VLLM_CACHE_ROOT": str(cache_folder("vllm")),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def cache_gib(cell: Cell, model: Decoder, prompt_tokens: int) -> int:
    """Room for every row at full length and some blocks to spare, in whole GiB."""
    length = prompt_tokens + cell.workload.new_tokens
    needed = cost.kv_bytes(model, cell.workload.batch + 1, length, DTYPE_BYTES[cell.dtype])
    return max(1, math.ceil(needed / (1 << 30)))


def counters(text: str) -> dict[str, float]:
    """The counters that the proof keeps, from the server's metrics page."""
    found = {}
    for name in COUNTERS:
        values = re.findall(rf"^vllm:{name}(?:{{[^}}]*}})? ([0-9.e+]+)$", text, flags=re.MULTILINE)
        if values:
            found[name] = sum(map(number, values))
    return found


def check_counters(found: dict[str, float]) -> dict[str, float]:
    """Raises WrongOutput if a prompt was taken from the prefix cache: then its prefill was none."""
    if found.get("prefix_cache_hits_total"):
        raise WrongOutput(
            f"the prefix cache answered for {found['prefix_cache_hits_total']:.0f} tokens: it is to be off"
        )
    return found
