"""Keeps secrets out of whatever is written down: results, rounds, logs, what a command prints.

A secret is the value of a variable of the environment whose name says so, a user and a password in an address that a
variable holds, and what has the form of one: a token of the hub, a bearer token, a user and a password in any address.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "<secret>"
NAMES = re.compile(
    r"TOKEN(?!S|IZER)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE|AUTH|COOKIE", re.IGNORECASE
)
SHORTEST = 4
NO_SECRETS = frozenset({"true", "false", "none", "null", "auto", "basic", "bearer", "always", "never"})
"""Values of settings that are named like secrets."""
IN_ADDRESS = re.compile(r"(?<=://)([^/@\s:]*):?([^/@\s]*)@")
FORMS = (
    (re.compile(r"(?<=://)[^/@\s'\"]+@"), f"{HIDDEN}@"),
    (re.compile(r"\bhf_\w{4,}"), HIDDEN),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), rf"\1 {HIDDEN}"),
)
IN_WORDS = ("reason", "detail", "flags", "proof", "ranks", "telemetry")
"""Parts of a result that hold what libraries and servers said. Its cell, key and numbers are Claimbench's own."""


def secrets_of(environment: Mapping[str, str]) -> tuple[str, ...]:
    """What must not be written down of these variables, the longest first: one may be a part of another."""
    found: set[str] = set()
    for name, value in environment.items():
        is_path = value.startswith(("/", "./")) and "\n" not in value
        if NAMES.search(name) and not is_path:
            found |= {value.strip(), *(line.strip() for line in value.splitlines())}
        for user, password in IN_ADDRESS.findall(value):
            found |= {password or user}
    kept = (one for one in found if len(one) >= SHORTEST and one.lower() not in NO_SECRETS)
    return tuple(sorted(kept, key=len, reverse=True))


def redact(text: str, secrets: tuple[str, ...] | None = None) -> str:
    """`text` without `secrets`, by default those of this process's environment, and without what looks like one.

    Half a character, as a server may say it in JSON, cannot be written down and becomes a question mark.
    """
    for secret in secrets_of(os.environ) if secrets is None else secrets:
        text = text.replace(secret, HIDDEN)
    for form, instead in FORMS:
        text = form.sub(instead, text)
    return text.encode("utf-8", "replace").decode("utf-8")


def redacted(value: Any, secrets: tuple[str, ...] | None = None) -> Any:
    """A JSON value with every text in it redacted, keys of mappings as well."""
    known = secrets_of(os.environ) if secrets is None else secrets
    if isinstance(value, str):
        return redact(value, known)
    if isinstance(value, Mapping):
        return {redacted(key, known): redacted(one, known) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(redacted(one, known) for one in value)
    return value


def redacted_result(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a result, as JSON, with what was said in words redacted."""
    return {name: redacted(value) if name in IN_WORDS else value for name, value in content.items()}


def guard_last_resort() -> None:
    """Redact what Python prints of warnings that no handler takes."""
    last = logging.lastResort
    if last is not None and not any(isinstance(one, Redacting) for one in last.filters):
        last.addFilter(Redacting())


class Redacting(logging.Filter):
    """Of a handler of logs: a record's text is put together and redacted before it is written."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), None
        return True
