"""Code is edited while Snakemake measures with it: the run says so, and the next one measures with the new code."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.pipeline.test_caching import edit

pytestmark = pytest.mark.pipeline

EDITS_ONCE = """

def _edit_once() -> None:
    asked = Path("edit-now")
    if asked.exists():
        asked.unlink()
        with Path("src/claimbench/measuring/clock.py").open("a", encoding="utf-8") as file:
            file.write("EDITED = 1\\n")
"""


@pytest.mark.parametrize("budget", [None, 0.4], ids=["in blocks", "in rounds"])
def test_code_that_is_edited_while_it_measures(budget: float | None, project: Any) -> None:
    project.params["measure"]["budget_minutes"] = budget
    project.write()
    backend = project.folder / "src/claimbench/backends/null_model.py"
    edit(backend, "    end = time.perf_counter_ns()", "    _edit_once()\n    end = time.perf_counter_ns()")
    with backend.open("a", encoding="utf-8") as file:
        file.write(EDITS_ONCE)
    (project.folder / "edit-now").touch()
    said = project.snakemake("all", fails=True)
    assert "code of Claimbench was edited since the plan was made" in said
    assert "Traceback" not in said
    results = project.folder / "results"
    written = [*results.glob("measure/*/*/*.json"), *results.glob("rounds/*.json")]
    assert not written, "nothing had been measured before the edit"
    project.snakemake("all")
    (plan,) = (path for path in results.glob("plan/*.json") if path.stat().st_mtime_ns == newest(results))
    keys = {cell["key"]["code"] for cell in json.loads(plan.read_text(encoding="utf-8"))["cells"].values()}
    found = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("measure/*/*/*.json")]
    rounds = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("rounds/*.json")]
    measured = [one["result"] for one in found] + [arm["result"] for one in rounds for arm in one["round"]["arms"]]
    assert measured
    assert {one["key"]["code"] for one in measured} == keys


def newest(results: Any) -> int:
    return max(path.stat().st_mtime_ns for path in results.glob("plan/*.json"))
