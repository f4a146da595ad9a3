"""The decode step's kernels without a GPU: interpreted on the CPU, in a process that was started for it.

`TRITON_INTERPRET=1` must be set before Triton is imported, so these tests skip in any other run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from tests.contract.engine.conftest import families, known_rows, load_engine, told

from claimbench import optimizations

__all__ = ["families", "known_rows", "load_engine", "told"]  # fixtures


def reason() -> str | None:
    if find_spec("triton") is None:
        return "the triton package is not installed: `make test-kernels` says how"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "kernels are interpreted where TRITON_INTERPRET=1 is set from the start: `make test-kernels`"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = reason()
    for item in items:
        if why and "gpu_kernels" in str(item.path):
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(autouse=True, scope="session")
def scalars_of_the_interpreter() -> Iterator[None]:
    """It holds scalars as arrays of one element, which NumPy 2.4 no longer takes for a number."""
    if reason():
        yield
        return
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
    yield
    interpreter._patch_lang_tensor = patch_tensor


def capture_by_calling(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Stands in for a GPU's capture: a replay runs the function again and writes to the same place."""
    logits = run().clone()
    return lambda: logits.copy_(run()), logits


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """`triton_step` on a CPU, as no cell can have it."""
    from claimbench.engine.steps import cuda_graphs

    monkeypatch.setattr(optimizations.find("triton_step"), "unavailable", lambda *_: None)
    monkeypatch.setattr(cuda_graphs, "capture_on_gpu", lambda _: capture_by_calling)
