"""A cell's list of optimizations, as a study writes it -> those of it, validated, that fit their backend together."""

from __future__ import annotations

from collections.abc import Iterator

from claimbench import optimizations
from claimbench.errors import ConfigError, did_you_mean
from claimbench.schema.cell import OptimizationUse
from claimbench.schema.study import Study
from claimbench.schema.validation import validate


def optimization_list(
    asked: tuple[str | dict[str, dict[str, object]], ...],
    study: Study,
    seams: frozenset[str],
    backend_name: str,
    path: str,
) -> tuple[tuple[OptimizationUse, ...], str | None]:
    """The optimizations that are asked for, presets taken apart, by name; none of them and why where one is planned.

    Raises:
        ConfigError: one is unknown, does not fit the backend, or clashes with another.
    """
    uses: list[OptimizationUse] = []
    owner: dict[str, str] = {}
    for name, raw in _expanded(asked, study, path):
        if name in study.planned.optimizations:
            if name in optimizations.names():
                raise ConfigError(f"{path}: the optimization '{name}' is there now: take it out of `planned`")
            return (), study.planned.reason(name)
        if name not in optimizations.names():
            hint = did_you_mean(name, [*optimizations.names(), *study.presets])
            raise ConfigError(f"{path}.optimizations: unknown optimization '{name}'.{hint}")
        module = optimizations.find(name)
        settings = validate(module.Settings, raw, f"{path}.optimizations.{name}").model_dump(mode="json")
        if module.SEAM not in seams:
            raise ConfigError(
                f"{path}: '{name}' changes the {module.SEAM}, which the backend '{backend_name}' does not offer"
            )
        if module.SEAM in owner:
            raise ConfigError(f"{path}: '{owner[module.SEAM]}' and '{name}' both change the {module.SEAM}: keep one")
        owner[module.SEAM] = name
        uses.append(OptimizationUse(name=name, settings=settings))
    _check_company({use.name for use in uses}, path)
    return tuple(sorted(uses, key=lambda use: use.name)), None


def _expanded(
    asked: tuple[str | dict[str, dict[str, object]], ...], study: Study, path: str, inside: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, object]]]:
    """(optimization, settings) of every entry; a preset's name stands for what it lists."""
    for entry in asked:
        if isinstance(entry, dict) and len(entry) != 1:
            raise ConfigError(f"{path}.optimizations: expected a name or one {{name: settings}}, got {entry!r}")
        name, raw = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        if name not in study.presets:
            yield name, raw
        elif name in inside:
            raise ConfigError(f"{path}: the preset '{name}' contains itself: {' > '.join((*inside, name))}")
        elif raw:
            raise ConfigError(f"{path}: the preset '{name}' takes no settings, got {raw!r}")
        else:
            yield from _expanded(study.presets[name], study, path, (*inside, name))


def _check_company(names: set[str], path: str) -> None:
    for name in sorted(names):
        module = optimizations.find(name)
        for needed in getattr(module, "NEEDS", frozenset()) - names:
            raise ConfigError(f"{path}: '{name}' needs '{needed}' as well")
        for clashing in getattr(module, "CLASHES", frozenset()) & names:
            raise ConfigError(f"{path}: '{name}' cannot be combined with '{clashing}'")
