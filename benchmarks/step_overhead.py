"""What a decode step costs beside its arithmetic: plain, trimmed, compiled by the layer, compiled whole, captured.

A tiny model at batch 1, whose arithmetic takes next to nothing: what is left is Python and launches. All ways are
loaded in one process and take turns in random order; only ratios within a round are compared. The time is that of a
step alone (token ids in, logits out), without choosing a token. On a GPU the device is waited for after each turn.

    python benchmarks/step_overhead.py                          # tiny-llama, tiny-bigcode and tiny-bloom on the CPU
    python benchmarks/step_overhead.py --device cuda --architecture santacoder-small
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from claimbench import optimizations
from claimbench.analysis.stats import ratio_interval
from claimbench.backends import find
from claimbench.checkpoints.shard import shard
from claimbench.errors import ClaimbenchError
from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Workload

WAYS: dict[str, list[str]] = {
    "plain": [],
    "static cache": ["cache_static"],
    "trimmed": ["trimmed_step"],
    "trimmed, static cache": ["cache_static", "trimmed_step"],
    "compiled layer": ["cache_static", "compiled_block"],
    "compiled step": ["cache_static", "compiled_step"],
    "CUDA graphs": ["cache_static", "cuda_graphs"],
}
FAMILIES = ("tiny-llama", "tiny-bigcode", "tiny-bloom")


def weights(architecture: str, folder: Path) -> Checkpoint:
    checkpoint = Checkpoint(name=architecture, source=f"random://{architecture}?seed=0", architecture=architecture)
    shard(checkpoint, folder / "fetched", folder / "shards", max_shard_bytes=2_000_000_000)
    return checkpoint


def load(checkpoint: Checkpoint, folder: Path, techniques: list[str], device: Any, steps: int) -> Any:
    cell = Cell(
        checkpoint=checkpoint,
        backend="engine",
        optimizations=tuple(
            OptimizationUse(name=name, settings=optimizations.settings_of(name, {}).model_dump(mode="json"))
            for name in techniques
        ),
        workload=Workload(prompt="step", prompt_tokens=16, new_tokens=steps + 1),
        device=device,
    )
    return find("engine").load(cell, folder / "shards", None)


def step_us(session: Any, steps: int) -> float:
    """Microseconds of one step, over as many as the generation has."""
    import torch

    decoder = session.decoder
    with torch.inference_mode():
        decoder.prefill(None)
        token = decoder.batch.prompt[:, -1:].contiguous()
        _wait(session)
        begin = time.perf_counter_ns()
        for _ in range(steps):
            decoder.step(token, decoder.cache)
        _wait(session)
        return (time.perf_counter_ns() - begin) / 1e3 / steps


def _wait(session: Any) -> None:
    import torch

    if session.cell.device == "cuda":
        torch.cuda.synchronize()


def compare(architecture: str, device: str, steps: int, rounds: int) -> list[str]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint = weights(architecture, folder)
        sessions, lines = {}, []
        for way, techniques in WAYS.items():
            try:
                sessions[way] = load(checkpoint, folder, techniques, device, steps)
            except ClaimbenchError as reason:
                lines.append(f"{way:22} {reason}")
        for session in sessions.values():
            for _ in range(2):
                step_us(session, steps)
        taken: dict[str, list[float]] = {way: [] for way in sessions}
        for _ in range(rounds):
            for way in random.sample(list(sessions), len(sessions)):
                taken[way].append(step_us(sessions[way], steps))
        proofs = {way: session.prove() for way, session in sessions.items()}
        for way, times in taken.items():
            found = ratio_interval([[time] for time in times], [[time] for time in taken["plain"]])
            assert found is not None
            calls, operators = (
                statistics.median(proofs[way][f"{what}_per_step"]) for what in ("python_calls", "operators")
            )
            saved = statistics.median(plain - own for plain, own in zip(taken["plain"], times, strict=True))
            lines.append(
                f"{way:22} {statistics.median(times):8.1f} us"
                f"  {found.estimate:5.3f} ({found.low:.3f} to {found.high:.3f})"
                f"  saves {saved:7.1f} us"
                f"  {calls:5.0f} Python calls  {operators:5.0f} operators"
            )
        for session in sessions.values():
            session.close()
        return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", action="append", help=f"any number of them; {', '.join(FAMILIES)} by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    for architecture in arguments.architecture or FAMILIES:
        print(f"{architecture}, batch 1, {arguments.device}: a step, its time over plain's, 95 % interval")
        for line in compare(architecture, arguments.device, arguments.steps, arguments.rounds):
            print(f"  {line}", flush=True)


if __name__ == "__main__":
    main()
