"""DeepSpeed with kernels of its own: what cannot run is told before, and all but the kernels runs on a CPU.

The tests marked `deepspeed` run in the backend's own environment: `make test-deepspeed` builds it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.contract.environments import python_of

from claimbench import backends, optimizations
from claimbench.backends import deepspeed_injection as backend
from claimbench.checkpoints.shard import shard
from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Protocol, Workload
from claimbench.system import launchers

RUN = pytest.mark.deepspeed
PROGRAM = Path(__file__).with_name("injected_on_a_cpu.py")


def cell(architecture: str, device: str = "cuda", **changed: Any) -> Cell:
    source = f"random://{architecture}?seed=0"
    named = {
        "checkpoint": Checkpoint(name="tiny", source=source, architecture=architecture),
        "backend": "deepspeed_injection",
        "workload": Workload(prompt="Once upon a time", new_tokens=8),
        "device": device,
        "protocol": Protocol(samples=1, warmup_max=1, timeout_s=300),
    }
    return Cell.model_validate({**named, **changed})


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (cell("tiny-bloom", "cpu"), "had not been implemented on CPU"),
        (cell("starcoder"), "no kernels to inject into gpt_bigcode"),
        (cell("mistral-7b"), "no kernels to inject into llama"),
        (cell("bloom-176b", options={"devices": 8, "checkpoint": "pre-sharded"}), "from pickles alone"),
    ],
)
def test_what_cannot_run_is_known_before_anything_starts(asked: Cell, reason: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(backend, "sys", SimpleNamespace(version_info=(3, 12)))
    assert reason in (backend.unavailable(asked) or "")


def test_a_python_without_wheels_of_its_transformers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "too_many", lambda *_, **__: None)
    for minor, reason in ((11, None), (12, None), (13, "Python 3.11 or 3.12"), (14, "Python 3.11 or 3.12")):
        monkeypatch.setattr(backend, "sys", SimpleNamespace(version_info=(3, minor)))
        told = backend.unavailable(cell("bloom-176b", options={"devices": 8}))
        assert told is None if reason is None else reason in (told or "")


def test_int8_is_part_of_its_kernels_alone() -> None:
    technique = optimizations.find("deepspeed_int8")
    asked = cell("tiny-bloom", optimizations=(OptimizationUse(name="deepspeed_int8"),))
    assert technique.unavailable(asked, technique.Settings()) is None
    told = technique.unavailable(cell("tiny-bloom", "cpu"), technique.Settings())
    assert "Data type torch.int8 is not supported" in (told or "")
    with_seam = {name for name in backends.names() if "injected" in backends.find(name).SEAMS}
    assert with_seam == {"deepspeed_injection"}


@RUN
def test_the_environment_is_whole_and_has_the_last_transformers_that_is_injected_into() -> None:
    python = python_of("deepspeed_injection")
    said = subprocess.run([str(python), "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout
    program = "import deepspeed, transformers; print(transformers.__version__)"
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "4.43.4"


@RUN
@pytest.mark.parametrize(("ranks", "batch", "prompt_tokens"), [(1, 1, 5), (1, 2, 5), (2, 1, 5), (2, 2, 5), (1, 1, 1)])
def test_bloom_with_deepspeeds_layers_gives_the_tokens_and_odds_of_transformers(
    ranks: int, batch: int, prompt_tokens: int, tmp_path: Path
) -> None:
    """A prompt of one token looks like a step to its layers: what they keep of the pass before would be read."""
    workload = Workload(prompt="Once upon a time", prompt_tokens=prompt_tokens, new_tokens=8, batch=batch)
    asked = cell("tiny-bloom", "cpu", workload=workload, options={"devices": ranks})
    shard(asked.checkpoint, tmp_path / "fetched", tmp_path / "sharded", 2_000_000)
    whole = asked.model_copy(update={"backend": "transformers", "options": {}})
    plain = backends.find("transformers").load(whole, tmp_path / "sharded", None)
    expected = [step.tolist() for step in plain.generate()]
    odds = plain.log_probs([7, 70, 170, 270])  # [4, vocabulary]
    weights = plain.memory()["weights"]
    plain.close()

    found = said_by(ranks, asked, tmp_path)
    assert found["versions"]["transformers"] == "4.43.4"
    assert found["tokens"] == expected
    assert found["again"] == expected, "something was left of the passes before"
    arrived = odds.new_tensor(found["log_probs"])
    assert arrived.shape == odds.shape
    assert float((arrived - odds).abs().max()) < 1e-4
    assert found["proof"]["modules"]["DeepSpeedBloomInference"] == 2
    assert (found["memory"]["weights"] < 0.9 * weights) == (ranks == 2)


def said_by(ranks: int, asked: Cell, folder: Path) -> dict[str, Any]:
    """What the first rank says of the checkpoint in `folder`, in the backend's own environment."""
    python = python_of("deepspeed_injection")
    run = [str(python), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), str(PROGRAM)]
    done = subprocess.run(
        [*run, asked.model_dump_json(), str(folder / "sharded"), str(folder / "said.json")],
        env={**os.environ, "PYTHONPATH": str(Path("src").resolve()), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads((folder / "said.json").read_text(encoding="utf-8"))
    return said
