"""Drafts change the speed and nothing else: not the tokens, not their number, not the distribution they are drawn
from."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.contract.engine.conftest import FAMILIES, LoadEngine, RowsOf, Use, engine_cell, rows_of, save_family

from claimbench import optimizations
from claimbench.cost_model import cost
from claimbench.errors import Unavailable
from claimbench.schema.cell import Sampling

pytestmark = pytest.mark.model

DRAFT: Use = ("draft_decoding", {"draft": "tiny-draft", "tokens": 3})
LIKELIEST: Use = ("draft_decoding", {"draft": "tiny-draft", "tokens": 3, "drafts": "likeliest"})


def widths_of(session: Any) -> list[int]:
    return [columns.shape[1] for columns in session.generate()]


@pytest.mark.parametrize("wanted", [3, 4, 5, 6, 9])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("use", [DRAFT, ("lookup_decoding", {}), ("self_speculation", {})], ids=lambda use: use[0])
def test_rows_have_exactly_as_many_tokens_as_wanted(
    use: Use, batch: int, wanted: int, load_engine: LoadEngine, told: RowsOf, families: dict[str, Path]
) -> None:
    session = load_engine(use, draft=draft_for(use, families), new_tokens=wanted, batch=batch)
    rows = rows_of(session)
    assert [len(row) for row in rows] == [wanted] * batch
    assert rows == told(new_tokens=wanted, batch=batch)


def draft_for(use: Use, families: dict[str, Path]) -> Path | None:
    return families["tiny-llama"] if use[0] == "draft_decoding" else None


def test_a_draft_that_is_the_model_itself_is_always_right(load_engine: LoadEngine, families: dict[str, Path]) -> None:
    session = load_engine(DRAFT, draft=families["tiny-llama"], new_tokens=13, batch=2)
    assert widths_of(session) == [1, 4, 4, 4]
    assert session.decoder.draft.cache.length == session.decoder.cache.length - 1  # the last draft was not read


def test_all_rows_keep_as_many_as_the_row_that_agrees_with_the_fewest(load_engine: LoadEngine) -> None:
    uses: list[Use] = [("lookup_decoding", {"tokens": 4})]
    alone = [load_engine(*uses, prompt=prompt, new_tokens=30) for prompt in ("ab" * 8,)]
    together = load_engine(*uses, prompt="ab" * 8, new_tokens=30, batch=3, shortest=3)
    assert rows_of(together)[0] == rows_of(alone[0])[0]
    assert len(widths_of(together)) >= len(widths_of(alone[0]))


def test_text_that_repeats_itself_gives_several_tokens_a_step(load_engine: LoadEngine) -> None:
    session = load_engine("lookup_decoding", prompt="abababababab", new_tokens=40)
    widths = widths_of(session)
    assert sum(widths) == 40
    assert max(widths) > 2
    proof = session.prove()["optimizations"]["lookup_decoding"]
    assert proof["judged"] > 0


def test_the_latest_and_longest_repeat_is_followed() -> None:
    import torch

    from claimbench.engine.speculation import latest_repeat

    rows = torch.tensor([[1, 2, 3, 1, 2], [5, 1, 2, 1, 2], [1, 2, 3, 4, 5], [7, 7, 7, 7, 7], [1, 2, 9, 3, 2]])
    assert latest_repeat(rows, 2).tolist() == [2, 3, 5, 4, 2]
    assert latest_repeat(rows[1:2], 1).tolist() == [3]
    assert latest_repeat(rows[:, :1], 3).tolist() == [1, 1, 1, 1, 1]


def test_a_repeat_that_runs_into_the_end_goes_round() -> None:
    import torch

    from claimbench.engine.speculation import by_lookup

    said = torch.tensor([[4, 1, 2, 1, 2], [1, 2, 3, 4, 5]])
    decoder: Any = SimpleNamespace(sequence=said)
    cache: Any = None
    drafts = by_lookup(2)(decoder, cache, 5)
    assert drafts is not None
    assert drafts.tokens.tolist() == [[1, 2, 1, 2, 1], [5, 5, 5, 5, 5]]
    decoder.sequence = said[1:]
    assert by_lookup(2)(decoder, cache, 5) is None


SAMPLED = {"sampling": Sampling(temperature=0.7, top_k=8, repetition_penalty=1.1), "new_tokens": 12}


@pytest.mark.parametrize("workload", [{}, {"batch": 3, "shortest": 5}], ids=["one", "ragged"])
@pytest.mark.parametrize(
    "use", [LIKELIEST, ("lookup_decoding", {}), ("self_speculation", {"drafts": "likeliest"})], ids=str
)
def test_certain_drafts_give_the_tokens_of_the_same_seeds(
    use: Use, workload: dict[str, Any], load_engine: LoadEngine, families: dict[str, Path]
) -> None:
    workload = SAMPLED | workload
    session = load_engine(use, draft=draft_for(use, families), **workload)
    assert rows_of(session) == rows_of(load_engine(**workload))


@pytest.mark.parametrize("use", [DRAFT, ("self_speculation", {})], ids=lambda use: use[0])
def test_sampled_drafts_keep_to_what_the_request_allows(
    use: Use, load_engine: LoadEngine, families: dict[str, Path]
) -> None:
    """With one token allowed at each place, drawing is taking it: the rule must refuse all others."""
    workload: dict[str, Any] = {"sampling": Sampling(top_k=1), "new_tokens": 12, "batch": 2}
    session = load_engine(use, draft=draft_for(use, families), **workload)
    assert rows_of(session) == rows_of(load_engine(**workload))


class MarkovCache:
    length = 0

    def truncate(self, length: int) -> None:
        self.length = length


def markov_decoder(odds: Any, batch: int, draft: Any = None) -> Any:
    """A decoder whose next token depends on the last one alone, by a table of odds [tokens, tokens]."""
    import torch

    from claimbench.engine.batch import batch_of
    from claimbench.engine.buffers import Fresh
    from claimbench.engine.decoder import Decoder, Engine
    from claimbench.engine.kv_cache import CacheShape

    decoder = object.__new__(Decoder)
    decoder.engine = Engine(torch.float32, torch.device("cpu"), details=None)
    decoder.sequence = torch.zeros((batch, 1), dtype=torch.int64)
    decoder.sampling, decoder.draft = Sampling(temperature=1.0), draft
    decoder.sampler = decoder.engine.sampler(decoder.sampling, batch, torch.device("cpu"))
    shape = CacheShape(cost.architecture("tiny-llama"), batch, 0, torch.float32, torch.device("cpu"))
    decoder.batch = batch_of(decoder.sequence.tolist(), None, shape)
    decoder.buffers, decoder.cache = Fresh(decoder.batch, None), MarkovCache()  # type: ignore[assignment, arg-type]

    def step(tokens: Any, cache: Any) -> Any:
        cache.length += tokens.shape[1]
        return odds[tokens].log()

    decoder.step = step
    return decoder


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", ["sampled", "likeliest"])
def test_drafts_leave_the_distribution_as_it_is(kind: str, batch: int) -> None:
    """Chi-square of what follows each token, over one long generation with another model's drafts."""
    import torch
    from scipy.stats import chisquare

    from claimbench.engine.speculation import by_draft_model, speculate

    model = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.4, 0.1], [0.6, 0.1, 0.1, 0.2]])
    wrong = torch.tensor([[0.2, 0.3, 0.1, 0.4], [0.4, 0.2, 0.3, 0.1], [0.1, 0.5, 0.2, 0.2], [0.3, 0.3, 0.3, 0.1]])
    decoder = markov_decoder(model, batch, draft=markov_decoder(wrong, batch))
    first, wanted = torch.zeros(batch, dtype=torch.int64), 2500
    columns = list(speculate(by_draft_model(draw=kind == "sampled"), 3)(decoder, first, decoder.cache, wanted))
    assert max(own.shape[1] for own in columns) >= 3, "no pass kept several drafts"
    for row in torch.cat([first[:, None], *columns], 1).tolist():
        assert len(row) == wanted
        pairs = Counter(pairwise(row))
        for token in range(4):
            followed = torch.tensor([float(pairs[token, after]) for after in range(4)])
            assert chisquare(followed, followed.sum() * model[token]).pvalue > 1e-3
            assert chisquare(followed, followed.sum() * wrong[token]).pvalue < 1e-3, "the test could not tell"


