"""The far end of benchmarks/peers.py: a peer's own process, which loads once and then answers one JSON line with one.

It runs in the peer's environment, so it needs nothing but Python. Requests, in order: one to load; any number of
`{"generate": n}`, `{"force": [ids]}` and, of the one that reads memory, `{"bandwidth": true}`; last `{"end": true}`.
What libraries print goes to standard error. Between requests the process blocks on its standard input; what the
system's own threads do then is what the driver watches.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

Emit = Callable[[int], None]


class Peer(Protocol):
    about: dict[str, Any]
    """`versions`, `dtype` (of weights, and of arithmetic where it differs), `threads` (as told, or as asked for)."""

    def generate(self, new_tokens: int, emit: Emit) -> None:
        """Greedily continue the prompt; calls `emit` with each token's id as soon as it is known."""

    def teacher_force(self, tokens: list[int]) -> list[int] | None:
        """The likeliest token after the prompt and tokens[:i], for each i; None if it cannot be had."""

    def close(self) -> dict[str, Any]:
        """What was seen to run, if the system can tell; called once, after all timing."""


def serve(load: Callable[[dict[str, Any]], Peer]) -> None:
    """Answer until the end of input. The first answer says what was loaded, or `refused` and why."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG: a killed driver leaves nothing behind

    def answer(**content: Any) -> None:
        channel.write(json.dumps(content) + "\n")

    try:
        start = time.perf_counter()
        peer = load(json.loads(sys.stdin.readline()))
        answer(about=peer.about, load_s=time.perf_counter() - start)
        for line in sys.stdin:
            request = json.loads(line)
            if "generate" in request:
                answer(**clocked(peer, request["generate"]))
            elif "force" in request:
                answer(tokens=peer.teacher_force(request["force"]))
            elif "bandwidth" in request:
                answer(bytes_per_s=peer.bandwidth())  # type: ignore[attr-defined]
            else:
                answer(proof=peer.close())
                break
    except Exception as error:  # whatever the system says is the row's reason
        traceback.print_exc()
        at = traceback.extract_tb(error.__traceback__)[-1]
        words = (str(error).strip().splitlines() or [f"{Path(at.filename).name}, line {at.lineno}: {at.line}"])[0]
        answer(refused=f"{type(error).__name__}: {words}"[:400])
    channel.flush()
    os._exit(0)  # some systems hang in their own clean-up, and nothing is left to save


def clocked(peer: Peer, new_tokens: int) -> dict[str, Any]:
    """One generation: token ids, and for each the seconds from the call to its appearance."""
    tokens: list[int] = []
    stamps: list[float] = []
    clock = time.perf_counter

    def emit(token: int) -> None:
        stamps.append(clock())
        tokens.append(token)

    start = clock()
    peer.generate(new_tokens, emit)
    wall_s = clock() - start
    return {"tokens": tokens, "token_s": [stamp - start for stamp in stamps], "wall_s": wall_s}
