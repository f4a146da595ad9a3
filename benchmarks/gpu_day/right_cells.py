"""Every technique of the engine in three families, the studies' presets, and Transformers' matrix, on tiny models."""

from __future__ import annotations

import functools
from typing import Any

from gpu_day.record import Json
from gpu_day.stage import Check, Context, Skip
from gpu_day.tiny import DRAFT, FAMILIES, Asked, Use, hold

SAMPLED: dict[str, Any] = {"batch": 3, "temperature": 1.5}
RAGGED: dict[str, Any] = {"batch": 3, "shortest": 4}
SHOWN: dict[str, dict[str, Any]] = {
    "packed_rows": {"workload": RAGGED},
    "key_padding": {"with": ["cache_preallocated"]},
    "surgery": {"workload": {"batch": 3}},
    "vectorised_sampling": {"workload": SAMPLED},
    "counter_sampling": {"workload": SAMPLED},
    "draft_decoding": {"settings": {"draft": DRAFT, "drafts": "likeliest"}},
    "self_speculation": {"settings": {"drafts": "likeliest"}},
}
"""Settings and workloads by which a technique can be seen to act, where its defaults on one greedy row cannot."""
LEAN = ("simple_mask", "cache_static", "last_token_head", "details_on_demand", "vectorised_processing")
MASKED: tuple[str, ...] = ("cache_static", "cuda_graphs", "simple_mask")
TOGETHER: dict[str, tuple[list[str | Use], dict[str, Any]]] = {
    "graph, lean": ([*LEAN, "fused_layer_norm", "cuda_graphs"], {}),
    "graph, ragged": (["cache_static", "cuda_graphs"], RAGGED),
    "graph, 8 bits": (["cache_static", "cuda_graphs", ("weight_int8", {"compiled": False})], {}),
    "graph, 8 bits compiled": (["cache_static", "cuda_graphs", "weight_int8"], {}),
    "graph, 4 bits": (["cache_static", "cuda_graphs", ("weight_int4", {"compiled": False})], {}),
    "graph, Megatron's softmax": ([*MASKED, ("fused_softmax", {"how": "megatron"})], {}),
    "graph, Triton's softmax": ([*MASKED, ("fused_softmax", {"how": "triton"})], {}),
    "compiled step, reduce-overhead": (["cache_static", ("compiled_step", {"mode": "reduce-overhead"})], {}),
    "compiled step, max-autotune": (["cache_static", ("compiled_step", {"mode": "max-autotune"})], {}),
    "compiled, graph a bucket": (["cache_static", ("compiled_graphs", {"key_multiple": 4})], {}),
    "compiled, graph a bucket, ragged": (["cache_static", ("compiled_graphs", {"key_multiple": 4})], RAGGED),
    "Triton's step, ragged": (["triton_step"], RAGGED),
    "Triton's step, 8 bits": (["triton_step", ("weight_int8", {"compiled": False})], {}),
    "Triton's step, 4 bits": (["triton_step", ("weight_int4", {"compiled": False})], {}),
    "Triton's step, fp8": (["triton_step", ("weight_fp8", {"compiled": False})], {}),
    "Triton's step, launched ahead": ([("triton_step", {"dependent_launch": True})], {}),
    "compiled step, ragged": (["cache_static", "compiled_step"], RAGGED),
    "compiled step, 8 bits": (["cache_static", "compiled_step", "weight_int8"], {}),
    "look-up, graph": (["cache_static", "cuda_graphs", "lookup_decoding"], {}),
}
PRESETS = {"bigcode": ("flash", "vector", "bigcode", "bigcode2")}
"""By study."""
QUICK = ("cache_static", "trimmed_step", "weight_int8")
TRANSFORMERS: dict[str, list[str | Use]] = {
    "plain": [],
    "no cache": ["no_cache"],
    "static cache": ["static_cache"],
    "compiled layers": ["sdpa", "static_cache", "compile_layer"],
    "compiled layers, max-autotune": [
        "sdpa", "static_cache", ("compile_layer", {"mode": "max-autotune-no-cudagraphs"}),
    ],
    "compiled model": ["static_cache", "forward_loop", ("compile_model", {"fullgraph": True})],
    "compiled model, reduce-overhead": ["static_cache", "forward_loop", ("compile_model", {"mode": "reduce-overhead"})],
    "compiled model, max-autotune": ["static_cache", "forward_loop", ("compile_model", {"mode": "max-autotune"})],
    "wrapped": [("compile_wrapped", {"mode": "default"})],
    "8 bits, bitsandbytes": ["bitsandbytes_int8"],
    "4 bits, bitsandbytes": ["bitsandbytes_4bit"],
    "4 bits, fp4 twice quantised": [("bitsandbytes_4bit", {"quant_type": "fp4", "double_quant": True})],
    "8 bits, torchao": ["torchao_int8"],
    "8 bits, torchao, compiled layers": ["sdpa", "static_cache", "compile_layer", "torchao_int8"],
    "4 bits, torchao": [("torchao_int4", {"group_size": 32})],
    "assisted": [("assisted", {"draft": DRAFT, "num_assistant_tokens": 3, "confidence_threshold": 0})],
    "prompt lookup": ["prompt_lookup"],
    "early exit": [("early_exit", {"layers": 1, "confidence_threshold": 0})],
    "FlashAttention-2": ["flash_attention_2"],
    "loop, no_grad": ["forward_loop", "no_grad"],
    "loop, inference mode": ["forward_loop", "inference_mode"],
    "loop, gradients": ["forward_loop", "grad_enabled"],
    **{f"SDPA, {kernel}": [("sdpa", {"kernel": kernel})] for kernel in ("any", "math", "flash", "efficient", "cudnn")},
}  # fmt: skip
NARROW = ("FlashAttention-2", "4 bits, torchao", "SDPA, flash", "SDPA, cudnn")
"""What a GPU has in 16 bits alone."""


