"""A model and techniques by name -> params and a study that try them: plain Transformers first, then each. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

from claimbench import backends, optimizations
from claimbench.checkpoints import sources
from claimbench.errors import ConfigError, SourceError, did_you_mean
from claimbench.formatting import slug
from claimbench.planning.nearest import nearest
from claimbench.schema.params import SOURCE_KINDS, source_meant

PLAIN = "plain"
USUAL_BACKENDS = ("transformers", "engine")
"""In which techniques are looked for first."""
USUAL = (
    "sdpa",
    "sdpa+static_cache+compile_layer",
    "sdpa+static_cache+compile_layer+torchao_int8",
    "bitsandbytes_4bit",
    "prompt_lookup",
)
"""What to try where nothing is said: one of each kind that Transformers' users can switch on."""
NOT_TRIED = ("null_model", "null_server")
"""Backends without a model, for tests; whoever names them gets them."""
STORY = {
    "user": "Write a short story about the keeper of a lighthouse on a northern coast, who finds an old map one "
    "winter morning, cannot read the names on it, and sets out in a small boat to see the last of its islands.",
    "base": "One winter morning, the keeper of a lighthouse on a northern coast found an old map. He could not read "
    "the names on it, so he set out in a small boat to see the last of its islands. When he",
}


class Attempt(NamedTuple):
    """One row: a backend, and techniques with their settings."""

    label: str
    title: str
    backend: str
    optimizations: tuple[str | dict[str, dict[str, Any]], ...]


class Workload(NamedTuple):
    """What is asked of the model. `prompts` empty: a story."""

    prompts: tuple[str, ...] = ()
    prompt_tokens: int | None = None
    new_tokens: int = 32
    batch: int = 1
    dtype: str = "float32"


class Trial(NamedTuple):
    name: str
    params: dict[str, Any]
    study: dict[str, Any]


def checkpoint_of(asked: str, known: Mapping[str, Any]) -> tuple[str, Any]:
    """A name and what params.yaml says of it, for a source or for a name among the checkpoints that are `known`.

    Raises:
        ConfigError: it is neither.
        SourceError: it is a source, but not of a form that a source has.
    """
    if asked.startswith(SOURCE_KINDS):
        parsed = sources.parse(asked)
        if isinstance(parsed, sources.LocalSource):  # the run is in another folder
            return slug(parsed.path.name.removesuffix(".gguf")), {"source": f"file://{quote(str(parsed.path))}"}
        return _name_of(asked), {"source": asked}
    if "://" in asked:
        kind = f"{asked.partition('://')[0]}://"
        hint = source_meant(asked) or did_you_mean(kind, SOURCE_KINDS)
        raise SourceError(f"unknown kind of source '{kind}'.{hint}")
    if asked not in known:
        hint = source_meant(asked) or nearest(asked, known, "`claimbench list models` names those that are known.")
        raise ConfigError(f"unknown model '{asked}'.{hint} A source begins with {', '.join(SOURCE_KINDS)}")
    return asked, known[asked]


def _name_of(source: str) -> str:
    """The last part of an address without its revision and its file's ending, as a name of a checkpoint."""
    rest = source.partition("://")[2].partition("?")[0]
    rest = rest.removeprefix("hf://").split("==")[0] if "==" in rest else rest.removeprefix("hf://").split("@")[0]
    return slug(rest.rstrip("/").rpartition("/")[2].removesuffix(".gguf"))


