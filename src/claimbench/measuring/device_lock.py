"""Who may time on which device: one job at a time on a machine, or one on each of several GPUs of the same kind.

Neighbours are noise, also those on another GPU: they share the host's memory, its bus, its power and its heat. So a job
has all GPUs of its machine, though it uses the first ones alone. Where `measure.side_by_side` allows it, a job that
needs one GPU has one to itself, and the arm of a round that is its base once more shows whether others did harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from claimbench.schema.cell import Device
from claimbench.system import gpus, turns

Beside = Callable[[], dict[str, float]]
"""The condition `beside`: on how many other GPUs of this machine others measure, the most so far. Empty if alone."""


@contextmanager
def device_lock(device: Device, devices: int = 1, *, side_by_side: bool = False) -> Iterator[Beside]:
    """Hold the device; others of all users in all checkouts wait, and say for whom.

    Meanwhile this process and all that it starts see no other GPU than those that it holds.
    """
    usable = gpus.alike() if device == "cuda" and side_by_side and devices == 1 else ()
    everyone = turns.of_machine(device)
    if len(usable) < 2:
        with turns.alone(everyone, f"another measurement on {device}"), _bound(device, devices):
            yield dict
        return
    places = [turns.of_machine(f"gpu-{each.uuid}") for each in usable]
    with (
        turns.alone(everyone, f"another measurement on {device}", shared=True),
        turns.first_free(places, "another measurement on each GPU") as which,
        gpus.only([usable[which]]),
    ):
        others = [place for number, place in enumerate(places) if number != which]
        most = 0

        def beside() -> dict[str, float]:
            nonlocal most
            most = max(most, sum(map(turns.is_held, others)))
            return {"beside": float(most)}

        beside()
        yield beside


@contextmanager
def _bound(device: Device, devices: int) -> Iterator[None]:
    if device != "cuda":
        yield
        return
    with gpus.only(gpus.seen().devices[:devices]):
        yield
