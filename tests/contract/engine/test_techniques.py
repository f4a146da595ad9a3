"""Every technique of the engine keeps the contract: the same tokens, alone and in pairs, and proof."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from tests.contract.engine.conftest import FAMILIES, LoadEngine, RowsOf, Use, engine_cell, rows_of, save_family

from claimbench import backends, optimizations
from claimbench.errors import WrongOutput
from claimbench.schema.cell import Sampling

pytestmark = pytest.mark.model

SEAMS = backends.find("engine").SEAMS
NAMES = [name for name in optimizations.names() if optimizations.find(name).SEAM in SEAMS]

SAMPLED: dict[str, Any] = {"sampling": Sampling(temperature=1.5), "batch": 3}
SHOWN_BY: dict[str, dict[str, Any]] = {
    "packed_rows": {"workload": {"batch": 3, "shortest": 4}},
    "key_padding": {"with": ["cache_preallocated"]},
    "surgery": {"workload": {"batch": 3}},
    "vectorised_sampling": {"workload": SAMPLED},
    "counter_sampling": {"workload": SAMPLED},
    "compiled_block": {"settings": {"code": "traced"}},
    "compiled_step": {"settings": {"code": "traced"}},
    # the likeliest drafts leave seeded draws as they are, so that tokens can be compared where they are drawn
    "weight_int4": {"settings": {"compiled": False}},  # compiling is a test of its own
    "weight_int8": {"settings": {"compiled": False}},
    "weight_fp8": {"settings": {"compiled": False}},
    "draft_decoding": {"settings": {"draft": "tiny-draft", "drafts": "likeliest"}},
    "self_speculation": {"settings": {"drafts": "likeliest"}},
}
"""Settings and workloads by which a technique can be seen to act, where its defaults on one greedy row cannot."""


def module(name: str) -> Any:
    return optimizations.find(name)


def shown(name: str) -> tuple[list[Use], dict[str, Any]]:
    """The technique with what it needs, and the workload that shows it."""
    asked = SHOWN_BY.get(name, {})
    uses: list[Use] = [(name, asked.get("settings", {})), *sorted(getattr(module(name), "NEEDS", frozenset()))]
    return uses + asked.get("with", []), asked.get("workload", {})


def shown_together(one: str, other: str) -> tuple[list[Use], dict[str, Any]]:
    """Both with what they need; company that only shows one of them gives way where the other takes its seam."""
    uses_one, workload_one = shown(one)
    uses_other, workload_other = shown(other)
    kept: dict[str, Use] = {}
    for use in [uses_one[0], uses_other[0], *uses_one[1:], *uses_other[1:]]:
        name = use if isinstance(use, str) else use[0]
        if name in kept or module(name).SEAM not in {module(known).SEAM for known in kept}:
            kept.setdefault(name, use)
    return list(kept.values()), workload_one | workload_other


def fits(name: str, architecture: str) -> bool:
    """A fused GELU has nothing to do in a model that gates with SiLU."""
    uses, workload = shown(name)
    return fits_all(uses, architecture, workload)


def fits_all(uses: list[Use], architecture: str, workload: dict[str, Any]) -> bool:
    cell = engine_cell(*uses, architecture=architecture, **workload)
    return all(
        module(use.name).unavailable(cell, optimizations.settings_of(use.name, use.settings)) is None
        for use in cell.optimizations
    )


def redraws(name: str) -> bool:
    return getattr(module(name), "REDRAWS", False)


def reference_of(names: list[str], workload: dict[str, Any]) -> list[Use]:
    """Plain, but where tokens are drawn: then with what draws others, and nothing else."""
    drawn = workload.get("sampling") is not None
    return [use for name in names if drawn and redraws(name) for use in shown(name)[0]]


HERE = [name for name in NAMES if any(fits(name, architecture) for architecture in FAMILIES)]
EXACT = [name for name in HERE if module(name).EXACT]


def clash(one: str, other: str) -> bool:
    clashes = getattr(module(one), "CLASHES", frozenset()) | getattr(module(other), "CLASHES", frozenset())
    needs = getattr(module(one), "NEEDS", frozenset()) | getattr(module(other), "NEEDS", frozenset())
    everybody = {one, other} | needs
    taken = [module(name).SEAM for name in everybody]
    return bool(clashes & everybody) or len(set(taken)) < len(taken)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [(name, family) for name in EXACT for family in FAMILIES if fits(name, family)],
)
def test_it_says_the_same_in_every_family(
    name: str, architecture: str, load_engine: LoadEngine, told: RowsOf, draft_of: Any
) -> None:
    uses, workload = shown(name)
    draft = draft_of(name, architecture)
    session = load_engine(*uses, architecture=architecture, draft=draft, **workload)
    rows = told(*reference_of([name], workload), architecture=architecture, **workload)
    if redraws(name):
        greedy = workload | {"sampling": None}
        plain = told(architecture=architecture, **greedy)
        assert rows_of(load_engine(*uses, architecture=architecture, draft=draft, **greedy)) == plain
    assert rows_of(session) == rows
    assert rows_of(session) == rows, "the second generation differs from the first"
    assert name in session.prove()["optimizations"]
    assert rows_of(session) == rows, "the proof changed the session"


@pytest.mark.parametrize("name", HERE)
def test_the_proof_fails_when_it_did_not_run(
    name: str, load_engine: LoadEngine, draft_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = next(family for family in FAMILIES if fits(name, family))
    uses, workload = shown(name)
    monkeypatch.setattr(module(name), "apply", lambda *_: None)
    session = load_engine(*uses, architecture=architecture, draft=draft_of(name, architecture), **workload)
    rows_of(session)
    with pytest.raises(WrongOutput, match=f"{name} did not run"):
        session.prove()


PAIRS = [pair for pair in combinations(EXACT, 2) if not clash(*pair)]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_it_goes_together_with_every_other_seam(
    name: str, load_engine: LoadEngine, told: RowsOf, draft_of: Any
) -> None:
    """One session for each pair of techniques in float32, in a family that both can serve."""
    for one, other in PAIRS:
        if one != name:
            continue
        uses, workload = shown_together(one, other)
        together = [family for family in FAMILIES if fits_all(uses, family, workload)]
        if not together:
            continue
        family = together[0]
        draft = draft_of(one, family) or draft_of(other, family)
        reference = told(*reference_of([one, other], workload), architecture=family, **workload)
        session = load_engine(*uses, architecture=family, draft=draft, **workload)
        assert rows_of(session) == reference, f"{one} with {other} on {family}"
        assert {one, other} <= set(session.prove()["optimizations"]), f"{one} with {other} on {family}"


LOSSY = [name for name in HERE if name not in EXACT]


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_technique_is_close_to_what_it_rounds(name: str, load_engine: LoadEngine) -> None:
    uses, workload = shown(name)
    session, plain = load_engine(*uses, **workload), load_engine(**workload)
    rows = rows_of(session)
    assert rows_of(session) == rows
    ours, theirs = session.log_probs(rows[0]), plain.log_probs(rows[0])
    assert 0 < float((theirs.exp() * (theirs - ours)).sum(-1).mean()) < 0.5
    assert session.memory()["step_weights"] < 0.5 * plain.memory()["step_weights"]


@pytest.mark.parametrize("name", LOSSY)
def test_the_compiled_product_of_codes_is_the_plain_one(name: str, load_engine: LoadEngine) -> None:
    compiled, plain = (load_engine((name, {"compiled": how})) for how in (True, False))
    rows = rows_of(plain)
    assert float((compiled.log_probs(rows[0]) - plain.log_probs(rows[0])).abs().max()) < 1e-4
    assert compiled.prove()["optimizations"][name]["compiled_regions"] > 0
    assert plain.prove()["optimizations"][name]["compiled_regions"] == 0


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_technique_is_proven_beside_every_other_seam(name: str, load_engine: LoadEngine, draft_of: Any) -> None:
    """Tokens may differ in the last bit of a rounding; what runs may not."""
    for other in EXACT:
        uses, workload = shown_together(name, other)
        together = [family for family in FAMILIES if fits_all(uses, family, workload)]
        if clash(name, other) or not together:
            continue
        family = together[0]
        session = load_engine(*uses, architecture=family, draft=draft_of(other, family), **workload)
        rows_of(session)
        assert {name, other} <= set(session.prove()["optimizations"]), f"{name} with {other} on {family}"


@pytest.fixture(scope="session")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same shapes with one layer: a draft that is often wrong."""
    depth = {"tiny-llama": "num_hidden_layers", "tiny-bigcode": "n_layer", "tiny-bloom": "n_layer"}
    return {
        family: save_family(tmp_path_factory.mktemp(f"draft-{family}"), family, **{depth[family]: 1})
        for family in FAMILIES
    }


@pytest.fixture
def draft_of(drafts: dict[str, Path]) -> Any:
    def find(name: str, architecture: str) -> Path | None:
        return drafts[architecture] if hasattr(module(name), "CHECKPOINT_SETTING") else None

    return find
