"""YAML -> a validated value, or one sentence per mistake that names file, key and the nearest known name."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from claimbench.errors import ConfigError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Plain YAML silently keeps the last of two equal keys; a study would lose an experiment without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: {error.problem or error}") from error


def read_yaml(path: Path) -> Any:
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


def validate(model: type[Model], value: object, where: str) -> Model:
    """`value` as a `model`.

    Raises:
        ConfigError: one line per mistake: file, key path, what was expected, what arrived, the nearest valid name.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected keys and values, got {type(value).__name__}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in _sentences(model, value, error))) from error


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
