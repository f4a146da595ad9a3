"""References that are made of what the program itself reads: its argument parser, and the schemas of its files."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

from claimbench import commands as known_commands
from claimbench.commands import parser

Schema = dict[str, Any]


def commands(root: Path) -> str:
    """The help of every command, as a terminal shows it."""
    groups = {"Every argument": known_commands.PEOPLE, "Stages": known_commands.stage_names()}
    about = {"Stages": "What the workflow's rules call; a person rarely does.\n\n"}
    return "".join(
        f"\n## {title}\n\n{about.get(title, '')}{''.join(map(section, names))}" for title, names in groups.items()
    )


def section(name: str) -> str:
    return f"### {name}\n\n```text\n{help_of(name)}```\n\n"


def help_of(name: str) -> str:
    os.environ |= {"COLUMNS": "96", "NO_COLOR": "1"}
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        parser.make([name]).parse_args([name, "--help"])
    return said.getvalue()


def studies(root: Path) -> str:
    """Every key of a study and of params.yaml, from the schemas that editors use."""
    return "".join(
        f"\n## Every key of {title}\n\n" + keys(json.loads((root / f"studies/schema/{name}.schema.json").read_text()))
        for title, name in (("a study", "study"), ("params.yaml", "params"))
    )


def keys(schema: Schema) -> str:
    parts = [table(schema)]
    for name, one in sorted(schema["$defs"].items()):
        about = one.get("description", "").replace("\n\n", "\n").strip()
        parts.append(f"### {name}\n\n{about}\n\n{table(one)}" if one.get("properties") else "")
    return "\n".join(filter(None, parts))


def table(one: Schema) -> str:
    required = one.get("required", [])
    rows = [
        f"| `{key}` | {type_of(value)} | {default_of(value, key in required)} | {cell(value.get('description', ''))} |"
        for key, value in sorted(one["properties"].items(), key=lambda item: item[0] not in required)
    ]
    return "\n".join(["| key | takes | default | what it is |", "|---|---|---|---|", *rows, ""])


def default_of(value: Schema, is_required: bool) -> str:
    if is_required:
        return "required"
    default = value.get("default")
    return "" if default in (None, []) or isinstance(default, dict) else f"`{json.dumps(default)}`"


def type_of(value: Schema) -> str:
    """`a number of at least 1`, or a link to what it is made of."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for either in ("anyOf", "oneOf", "allOf"):
        if either in value:
            return " or ".join(dict.fromkeys(type_of(one) for one in value[either] if one != {"type": "null"}))
    if "const" in value or "enum" in value:
        return ", ".join(f"`{word}`" for word in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return f"list of {type_of(value['items'])}" if value.get("items") else "list"
    if value.get("type") == "object":
        of = next(iter(value.get("patternProperties", {}).values()), value.get("additionalProperties"))
        return f"by name, {type_of(of)}" if isinstance(of, dict) else "by name"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    said = [f"{word} {value[bound]:g}" for bound, word in bounds.items() if bound in value]
    return " ".join([words.get(value.get("type", ""), "anything"), *said])


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
