"""Results of two revisions, days or machines beside each other."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from claimbench.errors import ConfigError, ResultError
from claimbench.planning.nearest import nearest

if TYPE_CHECKING:
    from claimbench.exchange.compare import CellComparison, Side
    from claimbench.schema.interval import Interval

ABOUT = "results of revisions or machines: ratio with interval per cell, and verdicts that flipped"
EXAMPLES = (
    "claimbench compare runs/before runs/after",
    "claimbench compare results /mnt/h100/results /mnt/a10g/results --metric decode_tok_s peak_bytes",
    "claimbench compare main/results results || echo 'worse, or a verdict flipped'",
)
WORSE = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="of results, e.g. runs/a runs/b; the first is the base"
    )
    parser.add_argument(
        "--metric",
        nargs="+",
        default=["decode_tok_s"],
        metavar="M",
        help="e.g. decode_tok_s prefill_ms (`claimbench list metrics`); default: decode_tok_s",
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> int | None:
    from claimbench.exchange import folder
    from claimbench.exchange.compare import Side
    from claimbench.schema.metrics import METRICS

    for name in arguments.metric:
        if name not in METRICS:
            raise ConfigError(f"--metric: unknown metric '{name}'.{nearest(name, METRICS, HINT)}")
    if len(arguments.folders) < 2:
        raise ConfigError("expected two folders of results or more: the first is what the others are compared with")
    base, *others = [Side(folder.find(path)) for path in arguments.folders]
    worst = None
    for other in others:
        worst = _pair(base, other, arguments) or worst
    return worst


HINT = "`claimbench list metrics` names them."
HEADS = ("cell", "metric", "base", "other", "other / base", "state", "reason")


def _pair(base: Side, other: Side, arguments: argparse.Namespace) -> int | None:
    from claimbench.commands import output
    from claimbench.exchange import compare

    cells = compare.compare(base, other, tuple(arguments.metric))
    claims = list(compare.compare_claims(base, other))
    columns = [
        output.Column(head, is_number=2 <= place <= 4, wraps=head == "reason") for place, head in enumerate(HEADS)
    ]
    rows = list(_rows(cells))
    if arguments.json:
        output.as_json(columns, rows)
    else:
        for line in _heads(base, other):
            output.say(line)
        output.table(columns, rows)
    flips = [[one.study, one.id, f"{one.before} -> {one.after}", one.statement, one.reason] for one in claims]
    if flips and not arguments.json:
        output.say("")
        heads = ("study", "id", "verdict", "claim", "why")
        output.table([output.Column(head, wraps=head in ("claim", "why")) for head in heads], flips)
    if not arguments.json:
        output.say("")
    states = [one.state for one in cells]
    if all(state == compare.State.REFUSED for state in states):
        raise ResultError(f"nothing in {other.name} can be compared with {base.name}: the reasons stand above")
    worse, flipped = states.count(compare.State.WORSE), sum(one.is_flip for one in claims)
    counts = ", ".join(f"{states.count(state)} {state.value}" for state in compare.State if state in states)
    output.note(f"{other.name} and {base.name}: {counts}; {flipped} verdicts flipped")
    return WORSE if worse or flipped else None


def _heads(base: Side, other: Side) -> Iterator[str]:
    for word, side in (("base", base), ("other", other)):
        yield f"{word}: {side.name}, {side.folder.machine}, plan {side.folder.plan.seal[:12]}"
    changed = [
        f"{name} {base.libraries.get(name, 'absent')} -> {other.libraries.get(name, 'absent')}"
        for name in sorted({*base.libraries, *other.libraries})
        if base.libraries.get(name) != other.libraries.get(name)
    ]
    if changed:
        yield f"libraries: {', '.join(changed)}"
    keys = [{planned.key.code for planned in side.folder.plan.cells.values()} for side in (base, other)]
    if keys[0] != keys[1]:
        yield "the code that some cells execute is another"
    if base.folder.plan.machine["key"] != other.folder.plan.machine["key"]:
        yield "two machines: a ratio says what both together, machine and software, make of the same cell"
    yield "measured apart: intervals cover what varied inside each of the two, not what a machine is like another day"
    yield ""


def _rows(cells: list[CellComparison]) -> Iterator[list[str]]:
    for one in cells:
        numbers = [_shown(one.metric, found) for found in (one.base, one.other)]
        ratio = _interval(one.ratio) if one.ratio else ""
        yield [one.address, one.metric, *numbers, ratio, one.state.value, one.reason]


def _shown(metric: str, found: Interval | None) -> str:
    from claimbench.schema.metrics import METRICS

    if found is None:
        return ""
    in_gb = METRICS[metric].unit == "B"
    return _interval(found.scaled(1e-9), " GB") if in_gb else _interval(found, "")


def _interval(found: Interval, unit: str = "x") -> str:
    from claimbench.formatting import interval

    return interval(found, unit)
