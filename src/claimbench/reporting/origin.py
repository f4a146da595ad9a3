"""What a report is of: its plan, the commit and the hours that its results come from."""

from __future__ import annotations

from datetime import datetime

from claimbench import __version__
from claimbench.schema.plan import Plan
from claimbench.schema.rendering import Hours, Origin


def origin_of(plan: Plan, digest: str, measured: Hours | None) -> Origin:
    """That of `plan`, whose file is named by `digest`, and of results that were `measured` then."""
    return Origin(plan=digest, commit=plan.commit, version=__version__, measured=measured)


def described(origin: Origin) -> str:
    """One line for the foot of a report's first paragraph."""
    return "; ".join([f"plan `{origin.plan}`", *_hours(origin.measured), _code(origin)])


def _hours(measured: Hours | None) -> list[str]:
    if measured is None:
        return []
    first, last = (datetime.fromisoformat(moment) for moment in measured)
    end = f"{last:%H:%M}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M}"
    return [f"measured {first:%Y-%m-%d %H:%M} to {end} UTC"]


def _code(origin: Origin) -> str:
    number, _, dirty = (origin.commit or "").partition("-")
    where = f"commit `{number}`" if number else "commit not recorded"
    changed = " and uncommitted changes" if dirty else ""
    return f"Claimbench {origin.version}, {where}{changed}"
