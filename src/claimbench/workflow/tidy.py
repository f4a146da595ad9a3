"""Before Snakemake looks at files: what dead writers left is removed, and no file is younger than now.

A clock that was set back leaves files of the future. Snakemake takes all that is made of them for too old, makes it
again in each run, and gives up: `Output has older modification time than input`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from claimbench.schema import durable
from claimbench.schema.durable import PARTIAL
from claimbench.schema.plan import RESULTS

MADE: Final = (RESULTS, Path("reports"))
FETCHED: Final = ("fetched/*/source.json", "checkpoints/*/manifest.json", "environments/*/stamp.json")
"""In `resources`: what Snakemake looks at. What lies beside may be a link to somebody's own file."""
SKEW_S: Final = 60.0
"""Between this machine and one that its files came from: no reason to touch them."""


def tidy() -> None:
    latest = time.time() + SKEW_S
    for path in _files():
        with suppress(OSError):  # another run was faster, or it is another user's
            if path.name.endswith(PARTIAL):
                durable.remove_partial(path)
            elif path.stat().st_mtime > latest:
                durable.touch(path)


def _files() -> Iterator[Path]:
    for folder in MADE:
        for name, _, files in os.walk(folder):
            yield from (Path(name) / file for file in files)
    for pattern in FETCHED:
        yield from Path("resources").glob(pattern)
