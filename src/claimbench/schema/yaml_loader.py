"""YAML as DVC reads and writes it, made of plain values, with limits that are checked while it is parsed.

DVC rewrites params.yaml by the rules of YAML 1.2, PyYAML reads by those of 1.1: `1e-05` would be text, `no` a boolean
and `010` eight. So the words that stand for a number, a boolean or nothing are those of 1.2 here, as in DVC.

Nothing is constructed before the whole text was seen to keep the limits: an alias counts as all that it stands for.
"""

from __future__ import annotations

import math
import re
from typing import Any, NoReturn, cast

import yaml

MOST_DEPTH = 50
"""Of lists and mappings inside one another."""
MOST_VALUES = 100_000
"""In one file, aliases expanded."""
MOST_DIGITS = 40
"""Of one number."""

TAG = "tag:yaml.org,2002:"
KINDS = {TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


class PlainLoader(yaml.SafeLoader):
    """Texts, finite numbers, booleans, nothing; lists; mappings by texts or whole numbers, each of them there once."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, text: str) -> None:
        self._path: list[str] = []
        self._values = 0
        self._sizes: dict[int, int] = {}
        self._keys: dict[int, set[str]] = {}
        super().__init__(text)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if isinstance(parent, yaml.MappingNode) and index is None:
            key = self._composed(parent, index)
            self._check_key(parent, key)
            return key
        if parent is None:
            return self._composed(parent, index)
        self._path.append(str(index.value if isinstance(index, yaml.Node) else index))
        node = self._composed(parent, index)
        self._path.pop()
        return node

    def _composed(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        before = self._values
        mark: yaml.Mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        is_alias = self.check_event(yaml.AliasEvent)
        self._count(1, mark)
        if len(self._path) > MOST_DEPTH:
            self.refuse(f"lists and mappings are nested in more than {MOST_DEPTH} levels", mark, shown=2)
        node = super().compose_node(parent, index)
        assert node is not None
        if not is_alias:
            self._check_kind(node)
            self._sizes[id(node)] = self._values - before
        elif id(node) in self._sizes:
            self._count(self._sizes[id(node)], mark)
        else:
            self.refuse("an alias stands inside of what it is an alias for", mark)
        return node

    def _count(self, values: int, mark: yaml.Mark) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            self.refuse(f"there are more than {MOST_VALUES} values, aliases expanded", mark, shown=2)

    def _check_key(self, parent: yaml.Node, key: yaml.Node) -> None:
        if not isinstance(key, yaml.ScalarNode):
            self.refuse("expected a key that is text, got a list or a mapping", key.start_mark)
        if key.tag == f"{TAG}null":
            self.refuse("expected a key before the colon", key.start_mark)
        if key.tag not in (f"{TAG}str", f"{TAG}merge", f"{TAG}int"):
            self.refuse(f"expected a key that is text, got {key.value}: write '{key.value}'", key.start_mark)
        known, said = self._keys.setdefault(id(parent), set()), key.value
        if key.tag == f"{TAG}int":
            said = str(_integer(key))
        if said in known:
            self.refuse(f"the key '{key.value}' is there twice", key.start_mark)
        known.add(said)

    def _check_kind(self, node: yaml.Node) -> None:
        if node.tag not in KINDS:
            self.refuse(f"'{node.tag.replace(TAG, '!!')}' is no kind of plain value: leave it out", node.start_mark)
        if not isinstance(node, yaml.ScalarNode):
            return
        if node.tag in (f"{TAG}int", f"{TAG}float"):
            if len(node.value) > MOST_DIGITS:
                self.refuse(f"expected a number of at most {MOST_DIGITS} digits", node.start_mark)
            try:
                is_finite = math.isfinite(_integer(node) if node.tag == f"{TAG}int" else _number(node))
            except ValueError:
                self.refuse(f"expected a number (got {node.value!r})", node.start_mark)
            if not is_finite:
                self.refuse(f"expected a finite number (got {node.value})", node.start_mark)
        if node.tag == f"{TAG}bool" and node.value.lower() not in ("true", "false"):
            self.refuse(f"expected true or false (got {node.value!r})", node.start_mark)

    def refuse(self, problem: str, mark: yaml.Mark, shown: int | None = None) -> NoReturn:
        """Raise a YAMLError at `mark` that names the key: its first `shown` parts where the whole path is no help."""
        path = ".".join(self._path[:shown])
        raise yaml.composer.ComposerError(None, None, f"{path}: {problem}" if path else problem, mark)


def _integer(node: yaml.ScalarNode) -> int:
    sign, text = re.fullmatch(r"([-+]?)(.*)", node.value.replace("_", ""), re.DOTALL).groups()  # type: ignore[union-attr]
    base = {"0b": 2, "0o": 8, "0x": 16}.get(text[:2].lower())
    number = int(text[2:], base) if base else int(text)
    return -number if sign == "-" else number


def _number(node: yaml.ScalarNode) -> float:
    text = node.value.replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


PlainLoader.add_constructor(f"{TAG}int", lambda _, node: _integer(cast("yaml.ScalarNode", node)))
PlainLoader.add_constructor(f"{TAG}float", lambda _, node: _number(cast("yaml.ScalarNode", node)))
for kind, pattern, begins in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?0b[01_]+|[-+]?0o[0-7_]+|[-+]?0x[0-9a-fA-F_]+|[-+]?[0-9][0-9_]*", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    PlainLoader.add_implicit_resolver(TAG + kind, re.compile(rf"^(?:{pattern})$"), list(begins))