def test_the_draft_is_served_by_the_other_techniques(load_engine: LoadEngine, families: dict[str, Path]) -> None:
    session = load_engine(DRAFT, "trimmed_step", "cache_static", draft=families["tiny-llama"])
    rows_of(session)
    assert type(session.decoder.draft.cache).__name__ == "AllocatedCache"
    assert session.prove()["optimizations"]["trimmed_step"]["module_calls_of_prefill"] > 0


def test_a_draft_of_another_vocabulary_is_refused(load_engine: LoadEngine, tmp_path: Path) -> None:
    other = save_family(tmp_path, "tiny-llama", vocab_size=200)
    with pytest.raises(Unavailable, match="draft and model must share a vocabulary, and these have 200 tokens and 320"):
        load_engine(DRAFT, draft=other)


def test_fewer_layers_must_draft_than_judge() -> None:
    module: Any = optimizations.find("self_speculation")
    for architecture in FAMILIES:
        reason = module.unavailable(engine_cell(architecture=architecture), module.Settings(layers=2))
        assert reason == "the model has 2 layers, and fewer must draft than judge"


@pytest.mark.parametrize("name", ["draft_decoding", "lookup_decoding", "self_speculation"])
def test_two_tokens_leave_nothing_to_draft(name: str) -> None:
    module: Any = optimizations.find(name)
    settings = {"draft": "tiny-draft"} if name == "draft_decoding" else {}
    cell = engine_cell((name, settings), new_tokens=2)
    assert "leaves nothing to draft" in module.unavailable(cell, module.Settings(**settings))
