"""What there is to choose from."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claimbench.schema.study import Study

ABOUT = "studies, claims, techniques, backends, models, architectures and metrics, one a line"
EXAMPLES = (
    "claimbench list",
    "claimbench list techniques cache",
    "claimbench list claims quantized",
    "claimbench list models metrics --json",
)
KINDS = ("studies", "claims", "techniques", "backends", "models", "architectures", "metrics")

SHORT = 50
Line = tuple[str, str]
"""A name, and what it is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="KIND|WORD",
        help=f"kinds ({', '.join(KINDS)}), and words that a line must have, e.g. techniques cache; default: all",
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> int | None:
    from claimbench.commands import output

    kinds = [word for word in arguments.words if word in KINDS] or list(KINDS)
    wanted = [word.lower() for word in arguments.words if word not in KINDS]
    columns = [output.Column("kind"), output.Column("name"), output.Column("what it is", wraps=True)]
    rows, status = list[list[str]](), None
    for kind in kinds:
        for name, about in LISTED[kind]():
            if about.startswith("damaged: "):
                status = 2
            if all(word in f"{name} {about}".lower() for word in wanted):
                rows.append([kind, name, about])
    none = f"nothing of {', '.join(kinds)} has {' and '.join(wanted)} in it"
    output.rows(columns, rows, json=arguments.json, none=none)
    return status


def studies() -> dict[str, Study | str]:
    """The studies here, of runs here, and those that come with the package, by name; of a bad one what is wrong."""
    from claimbench.errors import ConfigError
    from claimbench.schema.params import load_studies, study_files
    from claimbench.workflow import source

    here, shipped = Path("studies"), source.folder() / "studies"
    found: dict[str, Study | str] = {}
    for place in (here, shipped, *sorted(Path("runs").glob("*/studies"))):
        for stem, path in sorted(study_files(place).items()):
            name = path.relative_to(place).with_suffix("").as_posix() if place in (here, shipped) else str(path)
            if name in found:
                continue
            try:
                found[name] = load_studies((stem,), place)[stem]
            except ConfigError as error:
                found[name] = f"damaged: {str(error).splitlines()[0]}"
    return found


def _studies() -> Iterator[Line]:
    for name, study in studies().items():
        yield name, study if isinstance(study, str) else f"{study.title} ({len(study.claims)} claims)"


def _claims() -> Iterator[Line]:
    for name, study in studies().items():
        if not isinstance(study, str):
            yield from ((f"{name}:{claim.id}", claim.statement) for claim in study.claims)


def _techniques() -> Iterator[Line]:
    import importlib.util

    from claimbench import optimizations

    for name in optimizations.names():
        yield name, _about(importlib.util.find_spec(optimizations.module_of(name)))


def _backends() -> Iterator[Line]:
    import importlib.util

    from claimbench import backends

    for name in backends.names():
        yield name, _about(importlib.util.find_spec(f"claimbench.backends.{name}"))


def _about(spec: object) -> str:
    """The first sentence of a module's docstring, with the next where it is short; nothing is imported."""
    origin = getattr(spec, "origin", None)
    if not origin:
        return ""
    text = ast.get_docstring(ast.parse(Path(origin).read_text(encoding="utf-8"))) or ""
    first, _, rest = " ".join(text.split()).removeprefix("Physics: ").partition(". ")
    both = f"{first}. {rest.partition('. ')[0]}" if rest and len(first) < SHORT else first
    return both.rstrip(".")


def _models() -> Iterator[Line]:
    from claimbench.commands.people.run import known_params

    for name, said in known_params()["checkpoints"].items():
        known = {"source": said} if isinstance(said, str) else said
        unavailable = f" (unavailable: {known['unavailable']})" if "unavailable" in known else ""
        yield name, f"{known['source']}{unavailable}"


def _architectures() -> Iterator[Line]:
    from claimbench.cost_model import cost

    for name in cost.shape_names():
        yield name, f"random://{name}: weights of that shape, at random"


def _metrics() -> Iterator[Line]:
    from claimbench.schema.metrics import METRICS

    for name, metric in METRICS.items():
        better = {"higher": ", higher is better", "lower": ", lower is better", "none": ""}[metric.better]
        yield name, f"{metric.title}{f' ({metric.unit})' if metric.unit else ''}{better}"


LISTED: dict[str, Callable[[], Iterator[Line]]] = {
    "studies": _studies,
    "claims": _claims,
    "techniques": _techniques,
    "backends": _backends,
    "models": _models,
    "architectures": _architectures,
    "metrics": _metrics,
}
