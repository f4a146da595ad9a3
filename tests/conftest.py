"""Tests that share what a module or a folder makes once run in one worker, so that no other makes it again."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if shared := sharing(item):
            item.add_marker(pytest.mark.xdist_group(shared))


def sharing(item: pytest.Item) -> str | None:
    """A name for the fixtures of its module that it asks for, with the parameter that they are made for."""
    known = getattr(item, "_fixtureinfo", None)
    if known is None or not isinstance(item, pytest.Function):
        return None
    scopes = {name: found[-1].scope for name, found in known.name2fixturedefs.items()}
    if "package" in scopes.values():
        return str(item.path.parent.relative_to(item.config.rootpath))
    names = [name for name, scope in scopes.items() if scope == "module"]
    if not names:
        return None
    made_for = getattr(item, "callspec", None)
    values = [f"{name}={made_for.indices[name]}" for name in names if made_for and name in made_for.indices]
    return " ".join([str(item.path.relative_to(item.config.rootpath)), *values])