def checks(context: Context) -> list[Check]:
    found = []
    for family in FAMILIES:
        for name in techniques():
            if not context.tiny or (family == "tiny-llama" and name in QUICK):
                found.append(_check(f"engine/{name} {family}", of_technique, name=name, family=family))
    if not context.tiny:
        for family in FAMILIES:
            for name in TOGETHER:
                found.append(_check(f"engine/{name} {family}", of_table, name=name, family=family))
        for study, names in PRESETS.items():
            for name in names:
                found.append(_check(f"engine/preset {name}", of_preset, study=study, name=name, family="tiny-bigcode"))
    quick = ("plain", "prompt lookup", "FlashAttention-2")
    for name in TRANSFORMERS:
        if not context.tiny or name in quick:
            found.append(_check(f"transformers/{name}", of_transformers, name=name))
    return found


def _check(title: str, run: Any, /, **what: str) -> Check:
    return Check(title, functools.partial(run, **what), limit_s=180.0)


@functools.cache
def techniques() -> list[str]:
    from claimbench import backends, optimizations

    seams = backends.find("engine").SEAMS
    return [name for name in optimizations.names() if optimizations.find(name).SEAM in seams]


def whole(uses: list[str | Use]) -> tuple[Use, ...]:
    """With what each needs."""
    from claimbench import optimizations

    named = [(use, {}) if isinstance(use, str) else use for use in uses]
    needed = {other for name, _ in named for other in getattr(optimizations.find(name), "NEEDS", frozenset())}
    return (*named, *((name, {}) for name in sorted(needed - {name for name, _ in named})))


def _workload(raw: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    from claimbench.schema.cell import Sampling

    rest = {key: value for key, value in raw.items() if key != "temperature"}
    if "temperature" in raw:
        rest["sampling"] = Sampling(temperature=raw["temperature"])
    return tuple(rest.items())


def held(uses: list[str | Use], family: str, context: Context, workload: dict[str, Any]) -> Json:
    """In float32; where a kernel has 16 bits alone, in bfloat16."""
    asked = Asked(whole(uses), family, context.device, workload=_workload(workload))
    try:
        return hold(asked)
    except Skip as why:
        if not context.cuda or "16 bits" not in str(why):
            raise
        return hold(Asked(asked.uses, family, context.device, "engine", "bfloat16", asked.workload))


def of_technique(context: Context, name: str, family: str) -> Json:
    shown = SHOWN.get(name, {})
    settings = dict(shown.get("settings", {}))
    if not context.cuda and name in ("compiled_block", "compiled_step"):
        settings["code"] = "traced"
    return held([(name, settings), *shown.get("with", [])], family, context, shown.get("workload", {}))


def of_table(context: Context, name: str, family: str) -> Json:
    uses, workload = TOGETHER[name]
    return held(uses, family, context, workload)


def of_preset(context: Context, study: str, name: str, family: str) -> Json:
    """A preset of a study, with the presets that it names put in its place."""
    from pathlib import Path

    from claimbench.schema.validation import read_yaml

    folder = Path(__file__).parents[2] / "studies"
    known: Any = read_yaml(folder / f"{study}.yaml")["presets"]

    def flat(items: list[Any]) -> list[str | Use]:
        found: list[str | Use] = []
        for item in items:
            if isinstance(item, str):
                found += flat(known[item]) if item in known else [item]
            else:
                found += list(item.items())
        return found

    return held(flat(known[name]), family, context, RAGGED if "packed_rows" in str(known[name]) else {})


def of_transformers(context: Context, name: str) -> Json:
    asked = Asked(whole(TRANSFORMERS[name]), "tiny-llama", context.device, "transformers")
    if context.cuda and name in NARROW:
        asked = Asked(asked.uses, asked.family, asked.device, asked.backend, "bfloat16")
    return hold(asked)
