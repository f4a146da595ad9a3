"""What to switch on here, in words: recommendations as rows of a table, each with its cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from claimbench.formatting import Estimate, interval, number, percent
from claimbench.reporting.report_data import ReportData
from claimbench.schema.metrics import METRICS

OBJECTIVES = {
    "latency": "a lower latency",
    "throughput": "a higher throughput",
    "memory": "less memory",
}
MOST_SHOWN = 5


def objectives(data: ReportData) -> list[dict[str, Any]]:
    """For each objective its recommendations, best first, and the words for what each costs."""
    found = []
    for objective, aim in OBJECTIVES.items():
        pairs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for entry in data.verdicts["recommendations"]:
            if entry["objective"] == objective:
                pairs.setdefault((entry["cell"], entry["reference"]), []).append(entry)
        told = [_told(entries) for entries in pairs.values()]
        found.append({"name": objective, "aim": aim, "shown": told[:MOST_SHOWN], "folded": told[MOST_SHOWN:]})
    return found


def _told(entries: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What one cell gains over another, by one metric or several, as one row."""
    first = entries[0]
    return {
        **first,
        "what": _switch_on(first),
        "where": ", ".join(f"{place['title']} ({place['study']})" for place in first["shown_in"][:2]),
        "costs": _costs(first),
        "gains": [
            f"{interval(Estimate(entry['gain'], entry['low'], entry['high']), 'x')} ({METRICS[entry['metric']].title})"
            for entry in entries
        ],
    }


def _switch_on(entry: Mapping[str, Any]) -> str:
    names = ", ".join(f"`{name}`" for name in entry["optimizations"])
    system = f"{names} on `{entry['backend']}`" if entry["optimizations"] else f"`{entry['backend']}` as it is"
    if entry["batch"] != entry["reference_batch"]:
        return f"{system}, at batch {entry['batch']} instead of {entry['reference_batch']}"
    return system


def _costs(entry: Mapping[str, Any]) -> str:
    cost = entry["cost"]
    parts = []
    if cost["memory_ratio"] is not None and entry["objective"] != "memory":
        parts.append(f"{number(cost['memory_ratio'])}x the memory")
    if entry["batch"] != entry["reference_batch"] and cost["step_ratio"] is not None:
        parts.append(f"each step takes {number(cost['step_ratio'])}x the time")
    if cost["decode_ratio"] is not None and cost["decode_ratio"] < 1:
        parts.append(f"{number(cost['decode_ratio'])}x the decode speed")
    if cost["first_call_extra_s"] is not None and cost["first_call_extra_s"] >= 0.1:
        even = cost["break_even_tokens"]
        pays = f", which pays after {even:,.0f} tokens" if even is not None else ""
        parts.append(f"{number(cost['first_call_extra_s'])} s more for the first call{pays}")
    parts.append(_token_cost(entry))
    return "; ".join(parts)


def _token_cost(entry: Mapping[str, Any]) -> str:
    cost = entry["cost"]
    if cost["tokens_match"]:
        return "same tokens"
    if cost["tokens_match"] is None:
        return "tokens not compared"
    agree = f": {percent(cost['token_agreement'])} agree" if cost["token_agreement"] is not None else ""
    divergence = f", KL {number(cost['kl_mean_nats'])} nats" if cost["kl_mean_nats"] is not None else ""
    return f"other tokens{agree}{divergence}"
