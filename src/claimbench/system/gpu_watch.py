"""Looks at a GPU from a process of its own while something is timed: whoever is timed asks the driver nothing.

echo '{"pids": [1, 2]}' | python -m claimbench.system.gpu_watch     looks until its standard input ends
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TypedDict

from claimbench.schema.machine import GpuSnapshot
from claimbench.system import gpus
from claimbench.system.processes import die_with_parent

EVERY_S = 0.5
ENDS_S = 10.0


class Seen(TypedDict, total=False):
    """What the looks came to."""

    looks: float
    throttled: float
    """Looks in which it had lowered its clocks for heat, power or a brake."""
    foreign_gpu: float
    """The most processes of others that had it open at once. Absent where processes have other numbers here than the
    driver knows, as in a container."""
    sm_mhz_least: float
    sm_mhz_most: float
    celsius_most: float


def summed(looks: list[GpuSnapshot], own: Iterable[int]) -> Seen:
    """`own`: processes that belong to what is timed."""
    ours = set(own)
    found: Seen = {"looks": float(len(looks)), "throttled": float(sum(map(_is_throttled, looks)))}
    pids = [set(look.get("pids") or []) for look in looks]
    if any(each & ours for each in pids):
        found["foreign_gpu"] = float(max(len(each - ours) for each in pids))
    clocks = [look["sm_mhz"] for look in looks if look.get("sm_mhz")]
    heat = [look["celsius"] for look in looks if look.get("celsius")]
    if clocks:
        found["sm_mhz_least"], found["sm_mhz_most"] = float(min(clocks)), float(max(clocks))  # type: ignore[type-var,arg-type]
    if heat:
        found["celsius_most"] = float(max(heat))  # type: ignore[type-var,arg-type]
    return found


def _is_throttled(look: GpuSnapshot) -> bool:
    return bool((look.get("throttle_reasons") or 0) & gpus.THROTTLED)


class GpuWatch:
    """Begins to look when it is made; `end` gives what was seen, nothing where the driver does not answer."""

    def __init__(self, own: Iterable[int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "claimbench.system.gpu_watch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"pids": sorted(own)}) + "\n")
            self._process.stdin.flush()

    def end(self) -> Seen:
        try:
            said, _ = self._process.communicate(timeout=ENDS_S)
            seen: Seen = json.loads(said)
        except (subprocess.TimeoutExpired, ValueError, BrokenPipeError):
            self._process.kill()
            self._process.wait()
            return {}
        return seen


def main() -> int:
    die_with_parent()
    own = json.loads(sys.stdin.readline())["pids"]
    looks: list[GpuSnapshot] = []
    while True:
        look = gpus.snapshot()
        if look is not None:
            looks.append(look)
        if select.select([sys.stdin], [], [], EVERY_S)[0]:
            break
    print(json.dumps(summed(looks, own) if looks else {}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
