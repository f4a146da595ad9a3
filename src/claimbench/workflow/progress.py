"""The line that a person watches: which cell, which block, how many are left, about how long."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from claimbench.analysis import validity
from claimbench.formatting import duration
from claimbench.planning.forecast import estimate_seconds, missing_blocks
from claimbench.planning.paths import labels
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.cell import Cell
from claimbench.schema.outcome import Outcome
from claimbench.schema.plan import Plan
from claimbench.schema.result import Result

LOOKED_AT = 200
"""Result files read for an estimate; reading every file before every block would cost more than it tells."""


class Line:
    """One block's line, before and after it is measured; without a plan it knows the cell alone."""

    def __init__(self, plan: Plan | None, cell: Cell, block: int, root: Path = Path()) -> None:
        self.plan, self.cell, self.block, self.root = plan, cell, block, root
        known = labels(plan).get(cell.id) if plan else None
        self.name = known or f"reference of {cell.checkpoint.name}, batch {cell.workload.batch}"

    def before(self) -> str:
        if self.plan is None:
            return f"{self.name} · block {self.block}"
        missing = missing_blocks(self.plan, self.root)
        total, left = sum(planned.blocks for planned in self.plan.cells.values()), sum(missing.values())
        remaining = duration(self._remaining(self.plan, missing))
        return f"[{total - left + 1}/{total}] {self.name} · block {self.block} · about {remaining} left"

    def after(self, record: Result) -> str:
        if record.outcome != Outcome.OK:
            return f"    {record.outcome}: {record.reason}"
        speeds = [record.cell.rows * record.cell.workload.new_tokens / s.wall_ns * 1e9 for s in record.samples]
        doubts = [*record.flags, *validity.sentences(validity.of_block(record))]
        doubt = f" · {'; '.join(doubts)}" if doubts else ""
        return f"    ok: {median(speeds):.1f} tok/s end to end, {duration(record.duration_s)}{doubt}"

    def _remaining(self, plan: Plan, missing: dict[str, int]) -> float:
        """Seconds: what the same cells took before, or their estimates corrected by experience."""
        seen: dict[str, list[float]] = {}
        there = [(id, path) for id, planned in plan.cells.items() for path in planned.paths()]
        there = [(id, path) for id, path in there if (self.root / path).exists()]
        for id, path in there[-LOOKED_AT:]:
            seen.setdefault(id, []).append(_duration_of(self.root / path))
        estimates = {id: estimate_seconds(plan.cells[id].cell, Ceilings()) for id in {*missing, *seen}}
        experience = median([median(took) / estimates[id] for id, took in seen.items()] or [1.0])
        return sum(
            count * (median(seen[id]) if id in seen else experience * estimates[id]) for id, count in missing.items()
        )


def _duration_of(path: Path) -> float:
    """Only the duration, without validating the record."""
    _, _, rest = path.read_text(encoding="utf-8").partition('"duration_s":')
    try:
        return float(rest.split(",", 1)[0])
    except ValueError:
        return 0.0
