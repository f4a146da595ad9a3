"""A folder of results that somebody handed over: whether it is whole and what it says it is."""

from __future__ import annotations

import argparse
from pathlib import Path

ABOUT = "check a folder of results: seals, plan, completeness, signature, and the verdicts made again"
EXAMPLES = (
    "claimbench check results",
    "claimbench check runs/smollm2",
    "claimbench check /mnt/from-a-colleague --signers team.txt",
)
INCOMPLETE = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a project, its results, or a run, e.g. runs/smollm2")
    parser.add_argument(
        "--signers", type=Path, help="demand a signature of one of these: a file of ALLOWED SIGNERS, see ssh-keygen(1)"
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> int:
    from claimbench.commands import output
    from claimbench.errors import ResultError
    from claimbench.exchange import checking, folder

    findings = list(checking.check(folder.find(arguments.folder), arguments.signers))
    columns = [output.Column("part"), output.Column("state"), output.Column("", wraps=True)]
    (output.as_json if arguments.json else output.table)(columns, [[str(field) for field in one] for one in findings])
    states = {finding.state for finding in findings}
    if checking.State.BAD in states:
        output.note("something here cannot be trusted")
        return ResultError.exit_status
    if checking.State.MISSING in states:
        output.note("what is here is sound, and not all that was planned is here")
        return INCOMPLETE
    return 0
