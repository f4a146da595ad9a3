"""What came back from a machine, as a page beside the reports: what was measured there, and what was not."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from gpu_day.record import FAIL, LATE, PASS, SKIP, Json

STAGES = ("right", "fast", "product")
ARCHIVE = "product.tar.gz"
SPEED = (
    "way", "keys", "ms a step", "of read bandwidth", "GB read", "kernels", "busy, us", "idle, us", "first call, s",
)  # fmt: skip


class RenderError(Exception):
    """The folder does not hold one machine's results; one message."""


def render(folder: Path, reports: Path, name: str = "") -> Path:
    """Write `reports`/gpu-day-<name>.md from the records in `folder`; with the product's archive, its report beside it.

    Raises:
        RenderError: there is no record, or they are of several machines.
    """
    records = {stage: _read(folder / f"{stage}.json") for stage in STAGES if (folder / f"{stage}.json").exists()}
    calls = [call for record in records.values() for call in record["calls"]]
    if not calls:
        raise RenderError(f"{folder}: expected the record of a stage: one of {', '.join(STAGES)} with .json behind it")
    if len({(call["machine"]["key"], call["device"], call["tiny"]) for call in calls}) > 1:
        raise RenderError(f"{folder}: the records are of several machines, devices or sizes: render them apart")
    title = device_of(calls[-1])
    slug = name or re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    page = reports / f"gpu-day-{slug}.md"
    own = page.with_suffix("")
    if (folder / ARCHIVE).exists():
        unpack_report(folder / ARCHIVE, own)
    sections = {"right": of_right, "fast": of_fast, "product": of_product}
    lines = [f"# One day of {title}: what was found", "", *about(calls, records)]
    for stage, record in records.items():
        lines += ["", *sections[stage](record["rows"])]
        if stage == "product" and (own / "report.md").exists():
            lines += ["", f"The report that it rendered there: [{own.name}/report.md]({own.name}/report.md)."]
    reports.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def _read(path: Path) -> Json:
    record: Json = json.loads(path.read_text(encoding="utf-8"))
    return record


def device_of(call: Json) -> str:
    gpus = call["machine"]["gpus"]
    return str(gpus[0]["name"] if call["device"] == "cuda" and gpus else call["machine"]["cpu"]["model"])


def unpack_report(archive: Path, into: Path) -> None:
    """The folder `reports` of the archive, as `into`."""
    shutil.rmtree(into, ignore_errors=True)
    staging = into.with_name(f".{into.name}")
    shutil.rmtree(staging, ignore_errors=True)
    with tarfile.open(archive) as file:
        for member in file.getmembers():  # Python before 3.11.4 has no filter that keeps an archive inside of a folder
            path = PurePosixPath(member.name)
            content = file.extractfile(member) if member.isfile() and path.parts[0] == "reports" else None
            if content is None or ".." in path.parts:
                continue
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).write_bytes(content.read())
    (staging / "reports").replace(into)
    shutil.rmtree(staging)


def about(calls: Sequence[Json], records: dict[str, Json]) -> list[str]:
    last = calls[-1]
    machine, versions = last["machine"], {name: one for name, one in last["versions"].items() if one}
    cores = f"{machine['cpu']['cores']} cores of {machine['cpu']['model']}, {machine['memory_gb']} GB of memory"
    driver = next((f", driver {gpu['driver']}" for gpu in machine["gpus"] if gpu.get("driver")), "")
    lines = [
        f"{device_of(last)}{driver}; {cores}; machine `{machine['key']}`. Python {last['python']}, "
        + ", ".join(f"{name} {one}" for name, one in versions.items())
        + f"; Claimbench {last['claimbench']}. Calls: {len(calls)}, from {calls[0]['began']} to {last['began']}.",
        "",
    ]
    if last["tiny"] or last["device"] == "cpu":
        lines += ["A rehearsal on a CPU: it shows that the stages work, and says nothing of a GPU.", ""]
    return lines + _counted("stage", {stage: list(record["rows"].values()) for stage, record in records.items()})


def _counted(of: str, groups: dict[str, list[Json]]) -> list[str]:
    """How many of each group passed, and so on."""
    rows = [
        [group, *(str(sum(row["verdict"] == one for row in own)) for one in (PASS, FAIL, SKIP, LATE))]
        for group, own in groups.items()
    ]
    return markdown([of, "passed", "failed", "skipped", "not reached"], rows)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    rule = ["---", *("---:" for _ in head[1:])]
    return [f"| {' | '.join(row)} |" for row in [list(head), rule, *cells]]