def attempt_of(asked: str) -> Attempt:
    """One of what is to be tried: names of techniques and at most one backend, joined by `+`.

    A technique's settings follow it, as in `prompt_lookup:tokens=10`. What a technique needs is put beside it.

    Raises:
        ConfigError: a name is unknown, or no backend has all that the techniques change.
    """
    backend, uses = None, dict[str, dict[str, Any]]()
    for part in filter(None, (word.strip() for word in asked.split("+"))):
        name, *settings = re.split(r":(?=\w+=)", part)
        if name in optimizations.names():
            uses[name] = dict(_setting(one, part) for one in settings)
        elif name not in backends.names():
            known = [*optimizations.names(), *(one for one in backends.names() if one not in NOT_TRIED)]
            hint = nearest(name, known, "`claimbench list techniques backends` names them.")
            raise ConfigError(f"--try: unknown technique or backend '{name}'.{hint}")
        elif backend is not None:
            raise ConfigError(f"--try: '{asked}' names two backends, {backend} and {name}: separate them with commas")
        elif settings:
            raise ConfigError(f"--try: '{part}': a backend's options are set in a study: see `claimbench new`")
        else:
            backend = name
    if backend is None and not uses:
        raise ConfigError("--try: expected names of techniques or backends, separated by commas")
    for name in list(uses):
        _check_settings(name, uses[name])
        _add_needed(name, uses)
    return Attempt(
        label=slug(asked).replace("-", "_"),
        title=" + ".join([*([backend] if backend else []), *map(_titled, uses.items())]),
        backend=_backend_for(uses, asked) if backend is None else backend,
        optimizations=tuple({name: settings} if settings else name for name, settings in uses.items()),
    )


def _check_settings(name: str, given: Mapping[str, Any]) -> None:
    """Raises ConfigError where a technique has a setting without a default, and it is not given."""
    for setting, field in optimizations.find(name).Settings.model_fields.items():
        if field.is_required() and setting not in given:
            is_draft = getattr(optimizations.find(name), "CHECKPOINT_SETTING", None) == setting
            value, what = ("NAME", "a draft model, by its name or its source") if is_draft else ("N", f"`{setting}`")
            raise ConfigError(f"--try: {name} needs {what}: write {name}:{setting}={value}")


