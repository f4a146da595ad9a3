"""Real systems take turns with Transformers in one round: ranks, servers, and environments of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.contract.environments import python_of
from tests.contract.models import save
from tests.contract.test_servers import save_letters

from claimbench import backends
from claimbench.analysis import validity
from claimbench.checkpoints import counting
from claimbench.checkpoints.shard import shard
from claimbench.measuring.arm import ArmRequest
from claimbench.measuring.block_request import BlockRequest
from claimbench.measuring.round_process import RoundRequest
from claimbench.measuring.rounds import measure_round
from claimbench.planning.result_key import key_of
from claimbench.schema.cell import Cell, Checkpoint, Protocol, Workload
from claimbench.schema.round import Arm

PASSES = 3
RANKS = {"devices": 2, "oversubscribe": True}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    root = tmp_path_factory.mktemp("tiny")
    save("llama", root / "source", hidden_size=128, head_dim=32)
    save_letters(root / "source")
    card = counting.count(json.loads((root / "source" / "config.json").read_text(encoding="utf-8")))
    checkpoint = Checkpoint(name="tiny", source=f"file://{root / 'source'}", card=card)
    shard(checkpoint, root / "fetched", root / "made")
    return checkpoint, root / "made"


System = tuple[str, dict[str, Any], str | None]
"""Backend, options, interpreter."""


def in_turn(
    tiny: tuple[Checkpoint, Path], output: Path, *systems: System, in_company: bool = True, dtype: str = "float32"
) -> list[Arm]:
    """The arms of a round of plain Transformers and of `systems`; not in company: of one, between two of the other."""
    checkpoint, folder = tiny
    arms = []
    for backend, options, python in (("transformers", {}, None), *systems):
        settings = backends.find(backend).Options.model_validate(options).model_dump(mode="json")
        cell = Cell(
            checkpoint=checkpoint,
            backend=backend,
            options=settings,
            workload=Workload(prompt="Once-upon-a-time", new_tokens=8, batch=2),
            dtype=dtype,
            device="cpu",
            protocol=Protocol(samples=1, warmup_max=2, timeout_s=300, threads=1),
        )
        reason = backends.find(backend).unavailable(cell)
        if reason:
            pytest.skip(reason)
        request = BlockRequest(cell=cell, checkpoint=folder)
        arms.append(ArmRequest(name=backend, block=request, key=key_of(cell, "m"), python=python))
    seated = tuple(arms) if in_company else (*arms, arms[0])
    request = RoundRequest(arms=seated, passes=PASSES, seed=0, in_company=in_company)
    return list(measure_round(request, output / "round.json").arms)


def check(arms: list[Arm]) -> None:
    """All their turns, the tokens of one process of Transformers, a proof, and nothing that computes while it waits."""
    for one in arms:
        assert one.result.outcome == "ok", (one.name, one.result.reason, one.result.detail)
        assert [turns.number for turns in one.turns] == list(range(PASSES))
        assert one.result.tokens == arms[0].result.tokens
        assert one.result.proof
        told = {"waiting_cpu": one.waiting_cpu}
        assert validity.weight(told), validity.sentences(told)


@pytest.mark.ranks
def test_ranks_of_the_engine_and_of_transformers(tiny: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    systems = [(name, RANKS, None) for name in ("engine_tensor_parallel", "transformers_tensor_parallel")]
    arms = in_turn(tiny, tmp_path, *systems)
    check(arms)
    assert [len(one.result.ranks) for one in arms] == [0, 2, 2]


@pytest.mark.servers
def test_transformers_own_server(tiny: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    check(in_turn(tiny, tmp_path, ("transformers_server", {}, None)))


@pytest.mark.servers
def test_tgi_sits_between_two_turns_of_the_other(tiny: tuple[Checkpoint, Path], tmp_path: Path, launcher: Path) -> None:
    """A program that speaks its API in its place: what is held to here is the launcher's life in a round."""
    first, system, again = in_turn(tiny, tmp_path, ("tgi", {}, None), in_company=False, dtype="bfloat16")
    for one, numbers in ((first, [0, 1]), (system, [0, 1, 2]), (again, [2])):
        assert one.result.outcome == "ok", (one.name, one.result.reason, one.result.detail)
        assert [turns.number for turns in one.turns] == numbers
    assert system.result.proof["server"]["version"] == "3.3.7"
    asked = json.loads(launcher.read_text(encoding="utf-8"))
    assert asked["body"]["inputs"] == "Once-upon-a-time"


def environment(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The interpreter of another environment, which runs this code."""
    python = python_of(name)
    monkeypatch.setenv("PYTHONPATH", str(Path("src").absolute()))
    return str(python)


@pytest.mark.deepspeed
def test_deepspeed_cut_and_streamed(
    tiny: tuple[Checkpoint, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = environment("deepspeed", monkeypatch)
    check(in_turn(tiny, tmp_path, ("deepspeed_inference", RANKS, own), ("deepspeed_zero", RANKS, own)))


@pytest.mark.vllm
@pytest.mark.parametrize("name", ["vllm_server", "vllm_offline"])
def test_vllm_whose_engine_may_spin_for_a_while_sits_between_two_turns_of_the_other(
    name: str, tiny: tuple[Checkpoint, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside others it took up to 0.8 of a core while they had their turn: whoever does is measured alone (ABBA)."""
    own = environment("vllm", monkeypatch)
    first, system, again = in_turn(tiny, tmp_path, (name, {"eager": True}, own), in_company=False)
    for one, numbers in ((first, [0, 1]), (system, [0, 1, 2]), (again, [2])):
        assert one.result.outcome == "ok", (one.name, one.result.reason, one.result.detail)
        assert [turns.number for turns in one.turns] == numbers
        assert one.result.tokens == first.result.tokens
        assert one.waiting_cpu == 0, "nobody else is there"
    assert system.result.proof
