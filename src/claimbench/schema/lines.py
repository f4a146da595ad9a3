"""Where in a YAML file a mistake is that is known by its key: `a.yaml: b.c: ...` becomes `a.yaml, line 3: b.c: ...`.

Whoever finds a mistake knows values and their keys alone. The line is looked up where the message leaves the program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from claimbench.errors import ConfigError
from claimbench.schema.validation import text_of
from claimbench.schema.yaml_loader import TAG, PlainLoader

SENTENCE = re.compile(r"^(?P<file>[^:\n]+\.ya?ml): (?P<key>[^\s:]+)(?P<said>: .*)$", re.MULTILINE)


def located(message: str) -> str:
    """`message` with the line of each mistake in it whose file can be read and has the key, or the one above it."""
    return SENTENCE.sub(_with_line, message)


def _with_line(found: re.Match[str]) -> str:
    line = line_of(Path(found["file"]), found["key"], found["said"])
    return found[0] if line is None else f"{found['file']}, line {line}: {found['key']}{found['said']}"


def line_of(path: Path, key: str, said: str = "") -> int | None:
    """The line, from 1, of the innermost part of the dotted `key` that the file has.

    None where it has none of it, and where the value that is `said` to be there was put in its place from elsewhere,
    as a command line does.
    """
    try:
        node = yaml.compose(text_of(path), Loader=PlainLoader)
    except (yaml.YAMLError, ConfigError):
        return None
    line = None
    while key and node is not None:
        step = max(_steps(node, key), key=lambda step: len(step[0]), default=None)
        if step is None:
            break
        name, mark, node = step
        line, key = mark.line + 1, key[len(name) + 1 :]
    got = re.search(r"\(got (.*)\)", said)
    is_another = got and not key and isinstance(node, yaml.ScalarNode) and node.value not in got[1]
    return None if is_another else line


def _steps(node: yaml.Node, key: str) -> Iterator[tuple[str, yaml.Mark, yaml.Node]]:
    """What `key` may begin with in a list or a mapping, where that stands, and what is below it."""
    for name, at, inner in _named(node):
        if key == name or key.startswith(f"{name}."):
            yield name, at, inner


def _named(node: yaml.Node) -> Iterator[tuple[str, yaml.Mark, yaml.Node]]:
    """The parts of a mapping by their keys, merged ones too; those of a list by number, `id`, name, or only key."""
    if isinstance(node, yaml.MappingNode):
        for name, inner in node.value:
            yield str(name.value), name.start_mark, inner
            if name.tag == f"{TAG}merge":
                for merged in inner.value if isinstance(inner, yaml.SequenceNode) else [inner]:
                    yield from _named(merged)
    elif isinstance(node, yaml.SequenceNode):
        for number, inner in enumerate(node.value):
            yield str(number), inner.start_mark, inner
            if isinstance(inner, yaml.ScalarNode):
                yield str(inner.value), inner.start_mark, inner
            for name, at, below in _named(inner) if isinstance(inner, yaml.MappingNode) else ():
                if name == "id":
                    yield str(below.value), at, inner
                elif len(inner.value) == 1:
                    yield name, at, below
