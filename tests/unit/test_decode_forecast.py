"""What a decode step launches and moves, counted on models without values: no kernel runs, and none is needed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.model
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def forecasts(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import decode_forecast  # type: ignore[import-not-found]

    yield decode_forecast
    del sys.modules["decode_forecast"]


def test_a_step_in_triton_is_five_or_six_kernels_a_layer_and_moves_little_beside_the_weights(
    forecasts: ModuleType,
) -> None:
    layers = 22
    for form in ("bfloat16", "int4"):
        model = forecasts.model_of("tinyllama-1.1b", form)
        for keys, of_layer in ((64, 5), (1024, 6)):
            counted = forecasts.count(model, keys, own=True)
            assert counted.launches == of_layer * layers + 2
            assert 1 < counted.bytes / forecasts.model_bytes(model, keys) < 1.01


def test_codes_weigh_what_their_format_says(forecasts: ModuleType) -> None:
    """Bits a weight: 16, 8.5, 8 and a scale a row, and 5; a head of 4 bits is as the layers here."""
    sizes = {form: forecasts.model_bytes(forecasts.model_of("tinyllama-1.1b", form), 0) for form in forecasts.FORMATS}
    matrices = 22 * (2048 * (2048 + 2 * 256) + 2048 * 2048 + 3 * 2048 * 5632) + 32000 * 2048
    norms = 2 * (2 * 22 + 1) * 2048
    assert sizes["bfloat16"] == 2 * matrices + norms
    assert sizes["int8"] == matrices * 34 // 32 + norms
    assert sizes["fp8"] == pytest.approx(matrices + norms, rel=2e-3)
    assert sizes["int4"] == (matrices - 32000 * 2048) * 20 // 32 + 32000 * 2048 * 34 // 32 + norms


def test_a_slower_launch_makes_the_host_the_later_one(forecasts: ModuleType) -> None:
    counted = forecasts.Counted(launches=1000, bytes=3_000_000_000)
    host, graph = (
        forecasts.Forecast("m", "bfloat16", forecasts.WAYS[name], 1, counted, 3_000_000_000)
        for name in ("host", "cuda_graphs")
    )
    assert graph.seconds(3e12, between_s=1e-6) == pytest.approx(2e-3)
    assert host.seconds(3e12, between_s=1e-6, launch_s=5e-6) == pytest.approx(5e-3)
    assert host.seconds(3e12, between_s=1e-6, launch_s=1e-6) == pytest.approx(2e-3)
    assert graph.of_read(3e12) == pytest.approx(1e-3 / graph.seconds(3e12))


def test_the_page_says_what_is_counted(forecasts: ModuleType) -> None:
    text = forecasts.PAGE.read_text(encoding="utf-8")
    assert text.startswith(forecasts.HEAD)
    section = text.partition("## tinyllama-1.1b")[2]
    assert [line for line in section.splitlines() if re.match(r"\| (operators|`triton)", line)] == [
        forecasts.row(one) for one in forecasts.forecasts("tinyllama-1.1b")
    ]
