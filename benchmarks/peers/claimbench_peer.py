"""A backend of Claimbench, through the interface by which the pipeline measures it.

`settings` are those of a cell: `backend`, `dtype`, `optimizations` (names, or one-key mappings of name to settings).
"""

from __future__ import annotations

import importlib.metadata
from contextlib import closing
from pathlib import Path
from typing import Any

from serve import Emit, serve

from claimbench import backends
from claimbench.errors import Unavailable
from claimbench.optimizations import find, names, settings_of
from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Protocol, Workload


class Claimbench:
    def __init__(self, request: dict[str, Any]) -> None:
        settings = request["settings"]
        if settings["backend"] not in backends.names():
            raise Unavailable(f"this Claimbench has no backend {settings['backend']!r}")
        backend = backends.find(settings["backend"])
        self.cell = Cell(
            checkpoint=Checkpoint(name="peers", source=request["source"], architecture=request["architecture"]),
            backend=settings["backend"],
            options=settings.get("options", {}),
            optimizations=in_company(
                [held_to(request.get("instructions"), written_out(use)) for use in settings["optimizations"]],
                backend.SEAMS,
            ),
            dtype=settings["dtype"],
            workload=Workload(
                prompt=request["prompt_text"],
                prompt_tokens=len(request["prompt"]),
                new_tokens=request["new_tokens"],
            ),
            device="cpu",
            protocol=Protocol(threads=request["threads"]),
        )
        reasons = [backend.unavailable(self.cell)]
        reasons += [find(use.name).unavailable(self.cell, settings_of(use.name, use.settings)) for use in self.uses]
        for reason in filter(None, reasons):
            raise Unavailable(reason)
        self.session = backend.load(self.cell, Path(request["checkpoint"]), None)
        if len(self.session.prompt_ids) != len(request["prompt"]):
            raise ValueError(f"expected {len(request['prompt'])} prompt tokens, got {len(self.session.prompt_ids)}")
        memory = self.session.memory()
        self.about = {
            "versions": {name: importlib.metadata.version(name) for name in ("claimbench", *backend.LIBRARIES)},
            "dtype": ", ".join([settings["dtype"], *(use.name for use in self.uses)]),
            "threads": request["threads"],
            "weight_bytes": memory["step_weights"],
        }

    @property
    def uses(self) -> tuple[OptimizationUse, ...]:
        return self.cell.optimizations

    def generate(self, new_tokens: int, emit: Emit) -> None:
        """The session's workload, ended early where fewer tokens are asked for."""
        left = new_tokens
        with closing(self.session.generate()) as steps:  # type: ignore[type-var]
            for columns in steps:  # [1, n]
                row = columns[0].tolist() if hasattr(columns, "tolist") else columns[0]
                for token in row[:left]:
                    emit(token)
                left -= len(row)
                if left <= 0:
                    return

    def teacher_force(self, tokens: list[int]) -> list[int] | None:
        log_probs = self.session.log_probs(tokens)  # [len(tokens), vocabulary]
        return None if log_probs is None else log_probs.argmax(-1).tolist()

    def close(self) -> dict[str, Any]:
        proof = self.session.prove()
        self.session.close()
        return proof


def held_to(instructions: str | None, use: OptimizationUse) -> OptimizationUse:
    """The native step multiplies with what it is built for; what libraries multiply with is held by variables."""
    if instructions is None or use.name != "cpp_block":
        return use
    return use.model_copy(update={"settings": {**use.settings, "instructions": instructions}})


def written_out(use: str | dict[str, Any]) -> OptimizationUse:
    """`name` or `{name: settings}` with every default in its place, as a plan writes it."""
    name, settings = (use, {}) if isinstance(use, str) else next(iter(use.items()))
    if name not in names():
        raise Unavailable(f"this Claimbench has no optimization {name!r}")
    return OptimizationUse(name=name, settings=settings_of(name, settings).model_dump(mode="json"))


def in_company(uses: list[OptimizationUse], seams: frozenset[str]) -> tuple[OptimizationUse, ...]:
    """The techniques in a plan's order, if a plan would take them together.

    Raises:
        Unavailable: one of them changes what the backend does not offer or another one changes, lacks one that it
            needs, or clashes.
    """
    modules = {use.name: find(use.name) for use in uses}
    owners: dict[str, str] = {}
    for name, module in modules.items():
        if module.SEAM not in seams:
            raise Unavailable(f"{name!r} changes the {module.SEAM}, which this backend does not offer")
        if owners.setdefault(module.SEAM, name) != name:
            raise Unavailable(f"{owners[module.SEAM]!r} and {name!r} both change the {module.SEAM}: keep one")
        for needed in getattr(module, "NEEDS", frozenset()) - modules.keys():
            raise Unavailable(f"{name!r} needs {needed!r} as well")
        for clashing in getattr(module, "CLASHES", frozenset()) & modules.keys():
            raise Unavailable(f"{name!r} cannot be combined with {clashing!r}")
    return tuple(sorted(uses, key=lambda use: use.name))


if __name__ == "__main__":
    serve(Claimbench)
