"""One file per kind of check; a kind's name is its file's name.

A kind is a model of `schema/checks.py`, which says what a study may write, and a file here with

    judge(check, study, evidence) -> CheckVerdict   its verdict, with a sentence that says the numbers
    expected(check, tolerance) -> str               where its number must lie, as a reader sees it
"""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from claimbench.judging.evidence import Evidence, Missing, verdict_on
from claimbench.schema.checks import Check
from claimbench.schema.verdicts import CheckVerdict, Verdict


class Kind(Protocol):
    def judge(self, check: Check, study: str, evidence: Evidence) -> CheckVerdict: ...

    def expected(self, check: Check, tolerance: float) -> str: ...


def find(name: str) -> Kind:
    """The kind of check in `checks/<name>.py`."""
    return cast(Kind, importlib.import_module(f"{__name__}.{name}"))


def judge_check(check: Check, study: str, evidence: Evidence) -> CheckVerdict:
    """The verdict on one check of `study`.

    Raises:
        ConfigError: a curve over something that is not a number, or bytes over no bandwidth.
    """
    kind = find(check.kind)
    try:
        judged = kind.judge(check, study, evidence)
    except Missing as missing:
        judged = verdict_on(check, f"Not judged: {missing}.", Verdict.NOT_RUNNABLE, reason=str(missing))
    return judged.model_copy(update={"expect": kind.expected(check, evidence.tolerance)})
