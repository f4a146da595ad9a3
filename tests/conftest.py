"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

NAMES = ("CLAIMBENCH_", "CUDA_VISIBLE_DEVICES", "HF_", "PATH", "PYTHONPATH", "TMPDIR")


@pytest.fixture(autouse=True)
def _the_environment_is_left_as_it_was() -> Iterator[None]:
    """What a test leaves behind makes another one fail, in another file and in some orders alone."""
    before = of_the_environment()
    yield
    assert of_the_environment() == before


def of_the_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(NAMES)}
