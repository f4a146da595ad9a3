"""The registry of claims: where each comes from, and what it was found to be, where."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from claimbench.exchange.folder import ResultsFolder
    from claimbench.schema.study import Study
    from claimbench.schema.verdicts import ClaimVerdict

ABOUT = "every claim of every study with its source, and its verdict wherever there are results"
EXAMPLES = (
    "claimbench claims",
    "claimbench claims quantized",
    "claimbench claims --verdict refuted undecided",
    "claimbench claims --results /mnt/gpu/results --json",
)
NOT_JUDGED = "not judged"


class Known(NamedTuple):
    """A claim with one of its verdicts."""

    study: str
    id: str
    verdict: str
    """`not judged` where there are no results of it."""
    where: str
    statement: str
    source: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORD", help="that a claim must have, e.g. bloom or T1.2")
    parser.add_argument(
        "--verdict", nargs="+", metavar="V", help="only claims with it, e.g. refuted undecided 'not judged'"
    )
    parser.add_argument(
        "--results",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="of results, e.g. runs/smollm2; may be given several times. Default: results, runs/* and reports/* here",
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> int | None:
    from claimbench.commands import output
    from claimbench.commands.people import list as listing
    from claimbench.errors import ResultError
    from claimbench.exchange import folder

    verdicts = {_verdict(word) for word in arguments.verdict or ()}
    asked = arguments.results
    places = [folder.find(path) for path in asked] if asked else folder.find_all(Path())
    judged: dict[tuple[str, str], list[tuple[str, ClaimVerdict]]] = {}
    status = None
    for place in places:
        if not (place.path / "verdicts.json").exists():
            continue
        try:
            for verdict in place.verdicts.claims:
                judged.setdefault((verdict.study, verdict.id), []).append((_where(place), verdict))
        except ResultError as error:
            output.note(f"left out: {error}")
            status = ResultError.exit_status
    found = list(_known(listing.studies(), judged))
    wanted = [word.lower() for word in arguments.words]
    shown = [one for one in found if all(word in " ".join(one).lower() for word in wanted)]
    if arguments.verdict:
        shown = [one for one in shown if one.verdict in verdicts]
    columns = [output.Column(head, wraps=head in ("claim", "source")) for head in HEADS]
    output.rows(columns, shown, json=arguments.json, none=f"none of {len(found)} claims is like that")
    return status


def _verdict(word: str) -> str:
    """Raises ConfigError where there is no such verdict."""
    from claimbench.errors import ConfigError, did_you_mean
    from claimbench.schema.verdicts import Verdict

    known = [*(verdict.value for verdict in Verdict), NOT_JUDGED]
    if word not in known:
        raise ConfigError(f"--verdict: unknown verdict '{word}'.{did_you_mean(word, known)}")
    return word


HEADS = ("study", "id", "verdict", "where", "claim", "source")


def _where(place: ResultsFolder) -> str:
    return f"{place.asked} on {place.verdicts.device_name or place.verdicts.device}"


def _known(
    studies: Mapping[str, Study | str], judged: Mapping[tuple[str, str], list[tuple[str, ClaimVerdict]]]
) -> Iterator[Known]:
    left = dict(judged)
    for name, study in studies.items():
        if isinstance(study, str):
            continue
        for claim in study.claims:
            source = study.document.title
            verdicts = left.pop((Path(name).stem, claim.id), [])
            same = [(where, one) for where, one in verdicts if one.statement == claim.statement]
            for where, one in same:
                yield Known(name, claim.id, one.verdict.value, where, claim.statement, source)
            if not same:
                yield Known(name, claim.id, NOT_JUDGED, "", claim.statement, source)
    for (name, id), verdicts in left.items():
        for where, one in verdicts:
            yield Known(name, id, one.verdict.value, where, one.statement, "a study that is not here")
