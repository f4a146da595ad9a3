"""Models of every kind that people serve: what is counted before a download, and what runs on them."""

from __future__ import annotations

import gc
import json
import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tests.contract.conftest import rows_of, save_tokenizer
from tests.contract.models import KINDS, WRAPPERS, save

from claimbench import optimizations
from claimbench.backends import transformers as backend
from claimbench.checkpoints import counting
from claimbench.errors import Unavailable
from claimbench.schema.card import Card
from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Workload

pytestmark = [pytest.mark.model, pytest.mark.wide]
DOCS = Path(__file__).parents[2] / "docs" / "models.md"
TECHNIQUES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "plain": [],
    "sdpa": [("sdpa", {})],
    "static_cache": [("static_cache", {})],
    "static_cache in a loop": [("forward_loop", {}), ("static_cache", {})],
    "no_cache": [("no_cache", {})],
    "prompt_lookup": [("prompt_lookup", {})],
    "early_exit": [("early_exit", {"layers": 2, "confidence_threshold": 0})],
}
COMPILED = "compile_layer"
SEVERAL = "rows of several lengths"
PROMPT = "hello hello hello hello hello hello hello hello hello hello"
"""Longer than the windows of the tiny models, once ten tokens are behind it."""
TEXTS = (PROMPT, "the cat sat", "a small dog runs over the hill")
"""Of the rows of one batch: each must be answered as if it were alone."""
COMPILED_IN_CI = {
    *("llama", "gemma3", "mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "bloom", "opt", "gpt_neo", "mamba2"),
    *("falcon_h1", "qwen3_vl"),
}
"""Where one compiled layer is tried each time: at about 8 s each, the others have their turn in `make test-long`."""


class Made:
    """A tiny checkpoint on disk, and the numbers of the model that it was saved from."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        model = save(kind, folder)
        save_tokenizer(folder)
        self.folder = folder
        self.parameters = sum(one.numel() for one in model.parameters())
        self.kept = kept_by(model, tokens=48)
        self.card = counting.count(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def kept_by(model: Any, tokens: int) -> int:
    """Values that the model's own cache holds behind a prompt."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    with torch.no_grad():
        model(input_ids=torch.arange(tokens)[None] % 250, use_cache=True, **{counting.cache_argument(model): cache})
    return sum(counting._held(layer) for layer in cache.layers)


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    yield Made(request.param, tmp_path_factory.mktemp(request.param))
    gc.collect()


def cell_of(card: Card, uses: list[tuple[str, dict[str, Any]]], **workload: Any) -> Cell:
    return Cell(
        checkpoint=Checkpoint(name="tiny", source="file://tiny", card=card),
        backend="transformers",
        optimizations=tuple(
            OptimizationUse(name=name, settings=optimizations.settings_of(name, raw).model_dump(mode="json"))
            for name, raw in uses
        ),
        workload=Workload(new_tokens=8, **{"prompt": PROMPT, **workload}),
        device="cpu",
    )


def rows(made: Made, uses: list[tuple[str, dict[str, Any]]], **workload: Any) -> list[list[int]]:
    session = backend.load(cell_of(made.card, uses, **workload), made.folder, None)
    try:
        found = rows_of(session)
        gc.freeze()  # as a block does before its proof
        session.prove()
        return found
    finally:
        gc.unfreeze()
        session.close()


def outcome(made: Made, uses: list[tuple[str, dict[str, Any]]], plain: list[list[int]], **workload: Any) -> str:
    """As the table has it: the plain run's tokens, others, or the library's own reason why not."""
    try:
        return "same" if rows(made, uses, **workload) == plain else "other tokens"
    except Unavailable as refused:
        return f"unavailable: {str(refused).partition('. ')[0]}"


def outcomes(made: Made) -> dict[str, str]:
    """A line of the table, but for the compiled layer."""
    plain = rows(made, [])
    alone = [*plain, *(rows(made, [], prompt=text)[0] for text in TEXTS[1:])]
    together = outcome(made, [], alone, others=TEXTS[1:], batch=len(TEXTS))
    return {name: outcome(made, uses, plain) for name, uses in TECHNIQUES.items()} | {SEVERAL: together}


def told() -> dict[str, dict[str, str]]:
    """docs/models.md: for each kind of model what became of each technique."""
    lines = [line.split("|")[1:-1] for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    names, _, *found = [[cell.strip() for cell in line] for line in lines]
    return {kind.strip("`"): dict(zip(names[1:], cells, strict=True)) for kind, *cells in found}


def test_its_weights_are_counted_without_them(made: Made) -> None:
    assert made.card.weights == made.parameters


def test_what_it_keeps_is_counted_without_running_it(made: Made) -> None:
    assert made.card.kept_values(48) == made.kept


def test_what_runs_on_it_is_what_the_table_says(made: Made) -> None:
    if f"Transformers {version('transformers').rpartition('.')[0]}," not in DOCS.read_text(encoding="utf-8"):
        pytest.skip("the table is of another release of Transformers")
    expected = told()[made.kind]
    del expected[COMPILED]
    assert outcomes(made) == expected


def test_no_technique_changes_the_tokens_of_any_model() -> None:
    assert "other tokens" not in {cell for cells in told().values() for cell in cells.values()}
    assert set(told()) == set(KINDS)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_model_that_sees_as_well_runs_by_its_language_part(kind: str, tmp_path: Path) -> None:
    """A tower is counted apart, and a technique gives the plain run's tokens or the library's own reason."""
    seeing = Made(kind, tmp_path)
    assert (seeing.card.towers > 0) == (kind != "llama4"), "Transformers reads Llama 4's language part alone"
    found = outcomes(seeing)
    assert found.pop("early_exit").startswith("unavailable: Transformers 5.")
    if kind == "paligemma":  # Gemma 2 inside: no fused attention, and masks that a static cache does not get
        assert found.pop("sdpa").startswith("unavailable: ")
        assert found.pop("static_cache").startswith("unavailable: ")
    assert set(found.values()) == {"same"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in COMPILED_IN_CI else pytest.mark.long) for kind in KINDS]
)
def test_one_compiled_layer_gives_the_same_tokens(kind: str, tmp_path: Path) -> None:
    assert compiled(Made(kind, tmp_path)) == told()[kind][COMPILED]


def compiled(made: Made) -> str:
    import torch

    torch.compiler.reset()
    return outcome(made, [(COMPILED, {})], rows(made, []))


def line_of(kind: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        made = Made(kind, Path(folder))
        cells = [*outcomes(made).values(), compiled(made)]
    gc.collect()
    return f"| `{kind}` | {' | '.join(cells)} |"


def write_table() -> None:
    """What the tests above compare with, made anew: `python -m tests.contract.test_any_model`."""
    names = [*TECHNIQUES, SEVERAL, COMPILED]
    lines = [f"| model_type | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for line in pool.map(line_of, KINDS):
            lines.append(line)
            print(line, flush=True)
    text = DOCS.read_text(encoding="utf-8").partition("| model_type")[0]
    DOCS.write_text(text + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_table()
