"""The report of several machines as Markdown. The same folders give the same bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from claimbench.exchange import machines
from claimbench.exchange.compare import Side
from claimbench.formatting import count
from claimbench.reporting import markup
from claimbench.schema.measured_elsewhere import MeasuredElsewhere


def render(sides: Sequence[Side], metrics: Sequence[str], imported: Sequence[MeasuredElsewhere]) -> str:
    """
    Raises:
        ResultError: a folder lacks what is shown of it, or it cannot be trusted.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("claimbench.exchange"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - Markdown, not HTML; what comes from outside goes through `cell`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": markup.literal, "prose": markup.prose}
    environment.globals["count"] = count
    text = environment.get_template("machines.md.j2").render(
        columns=machines.columns(sides),
        machines=machines.machines(sides),
        claims=machines.claims(sides),
        cells=[grid for metric in metrics for grid in machines.cells(sides, metric)],
        ceilings=machines.ceilings(sides),
        elsewhere=machines.elsewhere(imported),
    )
    return re.sub(r"\n{3,}", "\n\n", text)
