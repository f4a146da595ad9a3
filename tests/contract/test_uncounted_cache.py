"""Models that keep between steps what cannot be counted on shapes: measured all the same, and said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.contract.conftest import rows_of, save_tokenizer
from tests.contract.models import save, tiny_config
from tests.contract.test_any_model import cell_of

from claimbench.analysis import roofline
from claimbench.backends import transformers as backend
from claimbench.checkpoints import counting
from claimbench.cost_model import cost, parallelism
from claimbench.schema.ceilings import Ceilings

pytestmark = pytest.mark.model


def test_a_model_with_a_cache_of_its_own_runs_and_its_bounds_are_without_that_cache(tmp_path: Path) -> None:
    model = save("minimax", tmp_path)
    save_tokenizer(tmp_path)
    card = counting.count(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))
    assert card.kept is None
    assert card.weights == sum(one.numel() for one in model.parameters())
    assert (card.kept_values(100), cost.kv_bytes(card, 2, 100, 4)) == (0, 0)
    assert parallelism.share_of(card, 2).kept is None
    session = backend.load(cell_of(card, []), tmp_path, None)
    assert len(rows_of(session)[0]) == 8
    memory = session.memory()
    assert "kv_cache" not in memory, "0 would be a number"
    assert list(session.prove()["caches"]) == ["DynamicCache (MiniMaxCache)"]
    session.close()
    ceilings = Ceilings(
        device="cpu", machine="m", torch="2", threads=1, read_bytes_per_s=1.0,
        matmul_flops_per_s={"float32": 1e30, "bfloat16": 1e30, "float16": 1e30},
    )  # fmt: skip
    limit = roofline.step_ms(cell_of(card, []), ceilings, 10, memory)
    assert limit == pytest.approx(memory["step_weights"] * 1e3)


@pytest.mark.parametrize(("kind", "lists"), [("longcat_flash", 28), ("kimi_linear", None)])
def test_layers_that_a_config_counts_in_halves_or_whose_cache_asks_for_values_are_counted(
    kind: str, lists: int | None
) -> None:
    config = tiny_config(kind)
    said = json.loads(config.to_json_string(use_diff=False)) | {"model_type": kind}
    card = counting.count(said)
    model = counting.meta_model(said)
    assert card.weights == sum(one.numel() for one in model.parameters())
    assert card.layers == (lists or config.num_hidden_layers)
    assert card.kept is None
