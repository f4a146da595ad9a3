"""llama-bench of llama.cpp, `-o json` or `-o jsonl`.

Fields: https://github.com/ggml-org/llama.cpp/blob/master/tools/llama-bench/README.md, "Output formats": a list (or a
line each) of objects; `n_prompt` and `n_gen` say what was run, `avg_ts` and `stddev_ts` are tokens per second,
`samples_ts` those of the repetitions, `avg_ns` and `samples_ns` their times. Two things are other than here: a
generation begins with an empty context (`n_depth` tokens of it), and tokens are made up, not chosen from the logits.
"""

from __future__ import annotations

from typing import Any

from claimbench.exchange.imported import Workload, figure, settings

TOOL = "llama-bench"
SETTINGS = ("n_prompt", "n_gen", "n_depth", "n_batch", "n_ubatch", "n_threads", "n_gpu_layers", "flash_attn", "type_k")


def is_one(content: Any) -> bool:
    rows = content if isinstance(content, list) else [content]
    return bool(rows) and all(isinstance(row, dict) and {"avg_ts", "n_prompt", "n_gen"} <= row.keys() for row in rows)


def records(content: Any) -> list[Workload]:
    return [_workload(row) for row in (content if isinstance(content, list) else [content])]


def _workload(row: dict[str, Any]) -> Workload:
    prompt, generated = row["n_prompt"], row["n_gen"]
    near = "prefill_tok_s" if not generated else ("decode_tok_s" if not prompt else "tok_s")
    found = [
        *figure("avg_ts", "mean", row["avg_ts"], "tok/s", near, row.get("samples_ts")),
        *figure("stddev_ts", "standard deviation", row.get("stddev_ts"), "tok/s"),
        *figure("avg_ns", "mean", row.get("avg_ns"), "ns", None, row.get("samples_ns")),
    ]
    hardware = [row.get("cpu_info"), row.get("gpu_info")]
    return Workload(
        figures=tuple(found),
        settings=settings(row, SETTINGS),
        model=row.get("model_filename"),
        hardware=", ".join(filter(None, hardware)) or None,
        when=row.get("test_time"),
        tool_version=f"build {row.get('build_number')} ({row.get('build_commit')})",
    )
