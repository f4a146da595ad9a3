"""Files of other tools: what they say is kept with where it came from, and never becomes a result.

The samples are what the tools' own documentation shows (llama-bench, AIPerf), and files of their users, shortened
(`vllm bench serve`, optimum-benchmark); the others follow the writers in vLLM's and GuideLLM's sources.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.handed_over import results_in
from tests.unit.projects import Say

from claimbench.errors import ResultError
from claimbench.exchange import imported
from claimbench.schema import measured_elsewhere
from claimbench.schema.measured_elsewhere import MeasuredElsewhere
from claimbench.schema.metrics import METRICS

DATA = Path(__file__).parent / "data" / "measured_elsewhere"
FILES = sorted(DATA.iterdir())


def figures(name: str) -> dict[tuple[int, str, str], tuple[float, str, str | None]]:
    """(workload, name, statistic) -> value, unit, and the metric that it is near to."""
    return {
        (record.place, one.name, one.statistic): (one.value, one.unit, one.near)
        for record in imported.read(DATA / name)
        for one in record.figures
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_known_and_says_where_it_came_from(path: Path) -> None:
    for place, record in enumerate(imported.read(path)):
        assert record.measured_by == "others"
        assert record.source == path.name
        assert record.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert record.place == place
        assert record.figures
        assert all(one.near is None or one.near in METRICS for one in record.figures)


def test_llama_bench_says_prompts_and_generations_apart() -> None:
    found = figures("llama-bench.json")
    assert found[0, "avg_ts", "mean"] == (7100.002165, "tok/s", "prefill_tok_s")
    assert found[1, "avg_ts", "mean"] == (118.881588, "tok/s", "decode_tok_s")
    assert figures("llama-bench.jsonl") == found
    first = imported.read(DATA / "llama-bench.json")[0]
    assert first.figures[0].samples == (6863.1, 7147.55, 7136.37, 7115.79, 7237.21)
    assert first.hardware == "AMD Ryzen 7 7800X3D 8-Core Processor, NVIDIA GeForce RTX 4080"
    assert (first.tool_version, first.when) == ("build 5163 (8cf427ff)", "2025-04-24T11:58:50Z")
    assert first.settings["n_prompt"] == "512"


def test_vllm_bench_has_three_kinds_of_files() -> None:
    serve = figures("vllm-serve.json")
    assert serve[0, "output_throughput", "total"] == (2249.247363167692, "tok/s", "load_tok_s")
    assert serve[0, "median_ttft_ms", "median"] == (52.999333499883505, "ms", "load_ttft_ms")
    assert serve[0, "p99_itl_ms", "p99"] == (34.21041540996155, "ms", None)
    assert figures("vllm-latency.json")[0, "percentiles", "p99"] == (1.2198, "s", None)
    assert figures("vllm-throughput.json")[0, "tokens_per_second", "total"][0] == 1280.0
    assert imported.read(DATA / "vllm-serve.json")[0].model == "meta-llama/Llama-3.2-3B-Instruct"


def test_guidellm_gives_successful_requests_alone_and_no_prompt_and_no_password() -> None:
    found = figures("guidellm.json")
    assert found[0, "time_to_first_token_ms", "median"] == (1005.89, "ms", "load_ttft_ms")
    assert found[0, "requests_per_second", "mean"] == (9.78, "1/s", "load_requests_per_s")
    record = imported.read(DATA / "guidellm.json")[0]
    assert (record.model, record.tool_version) == ("Qwen/Qwen3-0.6B", "0.5.2")
    assert record.settings["strategy.rate"] == "10.0"
    assert "private prompt" not in record.model_dump_json()
    assert "secret-word" not in record.model_dump_json()


def test_aiperf_and_optimum_benchmark_keep_the_units_of_their_files() -> None:
    assert figures("aiperf.json")[0, "request_throughput", "mean"] == (1.45, "requests/sec", "load_requests_per_s")
    assert figures("aiperf.json")[0, "request_latency", "p50"] == (2568.73, "ms", "load_end_to_end_ms")
    assert (0, "request_latency", "count") not in figures("aiperf.json")
    found = figures("optimum-benchmark.json")
    assert found[0, "prefill.latency", "mean"][:2] == (0.03244741096496582, "s")
    assert found[0, "decode.throughput", "total"] == (43.089241533217766, "tokens/s", "decode_tok_s")
    assert found[0, "load_model.memory.max_allocated", "maximum"] == (7372.498432, "MB", None)
    record = imported.read(DATA / "optimum-benchmark.json")[0]
    assert record.hardware == "AMD EPYC 7742 64-Core Processor, NVIDIA A100-SXM4-80GB, NVIDIA DGX Display"
    assert record.settings["transformers_version"] == "4.47.1"


def test_the_report_of_optimum_benchmark_may_come_without_its_config(tmp_path: Path) -> None:
    report = json.loads((DATA / "optimum-benchmark.json").read_text(encoding="utf-8"))["report"]
    (tmp_path / "benchmark_report.json").write_text(json.dumps(report), encoding="utf-8")
    (record,) = imported.read(tmp_path / "benchmark_report.json")
    assert record.model is None
    assert record.figures


BROKEN: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"tok/s: 12", "neither JSON nor JSON lines"),
    "no text": (b"\xff\xfe", "neither JSON nor JSON lines"),
    "nothing": (b"", "neither JSON nor JSON lines"),
    "another's": (b'{"speed": 12}', "JSON of no known tool"),
    "an empty list": (b"[]", "JSON of no known tool"),
    "a number": (b"3", "JSON of no known tool"),
    "no figure": (b'[{"avg_ts": null, "n_prompt": 1, "n_gen": 0}]', "not whole: it has no figure"),
    "text for a number": (b'[{"avg_ts": "fast", "n_prompt": 1, "n_gen": 0}]', "not whole"),
    "samples that are none": (b'[{"avg_ts": 1, "samples_ts": ["x"], "n_prompt": 1, "n_gen": 0}]', "not whole"),
    "an infinite figure": (b'[{"avg_ts": 1e999, "n_prompt": 1, "n_gen": 0}]', "not whole: it has no figure"),
    "metrics of another shape": (b'{"benchmarks": [{"metrics": {"request_latency": 3}}]}', "not whole"),
    "deep": (b"[" * 100_000, "neither JSON nor JSON lines"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_such_file_is_refused_in_one_line(name: str, tmp_path: Path, say: Say, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    content, words = BROKEN[name]
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ResultError, match=words):
        imported.read(tmp_path / "x.json")
    status, out, err = say("import", "x.json", "nowhere.json")
    assert (status, out) == (4, "")
    assert err.count("\n") == 2
    assert not (tmp_path / "results").exists()


def test_what_is_imported_is_sealed_and_enters_no_table_and_no_verdict(lab: Any, say: Say) -> None:
    results_in(lab, lab.folder / "a")
    before = say("check", "a")[1]
    status, out, _ = say("import", *map(str, FILES), "--output", "a/results/measured_elsewhere")
    assert status == 0
    assert "119 tok/s" in out
    assert "measured by others" in out
    assert say("check", "a")[1] == before
    assert "119 tok" not in say("claims", "--results", "a")[1]
    kept = sorted(Path("a/results/measured_elsewhere").iterdir())
    assert len(kept) == sum(len(imported.read(path)) for path in FILES)
    record = measured_elsewhere.read(kept[0])
    assert isinstance(record, MeasuredElsewhere)
    kept[0].write_text(kept[0].read_text(encoding="utf-8").replace('"value":', '"value":1', 1), encoding="utf-8")
    with pytest.raises(ResultError, match="edited"):
        measured_elsewhere.read(kept[0])
