"""The claims of a report: verdict, numbers, checks and deviations of each, as plain text for every format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from claimbench.formatting import count, interval
from claimbench.reporting import study_figures, verdict_chart
from claimbench.reporting.report_data import ReportData
from claimbench.reporting.study_figures import Illustration
from claimbench.schema.interval import Interval
from claimbench.schema.verdicts import CheckVerdict, ClaimVerdict, Verdict


class CheckText(NamedTuple):
    verdict: Verdict
    sentence: str
    expect: str
    ours: str
    published: str | None
    reason: str | None
    """Where the sentence does not say it already."""
    cells: tuple[tuple[str, str], ...]
    """(address, id) of the cells that it compares."""


class ClaimText(NamedTuple):
    study: str
    id: str
    statement: str
    verdict: Verdict
    published: str | None
    note: str | None
    checks: tuple[CheckText, ...]
    results: tuple[str, ...]
    deviations: tuple[str, ...]
    """How what was judged departs from the document, each in a line."""
    differs: tuple[str, ...]
    """In what it does, in a word or two each: `model`, `new tokens`."""
    ours: str
    headline: str
    """Of the check that it is told by."""
    why: str | None
    """Where it says more than the checks do."""
    ratio: Interval | None
    """The same as `headline`, where it is a ratio."""
    techniques: tuple[str, ...]
    """Of the cells that it is about."""
    doubts: tuple[str, ...]
    """About them."""
    rounds: int
    """Or blocks, that its least measured check rests on."""


class StudyClaims(NamedTuple):
    study: str
    title: str
    claims: tuple[ClaimText, ...]


class ClaimTable(NamedTuple):
    """What the first screen shows of a study, or of several small ones together."""

    name: str
    title: str
    claims: tuple[ClaimText, ...]
    departs: bool
    """Whether what ran for some claim was not what its document has, beyond what is `alike`; `differs` has the rest."""
    alike: tuple[str, ...]
    """What ran for every claim that was measured was not what its document has in these, a word or two each."""
    told: str
    """The verdicts, counted, as a sentence."""
    figure: Illustration | None


FEW = 2
"""Claims of a study that is small; several such studies share a table."""


def claims_of(data: ReportData) -> list[StudyClaims]:
    """Every study's claims; each check with what it found and the links to its results."""
    found = []
    for study, planned in data.plan.studies.items():
        described = tuple(_describe_claim(data, claim) for claim in data.verdicts.claims if claim.study == study)
        if described:
            found.append(StudyClaims(study, planned.study.title, described))
    return found


def first_screen_of(data: ReportData, studies: Sequence[StudyClaims]) -> list[ClaimTable]:
    """A table for each study, and one for all small ones, where the first of them would stand."""
    small = [each for each in studies if len(each.claims) <= FEW]
    tables, together = [], len(small) > 1
    for each in studies:
        if each not in small or not together:
            tables.append(_table(data, each.study, each.title, [each]))
        elif each is small[0]:
            tables.append(_table(data, "small-studies", f"{len(small)} studies", small))
    return tables


def _table(data: ReportData, name: str, title: str, studies: Sequence[StudyClaims]) -> ClaimTable:
    names = [each.study for each in studies]
    judged = [claim for study in names for claim in data.verdicts.claims if claim.study == study]
    described = tuple(claim for each in studies for claim in each.claims)
    figure = study_figures.of_verdicts(name, judged)
    measured = [set(claim.differs) for claim in described if claim.differs or claim.rounds]
    common = set.intersection(*measured) if measured else set()
    alike = tuple(dict.fromkeys(part for claim in described for part in claim.differs if part in common))
    rest = [tuple(part for part in claim.differs if part not in common) for claim in described]
    shown = tuple(claim._replace(differs=each) for claim, each in zip(described, rest, strict=True))
    return ClaimTable(name, title, shown, any(rest), alike, _told(judged), figure)