def _texts(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table of words: nothing is set to the right."""
    lines = markdown(head, rows)
    lines[1] = f"| {' | '.join('---' for _ in head)} |"
    return lines


def of_right(rows: dict[str, Json]) -> list[str]:
    groups: dict[str, list[Json]] = {}
    for name, row in rows.items():
        groups.setdefault(name.partition("/")[0], []).append(row)
    lines = ["## Is every path right?", "", *_counted("paths", groups)]
    lines += not_passed(rows)
    found = [[name, ", ".join(_facts(row["found"]))] for name, row in rows.items() if _is_of_device(name, row)]
    if found:
        lines += ["", "What the device and the clock showed:", "", *_texts(["check", "found"], found)]
    return lines


def _is_of_device(name: str, row: Json) -> bool:
    return name.startswith(("device/", "clock/")) and row["verdict"] == PASS


def _facts(found: Json, prefix: str = "") -> list[str]:
    facts = []
    for name, value in found.items():
        if isinstance(value, dict):
            facts += _facts(value, f"{prefix}{name} ")
        elif isinstance(value, float):
            facts.append(f"{prefix}{name} {value:.4g}")
        elif isinstance(value, str | int):
            facts.append(f"{prefix}{name} {value}")
    return facts


def not_passed(rows: dict[str, Json]) -> list[str]:
    """Failures with their reasons, then what could not be checked, by reason."""
    failed = [[name, row["reason"]] for name, row in rows.items() if row["verdict"] == FAIL]
    lines = ["", "Failed:", "", *_texts(["check", "reason"], failed)] if failed else []
    reasons: dict[str, list[str]] = {}
    for name, row in rows.items():
        if row["verdict"] in (SKIP, LATE):
            reasons.setdefault(row["reason"], []).append(name)
    if reasons:
        skipped = [[reason, ", ".join(names)] for reason, names in reasons.items()]
        lines += ["", "Not checked:", "", *_texts(["reason", "checks"], skipped)]
    return lines


def of_fast(rows: dict[str, Json]) -> list[str]:
    rate = rows.get("read bandwidth", {}).get("found", {}).get("read_bytes_per_s")
    lines = ["## How fast?", ""]
    if rate:
        lines.append(f"Memory is read at {rate / 1e12:.3g} TB/s at best: the floor of a step is its bytes over that.")
    lines += ["Batch 1, random weights of the named shape. A profiled step waits for its host longer than a timed one."]
    for shape in dict.fromkeys(name.partition("/")[0] for name in rows if "/" in name):
        table = [
            [*_way(name), *_speed(row["found"])]
            for name, row in rows.items()
            if name.startswith(f"{shape}/") and row["verdict"] == PASS
        ]
        if table:
            lines += ["", f"### {shape}", "", *markdown(SPEED, table)]
    return lines + not_passed(rows)


def _way(name: str) -> list[str]:
    _, way, *keys = name.split("/")
    return [way, keys[0] if keys else ""]


def _speed(found: Json) -> list[str]:
    def told(name: str, form: str) -> str:
        return format(found[name], form) if name in found else ""

    read = f"{found['read_bytes'] / 1e9:.2f}"
    rest = [told("kernels_a_step", ".0f"), told("busy_us_a_step", ",.0f"), told("idle_us_a_step", ",.0f")]
    return [told("ms", ".3f"), told("of_read", ".0%"), read, *rest, told("compile_s", ".1f")]


def of_product(rows: dict[str, Json]) -> list[str]:
    steps = [[name, row["verdict"], f"{row['seconds']:.0f}"] for name, row in rows.items()]
    lines = ["## Does the product run?", "", *markdown(["step", "verdict", "seconds"], steps)]
    judged: dict[str, Any] = rows.get("verdicts", {}).get("found", {}).get("verdicts", {})
    if judged:
        lines += ["", "The study's claims:", "", *_texts(["claim", "verdict"], judged.items())]
    absent = rows.get("rounds", {}).get("found", {}).get("unavailable", [])
    if absent:
        lines += ["", "Not available there:", "", *(f"- {one}" for one in absent)]
    return lines + not_passed(rows)
