"""The report of several machines as Markdown. The same folders give the same bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from claimbench.exchange import machines
from claimbench.exchange.compare import Side
from claimbench.formatting import count
from claimbench.reporting import markup
from claimbench.reporting.template_environment import environment_of
from claimbench.schema.measured_elsewhere import MeasuredElsewhere


def render(sides: Sequence[Side], metrics: Sequence[str], imported: Sequence[MeasuredElsewhere]) -> str:
    """
    Raises:
        ResultError: a folder lacks what is shown of it, or it cannot be trusted.
    """
    environment = environment_of("claimbench.exchange", is_html=False)
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
