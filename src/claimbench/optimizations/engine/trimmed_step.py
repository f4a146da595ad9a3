"""Physics: saves Python. Where a step's operators are over before the interpreter has asked for the next one, the
interpreter is what a token waits for: small models, small batches, fast devices. Here a step is one flat loop of calls
with everything else hoisted out of it: no `nn.Module.__call__` with its hooks, no weights looked up by `__getattr__`,
no positions worked out anew in every layer. It gains nothing where the device is behind the interpreter: large models
and large batches.

Operators stay the ones that are plugged in, in the same order; only rotary positions are turned once for queries and
keys together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.evidence import EngineEvidence

SEAM = "step"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(engine: Engine, settings: Settings) -> None:
    from claimbench.engine.steps.flat import step_trimmed

    engine.step = step_trimmed


def prove(evidence: EngineEvidence, settings: Settings) -> Findings:
    """The prompt goes through the modules, so it says how many calls of modules there would be."""
    calls = evidence.calls("Module._call_impl")
    expect("trimmed_step", calls == 0 < len(evidence.steps), "no module called in a decode step", f"{calls} calls")
    return {
        "module_calls_of_prefill": evidence.prefill.called("Module._call_impl"),
        "python_calls_of_prefill": sum(evidence.prefill.timed_calls.values()),
        "python_calls_per_step": [sum(step.timed_calls.values()) for step in evidence.steps],
    }