def _told(judged: Sequence[ClaimVerdict]) -> str:
    """`16 claims: 13 supported, 3 refuted.`"""
    numbers = [(sum(claim.verdict == verdict for claim in judged), verdict) for verdict in Verdict]
    told = ", ".join(f"{n} {_of_several(verdict) if n > 1 else verdict}" for n, verdict in numbers if n)
    return f"{count(len(judged), 'claim')}: {told}."


def _of_several(verdict: Verdict) -> str:
    """`agree on paper` of `agrees on paper`; a verdict that is no verb is the same of several."""
    return verdict.replace("agrees", "agree").replace("differs", "differ")


def _describe_claim(data: ReportData, claim: ClaimVerdict) -> ClaimText:
    checks = tuple(_describe_check(data, claim.study, check) for check in claim.checks)
    told_by = verdict_chart.headline(claim)
    cells = {id: data.cells[id] for check in checks for _, id in check.cells if id in data.cells}
    deviations = tuple(dict.fromkeys(text for check in claim.checks for text in check.deviations))
    return ClaimText(
        study=claim.study,
        id=claim.id,
        statement=claim.statement,
        verdict=claim.verdict,
        published=claim.published,
        note=claim.note,
        checks=checks,
        results=tuple(dict.fromkeys(path for check in claim.checks for path in check.results)),
        deviations=deviations,
        differs=tuple(dict.fromkeys(text.partition(": ")[0] for text in deviations)),
        ours="; ".join(check.ours for check in checks if check.ours != "–") or "–",
        headline=_found(told_by) if told_by else "–",
        why=claim.reason if _adds(claim.reason, [check.reason for check in claim.checks]) else None,
        ratio=verdict_chart.ratio_of(told_by),
        techniques=tuple(dict.fromkeys(name for cell in cells.values() for name in cell.optimizations)),
        doubts=tuple(dict.fromkeys(doubt for cell in cells.values() for doubt in cell.flags)),
        rounds=min((check.blocks for check in claim.checks if check.blocks), default=0),
    )


def _describe_check(data: ReportData, study: str, check: CheckVerdict) -> CheckText:
    published = None
    if check.published is not None:
        in_gb = (check.metric or "").endswith("bytes") and check.kind != "ratio"
        published = f"{check.published * 1e-9:,.4g} GB" if in_gb else f"{check.published:,.4g}"
    return CheckText(
        verdict=check.verdict,
        sentence=check.sentence,
        expect=check.expect,
        ours=_found(check),
        published=published,
        reason=None if _repeats(check.sentence, check.reason) else check.reason,
        cells=tuple(_cells(data, study, filter(None, (check.of, check.to)))),
    )


def _cells(data: ReportData, study: str, addresses: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The cells at `addresses`; one without its swept values is all of its label."""
    for address in addresses:
        experiment, _, wanted = address.partition("/")
        for place, row in data.plan.studies[study].rows.get(experiment, {}).items():
            if row.cell and (place == wanted or place.startswith(f"{wanted}@")):
                yield f"{experiment}/{place}", row.cell


def _repeats(text: str | None, reason: str | None) -> bool:
    """Whether `text` says already what `reason` does."""
    return bool(text and reason) and str(reason).rstrip(". ").lower() in str(text).lower()


def _adds(reason: str | None, said: Iterable[str | None]) -> bool:
    """Whether `reason` says more than the checks' own reasons, which stand above it."""
    left = (reason or "").replace("Not judged:", "")
    for text in sorted(filter(None, said), key=len, reverse=True):  # one may begin with all of another
        left = left.replace(text.rstrip(". "), "")
    return any(character.isalnum() for character in left)


def _found(check: CheckVerdict) -> str:
    if check.estimate is None:
        return "–"
    found = Interval(check.estimate, check.low, check.high)
    metric = check.metric or ""
    if check.kind == "ratio":
        return interval(found, "x")
    if check.kind == "shape":
        return f"exponent {interval(found)}"
    if metric.endswith("bytes"):
        return f"{interval(found.scaled(1e-9))} GB"
    return interval(found)
