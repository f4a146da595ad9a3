"""A round's gauge: a process that reads memory and multiplies matrices in turn with the arms.

What it reads is a limit of the same minutes as the cells' own times, so that a slow minute slows both (see
analysis/roofline.py). Like an arm it computes when it is asked to and at no other time; without it a round is as good,
and only its limits are those that were measured before.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

from claimbench.measuring import ceiling
from claimbench.measuring.rank_protocol import receive, send
from claimbench.schema.cell import Device
from claimbench.system.processes import die_with_parent

AT_LEAST_S = 0.06
"""Of each kernel, at each reading."""
REPEATS = 1
LONGEST_PRODUCT_S = 0.03
LIMIT_S = 30.0
"""For one reading, or for its start."""
Rates = dict[str, float]
"""Per second: bytes `read`, and operations of a matrix product by dtype."""


class Gauge:
    """The process, from the side of the round. One that fails reads nothing from then on."""

    def __init__(self, device: Device, dtypes: Sequence[str]) -> None:
        context = multiprocessing.get_context("fork")
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, device, tuple(dtypes)))
        self.process.start()
        theirs.close()
        self.is_here = self._answer() is not None

    def read(self) -> Rates:
        """The best of a tenth of a second or so."""
        if not self.is_here:
            return {}
        with suppress(OSError):
            send(self.line, {"call": "read"})
        found = self._answer()
        self.is_here = found is not None
        return found or {}

    def end(self) -> None:
        self.process.kill()  # it holds nothing, and has inherited this end of the line: it would not see it close
        self.process.join()
        self.line.close()

    def _answer(self) -> Rates | None:
        try:
            return dict(receive(self.line)) if self.line.poll(LIMIT_S) else None
        except (EOFError, OSError):
            return None


def _serve(line: Connection, device: Device, dtypes: tuple[str, ...]) -> None:
    die_with_parent()
    with suppress(EOFError, OSError):
        import torch

        with torch.inference_mode():
            _answer_all(line, device, dtypes)
    os._exit(0)


def _answer_all(line: Connection, device: Device, dtypes: tuple[str, ...]) -> None:
    seconds = functools.partial(ceiling.best_seconds, device, at_least_s=AT_LEAST_S, repeats=REPEATS)
    kernels = ceiling.reading_kernels(device)
    rates = {dtype: ceiling.product_rates(device, dtype, LONGEST_PRODUCT_S, seconds) for dtype in dtypes}
    sides = {dtype: max(found, key=found.__getitem__) for dtype, found in rates.items()}
    products = {dtype: ceiling.product(device, dtype, side) for dtype, side in sides.items()}
    send(line, {})
    while True:
        receive(line)
        found = {"read": ceiling.read_bytes(device) / min(map(seconds, kernels))}
        send(line, found | {dtype: 2 * sides[dtype] ** 3 / seconds(run) for dtype, run in products.items()})
