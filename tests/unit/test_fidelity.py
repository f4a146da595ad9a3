"""How far a lossy model is from its reference, and what is said where the two do not fit in memory together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from claimbench import backends
from claimbench.errors import OutOfMemory, WrongOutput
from claimbench.measuring import worker
from claimbench.schema.cell import Cell, Checkpoint, Workload

torch = pytest.importorskip("torch")
REFERENCE = Cell(
    checkpoint=Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama"),
    backend="transformers",
    workload=Workload(prompt="Hello", new_tokens=2),
    device="cuda",
)


class Model:
    def __init__(self, log_probs: Any = None, fails: Exception | None = None) -> None:
        self.probabilities, self.fails = log_probs, fails
        self.closed = False

    def log_probs(self, tokens: list[int]) -> Any:
        if self.fails:
            raise self.fails
        return self.probabilities

    def close(self) -> None:
        self.closed = True


def said_with(monkeypatch: pytest.MonkeyPatch, ours: Model, reference: Model | Exception) -> list[dict[str, Any]]:
    """What a block says of the comparison, after which it goes on."""

    def load(*_: object) -> Model:
        if isinstance(reference, Exception):
            raise reference
        return reference

    monkeypatch.setattr(backends, "find", lambda _: SimpleNamespace(load=load))
    said: list[dict[str, Any]] = []
    worker._compare(ours, REFERENCE, Path(), [1, 2], lambda event, **more: said.append({"event": event, **more}))  # type: ignore[arg-type]
    return said


def log_probs(*rows: list[float]) -> Any:
    return torch.tensor(rows).log()


FULL = [
    OutOfMemory("the reference does not fit"),
    MemoryError(),
    RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    torch.OutOfMemoryError("CUDA out of memory"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["load", "reference", "own"])
def test_models_that_do_not_fit_together_leave_the_block_as_it_is(
    where: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = Model(log_probs([0.5, 0.5]), fails=error if where == "reference" else None)
    ours = Model(log_probs([0.5, 0.5]), fails=error if where == "own" else None)
    said = said_with(monkeypatch, ours, error if where == "load" else reference)
    assert [one["event"] for one in said] == ["phase", "fidelity", "flag"]
    assert said[1]["fidelity"] is None
    assert reference.closed == (where == "reference")


def test_other_failures_of_the_reference_are_not_taken_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        said_with(monkeypatch, Model(log_probs([0.5, 0.5])), RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(WrongOutput, match="NaN or infinity"):
        said_with(monkeypatch, Model(log_probs([0.5, 0.5])), Model(log_probs([1.0, 0.0])))


def test_the_distance_is_that_of_the_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, reference = log_probs([0.5, 0.5], [0.9, 0.1]), Model(log_probs([0.5, 0.5], [0.25, 0.75]))
    said = said_with(monkeypatch, Model(ours), reference)
    found = said[1]["fidelity"]
    expected = 0.25 * (torch.tensor(0.25 / 0.9)).log() + 0.75 * (torch.tensor(0.75 / 0.1)).log()
    assert found["kl_max_nats"] == pytest.approx(float(expected), rel=1e-5)
    assert found["kl_mean_nats"] == pytest.approx(float(expected) / 2, rel=1e-5)
    assert (found["positions"], found["top1_agreement"]) == (2, 0.5)
    assert reference.closed


def test_for_a_system_that_gives_no_probabilities_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server, or a system in an environment of its own, which may lack what the reference needs."""
    said = said_with(monkeypatch, Model(None), AssertionError("the reference was loaded"))
    assert said == [{"event": "phase", "name": "fidelity"}, {"event": "fidelity", "fidelity": None}]


def test_a_reference_that_gives_no_probabilities_leaves_it_at_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Model(None)
    said = said_with(monkeypatch, Model(log_probs([0.5, 0.5])), reference)
    assert [one["event"] for one in said] == ["phase", "fidelity"]
    assert reference.closed
