"""The same tokens, row by row, in every generation."""

from __future__ import annotations

from functools import partial

from claimbench.judging.evidence import Evidence, Side, basis_of, doubts_about, joined, sides_of, verdict_on
from claimbench.schema.checks import IdentityCheck
from claimbench.schema.interval import Interval
from claimbench.schema.verdicts import CheckVerdict, Verdict


def judge(check: IdentityCheck, study: str, evidence: Evidence) -> CheckVerdict:
    of, to = sides_of(check, study, evidence)
    basis = basis_of([of, to], evidence)
    if of.cell == to.cell:
        reason = f"{check.of} and {check.to} are the same cell here, so equal tokens say nothing."
        return verdict_on(check, f"Not judged: {reason}", Verdict.UNDECIDED, reason=reason, basis=basis)
    hashes = [evidence.frames[side.cell]["tokens_sha256"].dropna() for side in (of, to)]
    expected = hashes[1].mode().iloc[0]
    share = float((hashes[0] == expected).mean())
    blocks = min(of.end.blocks_ok, to.end.blocks_ok)
    judged = partial(verdict_on, check, found=Interval(share, share, share), blocks=blocks, basis=basis)
    count = f"{int((hashes[0] == expected).sum())} of {len(hashes[0])} generations"
    if share == 1 and hashes[1].nunique() == 1:
        sentence = f"{of.title} gives the same tokens as {to.title} in {count}."
        return judged(sentence, Verdict.SUPPORTED, reason=doubts_about([of, to]))
    sentence = f"{of.title} gives the same tokens as {to.title} in {count} only{_where(of, evidence)}."
    dtypes = {evidence.plan.cells[side.cell].cell.dtype for side in (of, to)}
    if dtypes == {"float32"}:
        return judged(sentence, Verdict.REFUTED, reason=doubts_about([of, to]))
    reason = f"In {' and '.join(sorted(dtypes))} rounding alone can change a token: only float32 can refute this."
    return judged(sentence, Verdict.UNDECIDED, reason=joined(reason, doubts_about([of, to])))


def _where(side: Side, evidence: Evidence) -> str:
    first = evidence.frames[side.cell]["first_divergence"].dropna()
    return f"; row 0 leaves the reference at new token {int(first.min())}" if len(first) else ""


def expected(check: IdentityCheck, tolerance: float) -> str:
    return "the same tokens"
