"""A plain mutation fuzzer: files of every kind that comes from outside, changed by a seed, read by what reads them.

    python -m tests.faults.fuzz gguf --seconds 300          one target for so long
    python -m tests.faults.fuzz all --cases 200 --seed 3    every target, so many cases each
    python -m tests.faults.fuzz gguf --replay 3:1712        one case again, which is written to ./case

A case may be read, or refused with the errors that its target names. Anything else is found: another exception, over
`CASE_S` seconds, or more memory than the process has left to it. Each is printed with its seed and number, and the exit
status is 1.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from tests.faults import fuzz_targets
from tests.faults.fuzz_targets import Target

CASE_S = 20
"""Of the processor: a busy machine is nobody's fault."""
TARGETS = fuzz_targets.TARGETS | {target.name: target for target in fuzz_targets.BY_HAND}
MEMORY_BYTES = 3 << 30
"""For a process with all that it imports; threads of libraries reserve some of it."""
NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)),
    *(0.5, -0.0, 1e308, 1e-308, float("inf"), float("-inf"), float("nan")),
)
TEXTS = (
    "",
    " ",
    "0",
    "-1",
    "null",
    "\x00",
    "\ud800",
    "é" * 300,
    "../../x",
    "/etc/passwd",
    "{x}",
    "@f",
    "!!python/x",
    "%s",
)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": {}}, [None] * 300)


class Found(NamedTuple):
    target: str
    seed: int
    number: int
    what: str


class TooSlow(BaseException):
    """A case took longer than `CASE_S`."""


def mutated(target: Target, seed: int, number: int) -> bytes:
    """The case of that number: the same for the same seed, whatever ran before."""
    chance = random.Random(f"{target.name} {seed} {number}")  # noqa: S311 - faults, not secrets
    corpus = corpus_of(target)
    content = chance.choice(corpus)
    if target.is_json and chance.random() < 0.75:
        value = copy.deepcopy(chance.choice(_values(target)))
        for _ in range(chance.choice([1, 1, 1, 2, 4])):
            value = _changed(value, chance)
        return target.packed(value)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        content = _garbled(content, chance, corpus)
    return content


@cache
def corpus_of(target: Target) -> list[bytes]:
    return target.corpus()


@cache
def _values(target: Target) -> list[Any]:
    return [target.unpacked(content) for content in corpus_of(target)]


def _changed(value: Any, chance: random.Random) -> Any:
    """A JSON value with one of its nodes replaced, removed, renamed, doubled or wrapped."""
    places = list(_places(value))
    if not places:
        return chance.choice(OTHERS)
    holder, key = chance.choice(places)
    match chance.randrange(8):
        case 0 | 1:
            holder[key] = chance.choice(NUMBERS)
        case 2:
            holder[key] = chance.choice(TEXTS)
        case 3:
            holder[key] = copy.deepcopy(chance.choice(OTHERS))
        case 4:
            other, name = chance.choice(places)
            holder[key] = copy.deepcopy(other[name])
        case 5:
            del holder[key]
        case 6 if isinstance(holder, dict):
            holder[chance.choice([*TEXTS, "kind", "name", "x" * 1000])] = holder.pop(key)
        case 6:
            holder.extend(copy.deepcopy(holder[:50]))
        case _:
            holder[key] = chance.choice([[holder[key]], {"a": holder[key]}, _near(holder[key], chance)])
    return value


def _near(value: Any, chance: random.Random) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    if isinstance(value, str):
        place = chance.randint(0, len(value))
        return value[:place] + chance.choice(TEXTS) + value[place:]
    return value * chance.choice([-1, 2, 1000, 10**12]) + chance.choice([-1, 0, 1])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(what holds it, its key) of every node."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def _garbled(content: bytes, chance: random.Random, corpus: list[bytes]) -> bytes:
    at, length = chance.randint(0, len(content)), chance.choice([1, 2, 4, 8, 16, 64, 256])
    beginning, rest = content[:at], content[at:]
    match chance.randrange(9):
        case 0:
            return beginning
        case 1:
            return beginning + rest[length:]
        case 2:
            return beginning + bytes(chance.randrange(256) for _ in range(length)) + rest
        case 3:
            return beginning + rest[:length] * chance.choice([2, 3, 50]) + rest[length:]
        case 4:
            other = chance.choice(corpus)
            return beginning + other[chance.randint(0, len(other)) :]
        case 5:
            number = int(chance.choice([0, 1, 2, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1, chance.getrandbits(64)]))
            size = chance.choice([1, 2, 4, 8])
            return beginning + (number % 256**size).to_bytes(size, "little") + rest[size:]
        case 6:
            return (
                beginning
                + chance.choice([b"[" * 3000, b"{", b'"', b"\xff", b"\x00", b"\r\n", b"&a ", b"*a", b"- "])
                + rest
            )
        case _ if rest:
            return beginning + bytes([rest[0] ^ (1 << chance.randrange(8))]) + rest[1:]
    return content


def tried(target: Target, content: bytes) -> tuple[str, str | None]:
    """How the case ended, in a word, and what was found where it should not have ended so."""
    try:
        with _in_time():
            target.read(content)
    except target.refuses as error:
        return type(error).__name__, None if str(error).strip() else "an error without a sentence"
    except (Exception, TooSlow) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = next(
            (one for one in reversed(traceback.extract_tb(error.__traceback__)) if "claimbench" in one.filename), place
        )
        return "found", f"{type(error).__name__}: {str(error)[:200]} at {Path(where.filename).name}:{where.lineno}"
    return "read", None


@contextmanager
def _in_time() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"over {CASE_S} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, CASE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def fuzz(target: Target, seed: int, cases: int | None, seconds: float | None) -> tuple[Counter[str], list[Found]]:
    """So many cases, or for so long; how they ended, and what was found."""
    ended, found = Counter[str](), list[Found]()
    end = time.monotonic() + seconds if seconds is not None else None
    number = 0
    places = set[str]()
    while (cases is None or number < cases) and (end is None or time.monotonic() < end):
        how, what = tried(target, mutated(target, seed, number))
        ended[how] += 1
        if what is not None and what.partition(" at ")[2] not in places:
            places.add(what.partition(" at ")[2])
            found.append(Found(target.name, seed, number, what))
            print(f"{target.name} {seed}:{number} {what}", flush=True)
        number += 1
    return ended, found


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=["all", *TARGETS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--replay", metavar="SEED:NUMBER")
    asked = parser.parse_args()
    _bounded()
    named = fuzz_targets.TARGETS.values() if asked.target == "all" else [TARGETS[asked.target]]
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.chdir(folder)
        try:
            if asked.replay:
                return _replay(next(iter(named)), *map(int, asked.replay.split(":")), before)
            cases = asked.cases if asked.cases or asked.seconds else 1000
            return sum(_run(target, asked.seed, cases, asked.seconds) for target in named) and 1
        finally:
            os.chdir(before)


def _run(target: Target, seed: int, cases: int | None, seconds: float | None) -> int:
    begun = time.monotonic()
    ended, found = fuzz(target, seed, cases, seconds)
    told = ", ".join(f"{count} {how}" for how, count in ended.most_common())
    print(f"{target.name}: {sum(ended.values())} cases in {time.monotonic() - begun:.0f} s: {told}", flush=True)
    return len(found)


def _replay(target: Target, seed: int, number: int, folder: Path) -> int:
    content = mutated(target, seed, number)
    (folder / "case").write_bytes(content)
    print(json.dumps(content[:2000].decode("utf-8", "replace")))
    target.read(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
