"""A plan's rounds from the first to the file that lists them: one run after the other where several share a folder."""

from __future__ import annotations

from pathlib import Path

from claimbench.deciding.decide import Decider
from claimbench.deciding.round_files import Say
from claimbench.errors import ResultError
from claimbench.schema import durable
from claimbench.schema import round as round_file
from claimbench.schema.plan import Plan
from claimbench.system import turns

LOCK = ".rounds.lock"
"""Beside the folder of rounds."""


def settle(plan: Plan, folder: Path, output: Path, say: Say) -> None:
    """Measure the plan's rounds in `folder`, and list them in `output`; a whole list that is there already is kept.

    Raises:
        ClaimbenchError: a round's process ended without a round.
    """
    durable.make_folder(folder)
    with turns.alone(folder.with_name(LOCK), f"the rounds in {folder}"):
        if is_whole(output):
            say(f"{output} lists all rounds already")
            return
        decider = Decider(plan, folder, say)
        decider.run()
        say(f"{decider.progress(is_over=True).text} in {len(decider.rounds)} rounds")
        round_file.write_all(output, plan.budget_minutes, decider.rounds)
        for other in set(output.parent.glob("*.json")) - {output}:
            durable.remove(other)


def is_whole(decided: Path) -> bool:
    """Whether the list is there with all of its rounds: by another run, or by one that was killed afterwards."""
    if not decided.exists():
        return False
    try:
        round_file.read_all(decided)
    except ResultError:
        return False
    return True
