"""What `load` needs is imported before its clock starts: a load is timed without Python's own start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from claimbench import backends

LOADING = """
import sys
from claimbench import backends
backends.import_libraries({name!r})
missing = [module for module in backends.find({name!r}).IMPORTS if module not in sys.modules]
assert not missing, missing
"""


@pytest.mark.model
@pytest.mark.parametrize("name", [name for name in backends.names() if hasattr(backends.find(name), "IMPORTS")])
def test_the_modules_that_a_backend_names_are_there_before_it_loads(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADING.format(name=name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_module_that_is_not_installed_is_left_to_the_backend_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.find("null_model"), "IMPORTS", ("no_such_module_anywhere",), raising=False)
    backends.import_libraries("null_model")
    assert backends.find("null_model").load is not None