def _setting(text: str, part: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--try: '{part}': cannot read the value of '{name}'") from None


def _titled(use: tuple[str, Mapping[str, Any]]) -> str:
    name, settings = use
    return f"{name} ({', '.join(f'{key} {value}' for key, value in settings.items())})" if settings else name


def _add_needed(name: str, uses: dict[str, dict[str, Any]]) -> None:
    for needed in sorted(getattr(optimizations.find(name), "NEEDS", frozenset())):
        if needed not in uses:
            uses[needed] = {}
            _add_needed(needed, uses)


def _backend_for(uses: Mapping[str, Any], asked: str) -> str:
    """The first backend that has every seam that the techniques change."""
    seams = {optimizations.find(name).SEAM for name in uses}
    for name in (*USUAL_BACKENDS, *(one for one in backends.names() if one not in USUAL_BACKENDS)):
        if seams <= backends.find(name).SEAMS:
            return name
    raise ConfigError(f"--try: no backend can do all of '{asked}': separate what does not go together with commas")


def compose(
    model: str, known: Mapping[str, Any], tries: Sequence[str], workload: Workload, minutes: float, device: str = "auto"
) -> Trial:
    """The params and the study that try `tries` on `model`, which is a source or one of the `known` checkpoints.

    Raises:
        ConfigError: a name is unknown.
        SourceError: the model's source is of no form that a source has.
    """
    name, checkpoint = checkpoint_of(model, known)
    checkpoints = {name: checkpoint}
    attempts = [attempt_of(one) for one in dict.fromkeys(tries)]
    attempts = [_with_drafts(one, known, checkpoints) for one in attempts]
    attempts = [one for one in attempts if (one.backend, one.optimizations) != ("transformers", ())]
    params = {
        "device": device,
        "studies": [name.lower()],
        "measure": {"budget_minutes": float(minutes)},
        "checkpoints": checkpoints,
    }
    return Trial(name.lower(), params, _study(name, attempts, workload))


def _with_drafts(attempt: Attempt, known: Mapping[str, Any], checkpoints: dict[str, Any]) -> Attempt:
    """The attempt with its draft models by name, which are added to `checkpoints`: a technique may have a source."""
    uses: list[str | dict[str, dict[str, Any]]] = []
    for use in attempt.optimizations:
        ((technique, settings),) = use.items() if isinstance(use, dict) else ((use, dict[str, Any]()),)
        key = getattr(optimizations.find(technique), "CHECKPOINT_SETTING", None)
        if key is None:
            uses.append(use)
            continue
        name, checkpoint = checkpoint_of(str(settings[key]), known)
        checkpoints[name] = checkpoint
        uses.append({technique: {**settings, key: name}})
    return attempt._replace(optimizations=tuple(uses))


def _study(name: str, attempts: Sequence[Attempt], workload: Workload) -> dict[str, Any]:
    prompts = _prompts(workload)
    sizes = {"prompt_tokens": workload.prompt_tokens} if workload.prompt_tokens else {}
    experiments, claims = dict[str, Any](), list[dict[str, Any]]()
    for number, prompt in enumerate(prompts, start=1):
        experiment = "decode" if len(prompts) == 1 else f"prompt_{number}"
        cells: dict[str, Any] = {PLAIN: {"title": "Plain Transformers"}}
        for place, attempt in enumerate(_distinct(attempts), start=1):
            cells[attempt.label] = _cell(attempt)
            claims += _claims(f"{experiment}/{attempt.label}", experiment, attempt, f"T{number}.{place}", workload)
        question = f"What makes {name} answer sooner?" + (f" Prompt {number}." if len(prompts) > 1 else "")
        experiments[experiment] = {"question": question, "show": "bars", "hold": {"prompt": prompt}, "cells": cells}
    return {
        "title": f"What pays for {name} on this machine?",
        "document": {"title": "A question to this machine", "measured": "`claimbench run` wrote this study"},
        "prompts": prompts,
        "defaults": {
            "checkpoint": name,
            "dtype": workload.dtype,
            "new_tokens": workload.new_tokens,
            "batch": workload.batch,
            **sizes,
        },
        "measure": {"samples": 2},
        "experiments": experiments,
        "claims": claims,
    }


def _prompts(workload: Workload) -> dict[str, Any]:
    """A text is said to a chat model, and gone on with by another one."""
    if not workload.prompts:
        return {"story": STORY}
    return {f"prompt_{n}": {"user": text, "base": text} for n, text in enumerate(workload.prompts, start=1)}


def _distinct(attempts: Sequence[Attempt]) -> list[Attempt]:
    """With labels of their own: two of them may differ by a setting alone, and a cell may be called `plain`."""
    seen: dict[str, int] = {PLAIN: 1}
    found = []
    for one in attempts:
        seen[one.label] = seen.get(one.label, 0) + 1
        found.append(one if seen[one.label] == 1 else one._replace(label=f"{one.label}_{seen[one.label]}"))
    return found


def _cell(attempt: Attempt) -> dict[str, Any]:
    cell: dict[str, Any] = {"title": attempt.title}
    if attempt.backend != "transformers":
        cell["backend"] = attempt.backend
    if attempt.optimizations:
        cell["optimizations"] = list(attempt.optimizations)
    return cell


def _claims(address: str, experiment: str, attempt: Attempt, id: str, workload: Workload) -> list[dict[str, Any]]:
    """That it is faster, and where it promises them, that it gives the same tokens."""
    plain = f"{experiment}/{PLAIN}"
    sides = {"of": address, "to": plain}
    faster = {"kind": "ratio", "metric": "decode_tok_s", **sides, "expect": "above"}
    found = [
        {
            "id": id,
            "kind": "ratio",
            "statement": f"{attempt.title} decodes faster than plain Transformers",
            "checks": [faster],
        }
    ]
    names = [next(iter(use)) if isinstance(use, dict) else use for use in attempt.optimizations]
    if workload.dtype == "float32" and all(optimizations.find(name).EXACT for name in names):
        same = {"kind": "identity", **sides}
        statement = f"{attempt.title} gives the same tokens as plain Transformers"
        found.append({"id": f"{id}.same", "kind": "identity", "statement": statement, "checks": [same]})
    return found


def as_yaml(value: object) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    return text
