"""What a table is made of, for the stages that make it and that show it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claimbench.schema.ceilings import Ceilings
    from claimbench.schema.plan import Plan


def read(arguments: argparse.Namespace) -> tuple[Plan, Ceilings, dict[str, str]]:
    """The plan, this machine's ceilings, and their seals by name, with that of the rounds where there are any."""
    from claimbench.schema import ceilings, sealed
    from claimbench.schema import round as round_file
    from claimbench.schema.plan import read as read_plan

    plan = read_plan(arguments.plan)
    limits = ceilings.read(arguments.ceilings, plan.machine["key"], plan.device)
    made_of = {"plan": plan.seal, "ceilings": sealed.seal(limits)}
    if arguments.rounds:
        made_of["rounds"] = sealed.seal(round_file.read_summary(arguments.rounds))
    return plan, limits, made_of
