"""Whether a folder of results that somebody handed over is what it says: seals, plan, completeness, and the verdicts.

The strongest of these is the last: table and verdicts are made again from the raw results, and must come out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import NamedTuple

from claimbench.analysis import aggregate, table_file
from claimbench.errors import ClaimbenchError, ResultError
from claimbench.exchange import signing
from claimbench.exchange.folder import ResultsFolder
from claimbench.formatting import count
from claimbench.judging.judge import judge
from claimbench.schema import frontier, result, sealed
from claimbench.schema import round as round_file


class State(StrEnum):
    OK = "ok"
    MISSING = "missing"
    BAD = "bad"
    NOTE = "note"
    """Neither here nor there: something that a reader should know."""


class Finding(NamedTuple):
    what: str
    state: State
    detail: str


def check(folder: ResultsFolder, signers: Path | None = None) -> Iterator[Finding]:
    """One finding for each part of the folder, the parts that others rest on first.

    With `signers`, a file of allowed signers of OpenSSH, a signature of one of them is demanded.
    """
    steps: list[tuple[str, Callable[[ResultsFolder], Iterator[Finding]]]] = [
        ("plan", _plan),
        ("results", _results),
        ("searches", _searches),
        ("rounds", _rounds),
        ("signature", partial(_signature, signers)),
        ("machine", _machine),
        ("ceilings", _ceilings),
        ("table", _table),
        ("verdicts", _verdicts),
        ("made again", _again),
    ]
    is_sound = True
    for what, step in steps:
        if what == "made again" and not is_sound:
            yield Finding(what, State.NOTE, "left out: something that the verdicts rest on is missing or bad")
            return
        for finding in _caught(what, step, folder):
            is_sound = is_sound and finding.state not in (State.BAD, State.MISSING)
            yield finding
            if what == "plan" and finding.state == State.BAD:
                return


def _caught(what: str, step: Callable[[ResultsFolder], Iterator[Finding]], folder: ResultsFolder) -> Iterator[Finding]:
    try:
        yield from step(folder)
    except ClaimbenchError as error:
        yield Finding(what, State.BAD, _short(error))


def _short(error: ClaimbenchError) -> str:
    """Without the advice to delete it: these are results of somebody else."""
    text = str(error)
    head, _, rest = text.partition(". Delete it")
    return f"{head} ({rest.rpartition(': ')[2]})" if rest and ": " in rest and ".json" in rest else head


def _plan(folder: ResultsFolder) -> Iterator[Finding]:
    plan = folder.plan
    studies = ", ".join(plan.studies)
    yield Finding("plan", State.OK, f"{plan.seal[:12]}: {studies}; {count(len(plan.cells), 'cell')} on {plan.device}")


def _results(folder: ResultsFolder) -> Iterator[Finding]:
    """Each block that the plan asks for, and whatever else lies there."""
    wanted = {path: (id, block) for id, each in folder.plan.cells.items() for block, path in enumerate(each.paths())}
    good, missing = 0, list[str]()
    for path, (id, block) in wanted.items():
        file = _in(folder, path)
        if not file.exists():
            missing.append(path)
            continue
        found = result.read(file)
        expected = (id, block, folder.plan.cells[id].key.id)
        if (found.cell.id, found.block, found.key.id) != expected:
            raise ResultError(f"{file} is the result of another cell, block or key than its place says")
        good += 1
    if wanted:
        yield Finding("results", State.OK, f"{good} of {len(wanted)} blocks, their seals whole, each in its place")
    if missing:
        yield Finding("results", State.MISSING, f"{count(len(missing), 'block')}; the first is {missing[0]}")
    others = [path for path in (folder.path / "measure").rglob("[0-9]*.json") if _named(folder, path) not in wanted]
    if others:
        yield Finding("results", State.NOTE, f"{count(len(others), 'file')} of other plans lie beside them")


def _in(folder: ResultsFolder, path: str) -> Path:
    """Where a file is that the plan knows as `results/...`."""
    return folder.path / Path(path).relative_to("results")


def _named(folder: ResultsFolder, path: Path) -> str:
    return str(Path("results") / path.relative_to(folder.path))


def _searches(folder: ResultsFolder) -> Iterator[Finding]:
    for search in folder.plan.frontiers.values():
        file = _in(folder, search.path)
        if file.exists():
            frontier.read(file)
            yield Finding("searches", State.OK, search.path)
        else:
            yield Finding("searches", State.MISSING, search.path)


def _rounds(folder: ResultsFolder) -> Iterator[Finding]:
    if not folder.plan.groups:
        return
    if folder.decided is None:
        yield Finding("rounds", State.MISSING, f"their list, decided/{folder.decided_path.name}")
        return
    missing = [path for path in folder.decided.seals if not _in(folder, path).exists()]
    if missing:
        yield Finding("rounds", State.MISSING, f"{count(len(missing), 'round')}; the first is {missing[0]}")
    listed = len(folder.decided.seals)
    for path in sorted(set(folder.decided.seals) - set(missing)):
        round_file.read(_in(folder, path))
        if sealed.seal_at(_in(folder, path)) != folder.decided.seals[path]:
            raise ResultError(f"{path} is not the round that decided/{folder.decided_path.name} lists")
    yield Finding("rounds", State.OK, f"{listed - len(missing)} of {listed}, their seals whole and as listed")
    seated = {arm.result.cell.id for one in folder.rounds.values() for arm in one.arms} if not missing else set()
    never = [id for group in folder.plan.groups for id in group.cells if id not in seated]
    if never and not missing:
        yield Finding("rounds", State.MISSING, f"{count(len(set(never)), 'cell')} sat in none of them")
    others = {_named(folder, path) for path in (folder.path / "rounds").glob("*.json")} - set(folder.decided.seals)
    if others:
        yield Finding("rounds", State.NOTE, f"{count(len(others), 'round')} beside them that the list does not have")


def _signature(signers: Path | None, folder: ResultsFolder) -> Iterator[Finding]:
    """Of the raw files, where somebody signed them, or somebody was to."""
    if not signing.is_signed(folder):
        if signers:
            yield Finding("signature", State.BAD, f"there is no {signing.SIGNATURE}: nobody signed these")
        return
    key = signing.key_of(folder)
    wrong = signing.differing(folder)
    if wrong:
        raise ResultError(f"{wrong[0]}{f', and {len(wrong) - 1} more' if wrong[1:] else ''}: signed by {key}")
    if signers:
        yield Finding("signature", State.OK, f"of {signing.signer_of(folder, signers)}, on every raw file")
    else:
        yield Finding(
            "signature", State.NOTE, f"by {key}, on every raw file; --signers FILE says whether it is one of yours"
        )


def _machine(folder: ResultsFolder) -> Iterator[Finding]:
    """Every record is of the machine that the plan is for."""
    key = folder.plan.machine["key"]
    records = [arm.result for one in _readable_rounds(folder) for arm in one.arms]
    records += [
        result.read(_in(folder, path))
        for planned in folder.plan.cells.values()
        for path in planned.paths()
        if _in(folder, path).exists()
    ]
    others = {str(one.machine["key"]) for one in records if one.machine and one.machine.get("key") != key}
    if others:
        raise ResultError(f"the plan is for machine {key}, and results are of {', '.join(sorted(others))}")
    name = (folder.plan.machine.get("cpu") or {}).get("model", "an unnamed CPU")
    yield Finding("machine", State.OK, f"{name} ({key}) in {len(records)} records")


def _readable_rounds(folder: ResultsFolder) -> list[round_file.Round]:
    listed = folder.decided.seals if folder.decided else {}
    return [round_file.read(_in(folder, path)) for path in listed if _in(folder, path).exists()]


def _ceilings(folder: ResultsFolder) -> Iterator[Finding]:
    if not folder.ceilings_path.exists():
        yield Finding("ceilings", State.MISSING, f"ceilings/{folder.ceilings_path.name}")
        return
    rate = folder.ceilings.read_bytes_per_s
    yield Finding("ceilings", State.OK, f"memory read at {rate / 1e9:.1f} GB/s" if rate else "no rate was measured")


def _table(folder: ResultsFolder) -> Iterator[Finding]:
    path = folder.path / "table.parquet"
    if not path.exists():
        yield Finding("table", State.NOTE, "not there: it follows from the raw results")
        return
    read = table_file.read(path, {"plan": folder.plan.seal})
    yield Finding("table", State.OK, f"{count(len(read.table), 'row')}, of this plan")
    if (folder.path / "verdicts.json").exists():
        made_of = folder.verdicts.made_of
        sealed.require_made_of(folder.path / "verdicts.json", made_of, {"table": read.seal}, "judge")


def _verdicts(folder: ResultsFolder) -> Iterator[Finding]:
    if not (folder.path / "verdicts.json").exists():
        yield Finding("verdicts", State.MISSING, "verdicts.json")
        return
    verdicts = folder.verdicts
    sealed.require_made_of(folder.path / "verdicts.json", verdicts.made_of, {"plan": folder.plan.seal}, "judge")
    yield Finding("verdicts", State.OK, f"of {count(len(verdicts.claims), 'claim')}, of this plan")


def _again(folder: ResultsFolder) -> Iterator[Finding]:
    """The verdicts once more, by this version of Claimbench."""
    with folder.as_project():
        table = aggregate.aggregate(folder.plan, folder.ceilings, rounds=folder.rounds)
        found = {id: frontier.read(Path(search.path)) for id, search in folder.plan.frontiers.items()}
    judged = judge(folder.plan, table, frontiers=found)
    theirs = {(claim.study, claim.id): claim for claim in folder.verdicts.claims}
    ours = {(claim.study, claim.id): claim for claim in judged.claims}
    other = [
        f"{id} is {claim.verdict.value} and not {theirs[study, id].verdict.value}"
        for (study, id), claim in ours.items()
        if (study, id) in theirs and claim.verdict != theirs[study, id].verdict
    ]
    if other or theirs.keys() != ours.keys():
        detail = "; ".join(other) or "other claims are judged"
        yield Finding("made again", State.BAD, f"the verdicts do not follow from the raw results here: {detail}")
    elif judged.cells == folder.verdicts.cells and judged.claims == folder.verdicts.claims:
        yield Finding("made again", State.OK, "table and verdicts come out the same, every number")
    else:
        yield Finding("made again", State.NOTE, "every verdict comes out the same; some number or sentence does not")
