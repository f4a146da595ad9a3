"""YAML -> a validated value, or one sentence per mistake that names file, key and the nearest known name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from claimbench.errors import ConfigError, did_you_mean
from claimbench.schema import plain_file
from claimbench.schema.yaml_loader import PlainLoader

Model = TypeVar("Model", bound=BaseModel)
MOST_BYTES = 1_000_000
"""Of params.yaml or a study: the largest that Claimbench has are a twentieth of it."""


def parse_yaml(text: str, where: str) -> Any:
    """The value that `text` says, by yaml_loader.py's rules.

    Raises:
        ConfigError: it is not such YAML; the line is named, and the key where there is one.
    """
    try:
        return yaml.load(text, Loader=PlainLoader)  # noqa: S506 - a SafeLoader
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = f"U+{ord(text[error.position]):04X}"
        raise ConfigError(f"{where}, line {line}: a character that no text has ({code}): take it out") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line_named = f", line {mark.line + 1}" if mark else ""
        problem = str(error.problem or error)
        advice = ": indent with spaces" if "'\\t'" in problem else ""
        raise ConfigError(f"{where}{line_named}: {problem}{advice}") from error


def read_yaml(path: Path) -> Any:
    """`parse_yaml` of a file. Raises ConfigError as it does, and as `text_of`."""
    return parse_yaml(text_of(path), str(path))


def text_of(path: Path) -> str:
    """The text of a file; a larger one than `MOST_BYTES` is not opened.

    Raises:
        ConfigError: it cannot be read, or is no text.
    """
    try:
        content = plain_file.read_bytes(path, MOST_BYTES)
        return content.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: expected UTF-8, got byte 0x{content[error.start]:02x}") from error


def validate(model: type[Model], value: object, where: str) -> Model:
    """`value` as a `model`.

    Raises:
        ConfigError: one line per mistake: file, key path, what was expected, what arrived, the nearest valid name.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected keys and values, got {type(value).__name__}")
    for key, number in _not_finite(value):
        raise ConfigError(f"{where}: {key}: expected a finite number (got {number})")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in _sentences(model, value, error))) from error


def _not_finite(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[str, float]]:
    """Infinities and NaNs by their key: what Snakemake's command line sets has not been parsed here."""
    if isinstance(value, float) and not math.isfinite(value):
        yield ".".join(map(str, path)), value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _not_finite(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _not_finite(inner, (*path, number))


def _sentences(model: type[BaseModel], value: object, error: ValidationError) -> list[str]:
    """One sentence per wrong key. What a wrong key makes wrong above it is left out."""
    by_key: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for item in error.errors():
        by_key.setdefault(_key_path(value, item), []).append(item)
    deepest = [key for key in by_key if not any(other[: len(key)] == key and other != key for other in by_key)]
    return [f"{'.'.join(map(str, key)) or '(top)'}: {_sentence(model, by_key[key])}" for key in deepest]


def _key_path(value: object, item: ErrorDetails) -> tuple[int | str, ...]:
    """Where the mistake is, in the file's own keys: pydantic also names the branches of unions on its way."""
    path: list[int | str] = []
    location = item["loc"]
    for number, part in enumerate(location):
        entries = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(entries, Mapping) and part in entries:
            value = entries[part]
        elif item["type"] != "missing" or number < len(location) - 1:
            continue
        path.append(part)
    return (*path, "kind") if item["type"].startswith("union_tag") else tuple(path)


def _sentence(model: type[BaseModel], items: list[ErrorDetails]) -> str:
    """What is wrong with one key; where it may be one of several things, each of them."""
    first = items[0]
    location = first["loc"]
    if first["type"] == "extra_forbidden":
        return f"unknown key '{location[-1]}'.{did_you_mean(str(location[-1]), _fields_at(model, location[:-1]))}"
    if first["type"] == "missing":
        present = ", ".join(map(str, first["input"])) if isinstance(first["input"], Mapping) else ""
        return f"this key is missing (got {present or 'no keys'})"
    if first["type"].startswith("union_tag"):
        context = first.get("ctx", {})
        kinds = [kind.strip("' ") for kind in str(context.get("expected_tags", "")).split(",") if kind]
        if first["type"] == "union_tag_invalid":
            return f"unknown kind '{context['tag']}'.{did_you_mean(str(context['tag']), kinds)}"
        return f"this key is missing (got {', '.join(map(str, first['input']))})"
    expected = " or ".join(dict.fromkeys(_expected(item) for item in items))
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):
        return expected
    hint = ""
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        hint = did_you_mean(first["input"], re.findall(r"'([^']*)'", first["ctx"]["expected"]))
        hint = hint if hint.startswith(" Did") else ""
    arrived = repr(first["input"])
    return f"{expected} (got {arrived if len(arrived) <= 60 else arrived[:57] + '...'}).{hint}".removesuffix(".")


PLAIN_WORDS = {
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "string_type": "expected text",
    "tuple_type": "expected a list",
    "dict_type": "expected keys and values",
    "model_type": "expected keys and values",
    "too_short": "expected at least one entry",
}


def _expected(item: ErrorDetails) -> str:
    """A message of pydantic without the words that only Python has."""
    message = item["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return PLAIN_WORDS.get(item["type"], message)


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names of the model that stands at `location`; walks the JSON schema, which spells out unions."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    nodes = [schema]
    for part in location:
        following: list[dict[str, Any]] = []
        for node in _expand(nodes, definitions):
            properties = node.get("properties", {})
            if part in properties:
                following.append(properties[part])
            elif isinstance(node.get("additionalProperties"), dict):
                following.append(node["additionalProperties"])
            elif "patternProperties" in node:
                following.extend(node["patternProperties"].values())
            elif isinstance(part, int) and "items" in node:
                following.append(node["items"])
            elif node.get("properties", {}).get("kind", {}).get("const") == part:
                following.append(node)
        nodes = following or nodes
    return sorted({name for node in _expand(nodes, definitions) for name in node.get("properties", {})})


def _expand(nodes: list[dict[str, Any]], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for node in nodes:
        if "$ref" in node:
            found += _expand([definitions[node["$ref"].rsplit("/", 1)[-1]]], definitions)
        elif any(key in node for key in ("anyOf", "oneOf", "allOf")):
            inner = [part for key in ("anyOf", "oneOf", "allOf") for part in node.get(key, [])]
            found += _expand(inner, definitions)
        else:
            found.append(node)
    return found
