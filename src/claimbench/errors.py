"""Every error that Claimbench raises on purpose.

    ClaimbenchError              one clear message; the command line prints it and exits with `exit_status`
    ├── ConfigError              params.yaml or a study says something impossible (names file and key)
    ├── SourceError              a checkpoint cannot be had, or is not what was asked for
    │   └── CorruptCheckpoint    local files disagree with their manifest
    ├── ResultError              a result file cannot be trusted (edited, cut short, from another cell)
    └── Refusal                  a block cannot give an honest number; becomes the result's outcome
        ├── Unavailable          this machine or this installation lacks something (outcome `unavailable`)
        ├── WrongOutput          the outputs or the proof broke the contract (outcome `wrong`)
        ├── OutOfMemory          host or device memory is exhausted (outcome `oom`)
        └── ServerFailed         a server died, stayed unhealthy, or did not answer as it should (outcome `error`)

A failed experiment is data: a `Refusal` never leaves `measure`. Everything else ends the command.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class ClaimbenchError(Exception):
    """The base: a message that says what was expected, what arrived and what to do."""

    exit_status = 1


class ConfigError(ClaimbenchError):
    exit_status = 2


class SourceError(ClaimbenchError):
    exit_status = 3


class CorruptCheckpoint(SourceError):
    pass


class ResultError(ClaimbenchError):
    exit_status = 4


class Refusal(ClaimbenchError):
    outcome = "error"


class Unavailable(Refusal):
    outcome = "unavailable"


class WrongOutput(Refusal):
    outcome = "wrong"


class OutOfMemory(Refusal):
    outcome = "oom"


class ServerFailed(Refusal):
    pass


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_IN_THE_WAY = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
_DISK = frozenset((*_NO_ROOM, *_IN_THE_WAY))
_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)


def disk_trouble(error: OSError) -> str | None:
    """One message where a disk is full, broken or not for writing, or no file can be called so; else None."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in _NO_NAME:
        return f"no such file can be{where}: {error.strerror}"
    if error.errno not in _DISK:
        return None
    return f"cannot write{where}: {error.strerror}. What was measured before is kept."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint such as ` Did you mean 'batch'?`, or the list of what is known; never empty."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(names) or 'none'}."
