"""The line that a person watches: which cell, which block, how many are left, about how long."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from claimbench.cell import Cell
from claimbench.forecast import duration, estimate_seconds, missing_blocks
from claimbench.plan import Plan
from claimbench.result import Result
from claimbench.workflow import labels


class Line:
    """One block's line, before and after it is measured."""

    def __init__(self, plan: Plan, cell: Cell, block: int, root: Path = Path()) -> None:
        self.plan, self.cell, self.block, self.root = plan, cell, block, root
        self.missing = missing_blocks(plan, root)
        self.total = sum(planned.blocks for planned in plan.cells.values())
        self.name = labels(plan).get(cell.id, f"reference of {cell.checkpoint.name}, batch {cell.workload.batch}")

    def before(self) -> str:
        left = sum(self.missing.values())
        place = f"[{self.total - left + 1}/{self.total}]"
        return f"{place} {self.name} · block {self.block} · about {duration(self._remaining())} left"

    def after(self, record: Result) -> str:
        if record.outcome != "ok":
            return f"    {record.outcome}: {record.reason}"
        speeds = [record.cell.workload.batch * record.cell.workload.new_tokens / s.wall_ns * 1e9 for s in record.samples]
        doubt = f" · {'; '.join(record.flags)}" if record.flags else ""
        return f"    ok: {median(speeds):.1f} tok/s end to end, {duration(record.duration_s)}{doubt}"

    def _remaining(self) -> float:
        """Sum over the missing blocks of what the same cell took before, or of its estimate, corrected by experience."""
        seen: dict[str, list[float]] = {}
        for id, planned in self.plan.cells.items():
            for path in planned.paths():
                if (self.root / path).exists():
                    seen.setdefault(id, []).append(_duration_of(self.root / path))
        estimates = {id: estimate_seconds(planned.cell, {}) for id, planned in self.plan.cells.items()}
        experience = median([median(took) / estimates[id] for id, took in seen.items()] or [1.0])
        return sum(
            count * (median(seen[id]) if id in seen else experience * estimates[id]) for id, count in self.missing.items()
        )


def _duration_of(path: Path) -> float:
    """Only the duration, without validating the record: this is read for every block of every job."""
    text = path.read_text(encoding="utf-8")
    _, _, rest = text.partition('"duration_s":')
    number = rest.split(",", 1)[0]
    try:
        return float(number)
    except ValueError:
        return 0.0
