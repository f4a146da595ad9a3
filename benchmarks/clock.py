"""The pipeline's clock against a bare loop: does measuring change what is measured?

One process and one loaded model per case; the pipeline's way (iterator, clock, token check) and a hand-written loop
with two clock readings take turns, in random order within each pair. Run on a quiet machine:

    OMP_WAIT_POLICY=PASSIVE python benchmarks/clock.py resources/checkpoints/smollm2-*
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

from claimbench.analysis.stats import ratio_interval
from claimbench.backends import find
from claimbench.measuring.clock import time_generation
from claimbench.optimizations import settings_of
from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Workload

CASES = {
    "eager, generate": [],
    "eager": ["forward_loop"],
    "SDPA": ["forward_loop", "sdpa"],
    "compiled": ["forward_loop", "sdpa", "static_cache", "compile_layer"],
}


def bare_loop(session: Any, new_tokens: int) -> float:
    """Seconds of a plain greedy loop over the same model; no hook, no iterator, no check."""
    import torch

    model, prompt = session.driven, session.prompt
    session.setup.phase.prefill = True
    start = time.perf_counter()
    with torch.no_grad():
        for context in session.setup.around[1:]:
            context().__enter__()
        cache = session._empty_cache(session.cell.workload)
        token = (
            model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)
        )
        for _ in range(new_tokens - 1):
            logits = model(input_ids=token[:, None], past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            token = logits[:, -1].argmax(-1)
    return time.perf_counter() - start


def bare_generate(session: Any, new_tokens: int) -> float:
    """Seconds of `model.generate` as a user calls it."""
    start = time.perf_counter()
    session.model.generate(
        session.prompt, attention_mask=session.prompt.new_ones(session.prompt.shape), max_new_tokens=new_tokens,
        do_sample=False, eos_token_id=None,
    )  # fmt: skip
    return time.perf_counter() - start


def compare(cell: Cell, checkpoint: Path, pairs: int) -> str:
    session = find(cell.backend).load(cell, checkpoint, None)
    bare = bare_loop if cell.uses("forward_loop") else bare_generate
    tokens = cell.workload.new_tokens

    def ours() -> float:
        sample, _ = time_generation(session.generate(), cell.workload)
        return sample.wall_ns / 1e9

    def theirs() -> float:
        return bare(session, tokens)

    for _ in range(3):
        ours(), theirs()
    measured: dict[Any, list[float]] = {ours: [], theirs: []}
    for _ in range(pairs):
        for way in random.sample([ours, theirs], 2):
            measured[way].append(tokens / way())
    session.close()
    # Pairs of neighbours in time are what is compared: each pair is a round of its own.
    found = ratio_interval([[x] for x in measured[ours]], [[x] for x in measured[theirs]])
    middle = sorted(measured[theirs])[pairs // 2]
    assert found is not None
    return f"{found.estimate:.4f}  ({found.low:.4f} to {found.high:.4f})  {middle:6.1f} tok/s bare, {pairs} pairs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--case", choices=CASES, action="append", help="one of the cases; all of them by default")
    arguments = parser.parse_args()
    print("pipeline's tok/s over the bare loop's (1 is: the clock costs nothing)")
    for name, techniques in ((name, CASES[name]) for name in arguments.case or CASES):
        cell = Cell(
            checkpoint=Checkpoint(name="smollm2", source="file://.", architecture="smollm2-135m"),
            backend="transformers",
            optimizations=tuple(
                OptimizationUse(name=t, settings=settings_of(t, {}).model_dump(mode="json")) for t in techniques
            ),
            workload=Workload(prompt="The keeper of the lighthouse", prompt_tokens=32, new_tokens=arguments.new_tokens),
            device=arguments.device,
        )
        print(f"{name:16}  {compare(cell, arguments.checkpoint, arguments.pairs)}", flush=True)


if __name__ == "__main__":
    main()
