"""The base of every value that is read from or written to a file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A validated value that cannot change; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
