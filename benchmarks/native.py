"""The native decode step against eager Transformers and against memory: how near is it to reading each weight once?

Batch 1, one process. In every round each contestant takes its turn, in random order: a read of a large buffer, eager
Transformers with a dynamic cache, and the native step in every format, each from the same prompt. Only ratios within a
round are compared, since a shared machine changes from one minute to the next. Run on a quiet machine:

    OMP_WAIT_POLICY=PASSIVE python benchmarks/native.py resources/checkpoints/smollm2-*
    taskset -c 0 python benchmarks/native.py --threads 1 resources/checkpoints/smollm2-*
    python benchmarks/native.py --phases resources/checkpoints/smollm2-*
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from claimbench.analysis.stats import ratio_interval
from claimbench.engine.model.read_spec import read_spec
from claimbench.engine.model.spec import Spec
from claimbench.engine.model.weights import Weights, read_weights
from claimbench.engine.native import build
from claimbench.engine.native.decoder import NativeDecoder
from claimbench.engine.native.packed_model import Formats, large_pages

FORMATS = {
    "float32": Formats(),
    "bfloat16": Formats("bfloat16", "bfloat16", "bfloat16"),
    "int8": Formats("int8", "int8", "int8"),
    "int4, head int8": Formats("int4", "int4", "int8"),
    "int4": Formats("int4", "int4", "int4"),
}
READ_BYTES = 1 << 29
READ_COLUMNS = 4096
PHASES = (
    "norm", "qkv", "wait", "attention", "wait", "merge", "out", "wait", "norm", "up", "wait", "read", "down", "wait",
    "head", "wait",
)  # fmt: skip


class Native:
    """A native decoder and its cache, filled with the prompt as Transformers computed it."""

    def __init__(self, spec: Spec, weights: Weights, formats: Formats, threads: int, cache: Any, room: int) -> None:
        self.flags = ("-march=native", "-DPHASES") if arguments.phases else ()
        self.decoder = NativeDecoder(spec, weights, formats, threads, self.flags)
        arch, self.prompt = spec.arch, cache.layers[0].keys.shape[2]
        shape = 1, arch.kv_heads, room, arch.head_dim
        self.keys, self.values = ([torch.zeros(shape) for _ in range(arch.layers)] for _ in range(2))
        for layer, keys, values in zip(cache.layers, self.keys, self.values, strict=True):
            keys[:, :, : self.prompt], values[:, :, : self.prompt] = layer.keys, layer.values
        self.start = torch.zeros(1, dtype=torch.int64)
        self.bytes = self.decoder.weight_bytes()

    def decode(self, token: torch.Tensor, tokens: int) -> list[int]:
        chosen = []
        for length in range(self.prompt, self.prompt + tokens):
            position = torch.tensor([length])
            logits = self.decoder.step(token[None], position[None], self.keys, self.values, self.start, length)
            token = logits[0].argmax(-1)
            chosen.append(int(token))
        return chosen

    def phases(self) -> str:
        """Microseconds of the fastest token by phase, as thread 0 saw them."""
        spent = (ctypes.c_double * len(PHASES))()
        library = build.library(self.flags)
        library.decoder_phases.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        library.decoder_phases(self.decoder._handle, spent)
        return ", ".join(f"{name} {ns / 1e3:.0f}" for name, ns in zip(PHASES, spent, strict=True))


class Eager:
    """Transformers as `generate` drives it, without what `generate` adds."""

    def __init__(self, model: Any, cache: Any) -> None:
        self.model = model
        self.filled = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
        self.bytes = sum(parameter.nbytes for parameter in model.parameters())  # the head is tied

    def decode(self, token: torch.Tensor, tokens: int) -> list[int]:
        from transformers import DynamicCache

        chosen, cache = [], DynamicCache()
        for number, layer in enumerate(self.filled):
            cache.update(*layer, number)
        for _ in range(tokens):
            logits = self.model(input_ids=token[:, None], past_key_values=cache, use_cache=True).logits
            token = logits[:, -1].argmax(-1)
            chosen.append(int(token))
        return chosen


def read_seconds(matrix: torch.Tensor, vector: torch.Tensor) -> float:
    """The shorter of a sum and a matrix-vector product, as Claimbench measures its ceiling."""

    def seconds(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return min(seconds(matrix.sum), seconds(lambda: matrix @ vector))


@torch.inference_mode()
def compare() -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(arguments.threads)
    folder: Path = arguments.checkpoint
    spec = read_spec(json.loads((folder / "config.json").read_text()))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = AutoTokenizer.from_pretrained(folder)(arguments.prompt, return_tensors="pt").input_ids
    filled = model(ids, use_cache=True)
    first, cache = filled.logits[:, -1].argmax(-1), filled.past_key_values
    weights = read_weights(folder, spec, torch.float32, "cpu")
    room = ids.shape[1] + arguments.tokens
    runners: dict[str, Any] = {
        name: Native(spec, weights, formats, arguments.threads, cache, room) for name, formats in FORMATS.items()
    }
    runners["eager float32"] = Eager(model, cache)
    matrix = large_pages(READ_BYTES).view(torch.float32).view(-1, READ_COLUMNS).fill_(1)
    vector = torch.ones(READ_COLUMNS)
    chosen = {name: runner.decode(first, arguments.tokens) for name, runner in runners.items()}
    seconds: dict[str, list[float]] = {name: [] for name in [*runners, "read"]}
    for _ in range(arguments.rounds):
        for name in random.sample(list(seconds), len(seconds)):
            if name == "read":
                seconds[name].append(read_seconds(matrix, vector) / READ_BYTES)
                continue
            start = time.perf_counter()
            runners[name].decode(first, arguments.tokens)
            seconds[name].append((time.perf_counter() - start) / arguments.tokens)
    reads = [1e-9 / second for second in seconds["read"]]
    lines = [
        f"{arguments.threads} threads, batch 1, {ids.shape[1]} tokens of prompt, {arguments.tokens} new, "
        f"{arguments.rounds} rounds; read bandwidth median {statistics.median(reads):.1f}, best {max(reads):.1f} GB/s",
        "",
        "| weights | bytes per token | tok/s, median | tok/s, best | against eager | of the ceiling, median | best | "
        "tokens as eager |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runner in runners.items():
        times, eager = seconds[name], seconds["eager float32"]
        against = ratio_interval([[t] for t in eager], [[t] for t in times])
        assert against is not None
        share = [runner.bytes * read / t for t, read in zip(times, seconds["read"], strict=True)]
        best = runner.bytes * min(seconds["read"]) / min(times)
        same = sum(a == b for a, b in zip(chosen[name], chosen["eager float32"], strict=True))
        cells = [
            name,
            f"{runner.bytes:,}",
            f"{1 / statistics.median(times):.1f}",
            f"{1 / min(times):.1f}",
            f"{against.estimate:.2f} ({against.low:.2f} to {against.high:.2f})",
            f"{statistics.median(share):.0%}",
            f"{best:.0%}",
            f"{same}/{arguments.tokens}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if arguments.phases:
        lines += ["", "Microseconds of the fastest token, by phase in order:"]
        lines += [f"- {name}: {runner.phases()}" for name, runner in runners.items() if isinstance(runner, Native)]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a folder of resources/checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="per turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--phases", action="store_true", help="say where a token's time goes; costs a little")
    parser.add_argument(
        "--prompt", default="The river Thames flows through southern England. It rises in Gloucestershire and flows"
    )
    arguments = parser.parse_args()
    print(compare())
