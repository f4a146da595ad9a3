"""How a planned cell departs from what its document measured: the study's whole workload, or what `setting` declares.

Nothing of it is written by hand: swapped models, random weights, limits, other devices, systems, versions and samples
are all seen by comparing the cell with the setting.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from claimbench import backends, optimizations
from claimbench.planning.expand import ExpandedCell
from claimbench.schema.cell import Cell, Protocol
from claimbench.schema.deviation import Deviation, Of
from claimbench.schema.machine import MachineIdentity, device_names, readable
from claimbench.schema.plan import PlannedCell
from claimbench.schema.setting import Setting

SIZES: tuple[tuple[str, Of], ...] = (
    ("batch", "batch"),
    ("prompt_tokens", "prompt tokens"),
    ("shortest", "shortest row"),
    ("new_tokens", "new tokens"),
)
OURS = {True: "medians of rounds in turn", False: "the mean of blocks' medians"}
"""The statistic, by whether cells take turns in rounds."""


def deviations_of(
    expanded: ExpandedCell, planned: PlannedCell, machine: MachineIdentity, budget_minutes: float
) -> tuple[Deviation, ...]:
    """`planned` is the cell that `expanded` became; `budget_minutes` is 0 where it is measured in blocks."""
    cell, setting = planned.cell, expanded.setting
    found = [
        *_of_models(expanded, cell, setting),
        *_of_device(cell, setting, machine),
        *_of_counts(expanded, cell, setting),
        *_of_system(cell, setting, planned.key.libraries),
        *_of_numbers(cell, setting),
        *_of_protocol(cell.protocol, setting, planned.blocks, budget_minutes),
    ]
    return tuple(dict.fromkeys(found))


def _differs(of: Of, here: object, documented: object) -> Iterator[Deviation]:
    if documented is not None and here != documented:
        yield Deviation(of=of, here=str(here), documented=str(documented))


def _of_models(expanded: ExpandedCell, cell: Cell, setting: Setting) -> Iterator[Deviation]:
    known = expanded.params.checkpoints
    pairs = [(cell.checkpoint, setting.model or expanded.settings.checkpoint)]
    pairs += [(cell.draft, expanded.asked_draft)] if cell.draft and expanded.asked_draft else []
    for place, (used, name) in enumerate(pairs):
        if used is None or name is None or used.name == name:
            continue
        meant = known[name].architecture if name in known else None
        was_random = name in known and known[name].source.startswith("random://")
        if meant is None or used.architecture != meant or used.keep_layers != known[name].keep_layers:
            yield Deviation(
                of="draft" if place else "model",
                here=_named(used.name, used.architecture),
                documented=_named(name, meant),
            )
        if used.source.startswith("random://") and not was_random:
            yield Deviation(of="weights", here=f"random ones ({used.name})", documented=f"trained ones ({name})")


def _named(checkpoint: str, architecture: str | None) -> str:
    return f"{checkpoint} ({architecture})" if architecture not in (None, checkpoint) else checkpoint


def _of_device(cell: Cell, setting: Setting, machine: MachineIdentity) -> Iterator[Deviation]:
    if setting.hardware is None:
        return
    names = device_names(machine, cell.device)
    if not any(re.search(setting.hardware, name) for name in names):
        yield Deviation(of="device", here=names[0] if names else "none", documented=readable(setting.hardware))


def _of_counts(expanded: ExpandedCell, cell: Cell, setting: Setting) -> Iterator[Deviation]:
    """Sizes of the workload, devices and streams: what limits cut."""
    for name, of in SIZES:
        documented = getattr(setting, name, None) or getattr(expanded.settings, name)
        yield from _differs(of, getattr(cell.workload, name), documented)
    asked = expanded.settings.options
    for name in ("devices", "streams"):
        documented = (setting.devices if name == "devices" else None) or asked.get(name)
        if isinstance(documented, int):
            yield from _differs("devices" if name == "devices" else "streams", cell.options.get(name, 1), documented)
    if setting.prompt is not None:
        yield from _differs("prompt", repr(cell.workload.prompt), repr(setting.prompt))


def _of_system(cell: Cell, setting: Setting, libraries: Mapping[str, str | None]) -> Iterator[Deviation]:
    yield from _differs("system", cell.backend, setting.system)
    for name, documented in setting.options.items():
        here = cell.options.get(name)
        if here != documented:
            yield Deviation(of="options", here=f"{name} {_said(here)}", documented=_said(documented))
    for name, documented in setting.versions.items():
        here = libraries.get(name)
        if not _is_of(here, documented):
            version = here or "a version that the plan does not know"
            yield Deviation(of="versions", here=f"{name} {version}", documented=documented)


def _said(value: object) -> str:
    if value is None:
        return "not set"
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


def _is_of(version: str | None, documented: str) -> bool:
    try:
        wanted = documented if documented[0] in "<>=!~" else f"=={documented}"
        return version is not None and SpecifierSet(wanted).contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _of_numbers(cell: Cell, setting: Setting) -> Iterator[Deviation]:
    yield from _differs("dtype", cell.dtype, setting.dtype)
    yield from _differs("attention", attention_of(cell), setting.attention)
    yield from _differs("cache length", cache_length_of(cell), setting.cache_length)


def attention_of(cell: Cell) -> str | None:
    """How attention is computed; None where the backend leaves no choice to the cell."""
    if "attention" not in backends.find(cell.backend).SEAMS:
        return None
    for use in cell.optimizations:
        if optimizations.find(use.name).SEAM == "attention":
            kernel = use.settings.get("kernel", "any")
            return use.name if kernel == "any" else f"{use.name}, {kernel} kernel"
    return "eager"


def cache_length_of(cell: Cell) -> int | str:
    static = next((use for use in cell.optimizations if use.name == "static_cache"), None)
    if static is None:
        return "a cache that grows"
    return static.settings.get("length") or "as many tokens as there are"


def _of_protocol(protocol: Protocol, setting: Setting, blocks: int, budget_minutes: float) -> Iterator[Deviation]:
    in_rounds = bool(budget_minutes) and protocol.takes_turns
    if setting.warmups is not None:
        tokens = f" of {setting.warmup_tokens} tokens" if setting.warmup_tokens else ""
        here = f"{protocol.warmup_min} to {protocol.warmup_max}"
        if protocol.warmup_tokens:
            here = f"{protocol.warmup_min} of {protocol.warmup_tokens} tokens"
        whole = "" if protocol.warmup_tokens or not tokens else " whole ones"
        documented = f"{setting.warmups}{tokens}" if setting.warmups else "none"
        yield from _differs("warm-up", here + whole, documented)
    if setting.samples is not None:
        processes = 1 if protocol.warmup_tokens else blocks  # the document's own way is repeated, not cut in parts
        here = f"what {budget_minutes:g} minutes of turns give" if in_rounds else str(processes * protocol.samples)
        yield from _differs("samples", here, str(setting.samples))
    if setting.statistic is not None:
        ours = "mean" if protocol.warmup_tokens else OURS[in_rounds]
        yield from _differs("statistic", ours, {"one": "a single call"}.get(setting.statistic, setting.statistic))
