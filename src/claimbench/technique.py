"""An optimization of a cell with its settings: what a backend hands to a session, which knows no technique by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from claimbench.proof import Findings
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen


class Optimization(Protocol):
    """A file of `optimizations/`; that folder's `__init__.py` says what each name is for."""

    SEAM: str
    EXACT: bool
    LIBRARIES: tuple[str, ...]
    Settings: type[Frozen]

    def unavailable(self, cell: Cell, settings: Any) -> str | None: ...

    def apply(self, target: Any, settings: Any) -> None: ...

    def prove(self, evidence: Any, settings: Any) -> Findings: ...


@dataclass(frozen=True)
class Technique:
    name: str
    optimization: Optimization
    settings: Frozen

    @property
    def is_about_draft(self) -> bool:
        """Whether it is about a draft checkpoint, which is then served by all the other techniques too."""
        return hasattr(self.optimization, "CHECKPOINT_SETTING")

    def unavailable(self, cell: Cell) -> str | None:
        """Why this machine cannot run it in `cell`, by name; None where it can."""
        reason = self.optimization.unavailable(cell, self.settings)
        return f"{self.name}: {reason}" if reason else None

    def lacks(self, model: Any) -> str | None:
        """What the loaded model, an engine's `Spec`, lacks for it, by name; None: nothing that it looks at."""
        look = getattr(self.optimization, "lacks", None)
        reason = look(model, self.settings) if look else None
        return f"{self.name}: {reason}" if reason else None

    def apply(self, target: Any) -> None:
        """Change `target`, an `Engine` or a `GenerationSetup`, at the technique's seam."""
        self.optimization.apply(target, self.settings)

    def prove(self, evidence: Any) -> Findings:
        """What was seen to run.

        Raises:
            WrongOutput: it was not this technique.
        """
        return self.optimization.prove(evidence, self.settings)
