"""What became of each check of a stage: a file that is written after each, and the table at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PASS, FAIL, SKIP, LATE = "PASS", "FAIL", "SKIP", "LATE"
"""LATE: the stage was over before it; the next call tries it."""
KNOWN = (PASS, FAIL, SKIP)
Json = dict[str, Any]


class Record:
    """The file of a stage."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path
        self.content: Json = {"stage": stage, "calls": [], "rows": {}}
        if path.exists():
            self.content = json.loads(path.read_text(encoding="utf-8"))
            if self.content.get("stage") != stage:
                raise SystemExit(f"{path}: expected the record of the stage {stage}")

    @property
    def rows(self) -> dict[str, Json]:
        rows: dict[str, Json] = self.content["rows"]
        return rows

    def is_known(self, name: str) -> bool:
        return self.rows.get(name, {}).get("verdict") in KNOWN

    def note(self, name: str, verdict: str, seconds: float, reason: str = "", found: Json | None = None) -> None:
        self.rows[name] = {"verdict": verdict, "seconds": round(seconds, 3), "reason": reason, "found": found or {}}
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(self.path)


def described(device: str, tiny: bool) -> Json:
    """The machine and the libraries of this call."""
    from importlib import metadata

    from claimbench import __version__
    from claimbench.system import machine

    here = machine.identify()
    versions: dict[str, str | None] = {}
    for name in ("torch", "triton", "transformers", "torchao", "bitsandbytes", "pydantic", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "tiny": tiny,
        "claimbench": __version__,
        "python": sys.version.split()[0],
        "machine": dict(here),
        "versions": versions,
    }


def line_of(name: str, row: Json) -> str:
    return f"{row['verdict']}  {row['seconds']:7.1f} s  {name}{': ' + row['reason'] if row['reason'] else ''}"


def table_of(record: Record) -> list[str]:
    """The table at the end of a stage, the failures last, where they are seen."""
    rows = sorted(record.rows.items(), key=lambda row: row[1]["verdict"] == FAIL)
    return [*(line_of(name, row) for name, row in rows), counts(row for _, row in rows)]


def counts(rows: Iterable[Json]) -> str:
    rows = list(rows)
    told = ", ".join(f"{sum(row['verdict'] == one for row in rows)} {one}" for one in (PASS, FAIL, SKIP, LATE))
    return f"{told}, {sum(row['seconds'] for row in rows):.0f} s in checks"
