"""What a document asks for, cut down to the limits of params.yaml."""

from __future__ import annotations

from collections.abc import Mapping

from claimbench.schema.params import Params
from claimbench.schema.study import Experiment


def compares(experiment: Experiment, key: str) -> bool:
    """Whether its rows differ in this setting."""
    return key in experiment.sweep or any(getattr(cell, key) is not None for cell in experiment.cells.values())


def cut_down(
    params: Params, experiment: Experiment, asked: dict[str, int | None]
) -> tuple[dict[str, int | None], str | None]:
    """`asked` cut down to this machine's limits, and the reason to leave the row out instead.

    Where an experiment compares several values of a key, cutting would make different rows equal: they are left out.
    """
    kept = dict(asked)
    for key, value in asked.items():
        limit = getattr(params.limits, key)
        if limit is None or value is None or value <= limit:
            continue
        if compares(experiment, key):
            return kept, f"capped by params.yaml limits.{key}={limit}"
        kept[key] = limit
    together, limit = (kept["batch"] or 1) * (kept["prompt_tokens"] or 1), params.limits.batch_tokens
    if limit is not None and together > limit:
        return kept, f"capped by params.yaml limits.batch_tokens={limit}"
    return kept, None


def fewer_devices(params: Params, asked: Mapping[str, object]) -> dict[str, object]:
    """A backend's options with as many devices, and streams on them, as this machine has."""
    limit, kept = params.limits.devices, dict(asked)
    for key in ("devices", "streams"):
        wanted = asked.get(key)
        if limit is not None and isinstance(wanted, int) and wanted > limit:
            kept[key] = limit
    return kept


def cut_shortest(
    params: Params, experiment: Experiment, shortest: int, sizes: dict[str, int | None]
) -> tuple[int | None, str | None]:
    """The shortest row of a workload that was cut, or why its row is to be left out."""
    batch, longest = sizes["batch"] or 1, sizes["prompt_tokens"]
    if batch < 2:
        return None, f"rows of several lengths: capped by params.yaml limits.batch={params.limits.batch}"
    if longest is None or shortest <= longest:
        return shortest, None
    if compares(experiment, "shortest"):
        return None, f"capped by params.yaml limits.prompt_tokens={params.limits.prompt_tokens}"
    return longest, None
