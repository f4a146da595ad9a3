"""Names that are like one that is unknown, for lists that are too long for a message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], instead: str) -> str:
    """A hint such as ` Did you mean 'vllm_offline' or 'vllm_server'?`: what is spelled alike, or holds `name`.

    `instead` says what to do where nothing is near.
    """
    names, lower = sorted(known), name.lower()
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    near += [one for one in names if lower in one.lower() and one not in near and len(lower) > 2]
    return f" Did you mean {' or '.join(repr(one) for one in near[:3])}?" if near else f" {instead}"
