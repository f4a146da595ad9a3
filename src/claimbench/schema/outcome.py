"""How a block ends."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    OK = "ok"
    OOM = "oom"
    IMPLIED_OOM = "implied-oom"
    """Not run: a smaller batch of the same cell was out of memory."""
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    WRONG = "wrong"
    ERROR = "error"


FITS = (Outcome.OK, Outcome.WRONG)
"""It ran to its end, so it fits in memory and gave tokens."""
OUT_OF_MEMORY = (Outcome.OOM, Outcome.IMPLIED_OOM)
