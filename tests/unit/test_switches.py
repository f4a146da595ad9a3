"""The lines that switch on what others can switch on: each is there, and takes its technique's settings."""

from __future__ import annotations

import ast

import pytest

from claimbench import backends, optimizations
from claimbench.optimizations import transformers
from claimbench.reporting.recommendations import OWN_BACKENDS

LIBRARY = [name for name in optimizations.names() if optimizations.module_of(name).startswith(transformers.__name__)]
OF_TESTS = ("null_model", "null_server")
PLAIN = ("transformers",)
DOES_NOTHING = ("forward_loop", "growing")
"""Ways to measure: nobody would switch them on."""


@pytest.mark.parametrize("name", [name for name in LIBRARY if name not in DOES_NOTHING])
def test_a_technique_of_a_library_says_the_line_with_its_settings(name: str) -> None:
    module = optimizations.find(name)
    settings = {
        field: 7 if "int" in str(one.annotation) else "x" for field, one in module.Settings.model_fields.items()
    }
    line = module.SWITCH.format(**settings)  # type: ignore[attr-defined]
    ast.parse(line.replace("(..., ", "(").replace("from_pretrained(", "f("))
    assert "{" not in line


@pytest.mark.parametrize("name", [name for name in optimizations.names() if name not in LIBRARY])
def test_what_only_the_engine_has_says_none(name: str) -> None:
    assert not hasattr(optimizations.find(name), "SWITCH")


@pytest.mark.parametrize("name", backends.names())
def test_every_system_that_others_have_says_how_it_is_started(name: str) -> None:
    known = bool(getattr(backends.find(name), "SWITCH", ""))
    assert known == (name not in (*OWN_BACKENDS, *OF_TESTS, *PLAIN))
