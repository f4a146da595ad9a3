"""What a raw result says in numbers, by the names of docs/statistics.md, what a round weighs, and what a seal is."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

HALF_AND_VOID = {"foreign_cpu": (0.15, 0.50), "steal": (0.10, 0.40), "waiting_cpu": (0.02, 0.25)}
HALF_AND_VOID |= {"swapped_mb": (1.0, 500.0), "throttled": (0.0, math.inf), "slept_s": (math.inf, 1.0)}
HALF_AND_VOID |= {"beside_gap": (0.02, 0.05)}
LATER = {"protocol": ("warmup_tokens",), "workload": ("others", "pads")}
FAMILIES = ("llama", "mistral", "gpt_bigcode", "bloom")
SHAPES = Path(__file__).resolve().parent.parent / "src/claimbench/cost_model/architectures"


def seal(value):
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def id_of(cell):
    """How often a cell is sampled, what is known of its models, and later fields that say nothing, are left out."""
    left_out = {"protocol": "samples", "checkpoint": "card", "draft": "card"}
    parts = {key: {**value} if isinstance(value, dict) else value for key, value in cell.items()}
    for key in (key for key in left_out if parts[key]):
        del parts[key][left_out[key]]
    for part, names in LATER.items():
        parts[part] = {key: value for key, value in parts[part].items() if key not in names or value}
    return seal(parts)[:12]


def over(amount, by):
    return amount / by if amount is not None and by else None


def percentile(values, percent):
    return float(np.percentile(values, percent)) if values else None


def of_sample(cell, sample, prompt):
    """The numbers of one generation."""
    work, steps, wall, counts = cell["workload"], sample["step_ns"], sample["wall_ns"], sample["step_tokens"]
    streams, decode, later = int(cell["options"].get("streams", 1)), sum(steps[1:]), sum(counts[1:])
    rows, cut = work["batch"] * streams, prompt - work["shortest"] if work["shortest"] else 0
    read = prompt and streams * sum(prompt - row * cut // max(work["batch"] - 1, 1) for row in range(work["batch"]))
    found = {"prefill_ms": steps[0] / 1e6, "prefill_tok_s": over(read or None, steps[0] / 1e9), "total_ms": wall / 1e6}
    found |= {"tok_s": over(rows * sum(counts), wall / 1e9), "ms_per_token": wall / 1e6 / (rows * sum(counts))}
    found["wall_event_gap"] = over(abs(wall - sum(steps)), wall)
    if later:
        found |= {"decode_tok_s": over(rows * later, decode / 1e9), "tpot_ms": decode / 1e6 / later}
        found |= {"step_ms": percentile(steps[1:], 50) / 1e6, "step_p95_ms": percentile(steps[1:], 95) / 1e6}
        found["tokens_per_step"] = later / (len(steps) - 1)
    return found


def of_process(result):
    """What one process says beyond its generations."""
    cell, memory, proof, first = (result[name] for name in ("cell", "memory", "proof", "first_call_ns"))
    files, lossy, walls = result["telemetry"].get("checkpoint", {}), result["fidelity"] or {}, result["samples"]
    rows, walls = cell["workload"]["batch"] * int(cell["options"].get("streams", 1)), [one["wall_ns"] for one in walls]
    found = {
        f"{name}_bytes": value for name, value in memory.items() if name not in ("rss_before_load", "rss_after_load")
    }
    found |= {name: proof[name] for name in ("recompiles", "graphs") if type(proof.get(name)) in (int, float)}
    found |= {"load_s": over(result["load_ns"], 1e9), "first_call_s": over(first, 1e9)} | of_techniques(proof)
    found |= {"checkpoint_bytes": files.get("bytes"), "load_gb_s": over(over(files.get("bytes"), 1e9), found["load_s"])}
    found["checkpoint_cached_share"] = over(files.get("cached_bytes"), files.get("bytes"))
    found["compile_s_extra"] = None if first is None else (first - percentile(walls, 50)) / 1e9
    made = rows * cell["workload"]["new_tokens"] * len(walls)
    found |= {"mean_tok_s": made / (sum(walls) / 1e9), "energy_j_per_token": over(over(result["energy_mj"], 1e3), made)}
    if {"rss_after_load", "rss_before_load"} <= memory.keys():
        found["rss_load_bytes"] = memory["rss_after_load"] - memory["rss_before_load"]
    found["peak_bytes"] = memory.get("rss_peak" if cell["device"] == "cpu" else "device_allocated_peak")
    return found | {name: lossy.get(name) for name in ("kl_mean_nats", "top1_agreement")} | of_load(proof.get("load"))


def of_techniques(proof):
    """What the proofs counted of what ran: regions that were compiled, fused operations, unfused attention."""
    proofs, kernels, found = proof.get("optimizations") or {}, proof.get("kernels"), {}
    for metric, begins in (("compiled_regions", "compil"), ("fusions", "")):
        counts = [one.get(metric) for name, one in proofs.items() if name.startswith(begins) and isinstance(one, dict)]
        counts = [sum(one) if isinstance(one, list) else one for one in counts if isinstance(one, int | list)]
        found |= {metric: sum(counts)} if counts else {}
    return found | ({"math_attention_share": kernels.count("math") / len(kernels)} if kernels else {})


def of_load(load):
    """What a server answered under load; of a sweep, at the number of clients that got most tokens a second."""
    if not load:
        return {}

    def per_s(records, amount):
        lasted = max(one["ended_ns"] for one in records) - min(one["scheduled_ns"] for one in records)
        return sum(amount(one) for one in records if one["failure"] is None) / (lasted / 1e9)

    asked, runs = load["settings"], load["levels"] or {load["settings"]["concurrency"]: load["records"]}
    clients, records = max(runs.items(), key=lambda level: per_s(level[1], lambda one: sum(one["chunk_tokens"])))
    seen, good = {"ttft": [], "itl": [], "tpot": [], "end_to_end": []}, []
    for one in (one for one in records if one["failure"] is None):
        came = [at / 1e6 for at, count in zip(one["chunk_ns"], one["chunk_tokens"], strict=True) for _ in range(count)]
        events, gaps = [(at - one["scheduled_ns"]) / 1e6 for at in one["chunk_ns"]], np.diff(came).tolist()
        own = {"ttft": events[:1], "itl": gaps, "tpot": gaps and [sum(gaps) / len(gaps)], "end_to_end": events[-1:]}
        limits = [(own[name], asked["objective"][f"{name}_ms"]) for name in ("ttft", "tpot", "end_to_end")]
        good += [one] if all(not value or most is None or value[0] <= most for value, most in limits) else []
        seen = {name: values + own[name] for name, values in seen.items()}
    found = {f"load_{name}_ms": percentile(values, 50) for name, values in seen.items()}
    found |= {f"load_{name}_p95_ms": percentile(seen[name], 95) for name in seen if name != "tpot"}
    if asked["kind"] == "open":
        found["load_lateness_ms"] = percentile([(one["sent_ns"] - one["scheduled_ns"]) / 1e6 for one in records], 95)
    else:
        found["load_clients"] = int(clients) if asked["kind"] in ("closed", "sweep") else 1
    found |= {"load_tok_s": per_s(records, lambda one: sum(one["chunk_tokens"]))}
    found |= {"load_requests_per_s": per_s(records, lambda _: 1), "load_goodput_per_s": per_s(records, good.count)}
    return found | {"load_failed_share": sum(one["failure"] is not None for one in records) / len(records)}


def weight_of(one):
    """Of a round in comparisons: 1, a half where a condition says so, and 0 where one voids it."""
    seen = one["conditions"] | {"waiting_cpu": sum(arm["waiting_cpu"] for arm in one["arms"])}
    seen |= beside_gap(one["arms"]) if seen.get("beside") else {}
    found = [(seen[name], half, void) for name, (half, void) in HALF_AND_VOID.items() if name in seen]
    return (
        0.0 if any(value > void for value, _, void in found) else 0.5 if any(v > half for v, half, _ in found) else 1.0
    )


def beside_gap(arms):
    """By how much a cell that sat twice differed from itself, while others measured on other GPUs."""
    twins = [arm for arm in arms if arm["name"] == "twin"]
    sides = [arm for arm in arms if arm not in twins and arm["result"]["cell"] == twins[0]["result"]["cell"]][:1]
    walls = []
    for arm in sides and [*sides, *twins]:
        passes = [turn["number"] for turn in arm["turns"] for _ in range(turn["samples"])]
        timed = list(zip(passes, (one["wall_ns"] for one in arm["result"]["samples"]), strict=False))
        walls.append({number: np.mean([wall for place, wall in timed if place == number]) for number in passes})
    common = walls[0].keys() & walls[1].keys() if walls else ()
    return {"beside_gap": abs(np.median([walls[1][n] / walls[0][n] for n in common]) - 1)} if common else {}


def computed(check):
    """What follows from an architecture's published config.json."""
    whole, read, kept = sizes(check["architecture"])
    if check["quantity"] == "weight_read_ms":
        return read * check["bytes_per_weight"] / check["bandwidth"] * 1e3
    values = whole if check["quantity"] == "weight_bytes" else kept * check["batch"] * check["length"]
    return values * check["bytes_per_weight"]


def sizes(name, keep_layers=None):
    """Of the Llama, GPT-BigCode and BLOOM families: weights, those that a step reads, values kept of a token."""
    config = json.loads((SHAPES / f"{name}.json").read_text(encoding="utf-8"))
    kind, size = config["model_type"], config.get("hidden_size") or config["n_embd"]
    layers = config.get("num_hidden_layers") or config["n_layer"]
    layers, heads = min(layers, keep_layers or layers), config.get("num_attention_heads") or config["n_head"]
    inner, gated = config.get("intermediate_size") or config.get("n_inner") or 4 * size, kind in ("llama", "mistral")
    kv = (1 if config.get("multi_query") else config.get("num_key_value_heads") or heads) * size // heads
    others = 2 * size if gated else 8 * size + 2 * kv + inner - size  # norms, and biases
    layer = 2 * size * (size + kv) + (3 if gated else 2) * size * inner + others
    rows, places = config["vocab_size"] * size, config["n_positions"] * size if kind == "gpt_bigcode" else 0
    read = layers * layer + rows + {"gpt_bigcode": 2, "bloom": 4}.get(kind, 1) * size
    whole = read + places + (0 if config.get("tie_word_embeddings", not gated) else rows)
    return whole, read, 2 * layers * kv
