"""How the ranks of one cell keep step, over a line of their own: nothing here knows torch, gloo or nccl.

Rank 0 measures its own session, and each call on it is first told to the others, which make the same call:

    rank 0     {"call": "generate", "arguments": []}  ->  coordinator  ->  the others
    others     {"answer": ...}  ->  coordinator; with the last answer, it lets all go on at the same moment
    rank 0     {"answers": [...]}

Nothing is sent while a generation is timed: its call and the common start come before the clock starts.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from claimbench import backends
from claimbench.backends import Column, Session
from claimbench.errors import WrongOutput
from claimbench.measuring.block_request import BlockRequest
from claimbench.measuring.clock import hash_tokens, rows_of
from claimbench.proof import Findings
from claimbench.schema.frozen import Frozen
from claimbench.schema.result import RankRecord
from claimbench.system import launchers, machine, memory
from claimbench.system.launchers import Place

if TYPE_CHECKING:
    import torch

SECRET = "CLAIMBENCH_RANKS_SECRET"  # noqa: S105 - the name of the variable that holds it


class RankRequest(Frozen):
    """What each rank is asked: rank 0 to measure a block, or to be an arm of a round (an `ArmRequest` as JSON)."""

    block: BlockRequest
    arm: str | None = None


class Hello(Place):
    """The first message on a line; `role` is "rank" or "keeper"."""

    role: str
    pid: int
    host: str


class RankEnded(TypedDict):
    """A keeper's last message: the exit code of its rank, negative for a signal, and the last lines that it printed."""

    ended: int
    lines: list[str]


def connect(address: str, role: str, place: Place) -> Connection:
    """A line to the coordinator at `address`: a socket's path, or host:port where ranks are on several machines."""
    host, _, port = address.rpartition(":")
    where: str | tuple[str, int] = (host, int(port)) if host else address
    line: Connection = Client(where, authkey=bytes.fromhex(os.environ[SECRET]))
    hello: Hello = {**place, "role": role, "pid": os.getpid(), "host": socket.gethostname()}
    send(line, hello)
    return line


def send(line: Connection, message: Mapping[str, object]) -> None:
    line.send_bytes(json.dumps(message).encode())


def receive(line: Connection) -> Any:
    return json.loads(line.recv_bytes())


class Record:
    """What one rank says of itself: who it is, how long it loaded, what it holds."""

    def __init__(self) -> None:
        self.memory = {"rss_before_load": memory.resident()}
        self.load_ns = 0
        self.begun = time.perf_counter_ns()

    def since_begun(self) -> int:
        return time.perf_counter_ns() - self.begun

    def note_loaded(self) -> None:
        self.load_ns = self.since_begun()
        self.memory["rss_after_load"] = memory.resident()

    def described(self) -> RankRecord:
        return {
            "rank": launchers.rank(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "threads": int(os.environ.get("OMP_NUM_THREADS", machine.usable_cores())),
            "load_ns": self.load_ns,
            "memory": self.memory,
        }


class CollectiveGeneration:
    """A generation that all ranks are in. None can leave it alone, so closing it early runs it to its end."""

    def __init__(self, steps: Iterator[Column]) -> None:
        self.steps = steps
        self.columns: list[Column] = []

    def __iter__(self) -> CollectiveGeneration:
        return self

    def __next__(self) -> Column:
        column = next(self.steps)
        self.columns.append(column)
        return column

    def close(self) -> None:
        for _ in self:
            pass

    def sha256(self) -> str:
        return hash_tokens(rows_of(self.columns))


class LeaderSession:
    """Rank 0's session, shared: a `Session` whose every call the other ranks make as well."""

    def __init__(self, channel: Connection, ranks: int) -> None:
        self.channel = channel
        self.ranks = ranks
        self.session: Session
        self.last: CollectiveGeneration | None = None

    def share(self, session: Session) -> LeaderSession:
        """Wait until every rank has loaded."""
        self.session = session
        self._tell("loaded")
        self._answers()
        return self

    @property
    def prompt_ids(self) -> Sequence[int]:
        return self.session.prompt_ids

    def generate(self) -> Iterator[Column]:
        self._compare_tokens()
        self._tell("generate")
        self.last = CollectiveGeneration(self.session.generate())
        self._answers()
        return self.last

    def memory(self) -> dict[str, int]:
        self._tell("memory")
        own = self.session.memory()
        self._answers()
        return own

    def prove(self) -> Findings:
        """Rank 0's proof, and those of the others under `ranks`."""
        self._compare_tokens()
        self._tell("prove")
        own = self.session.prove()
        return own | {"ranks": self._answers()}

    def log_probs(self, tokens: list[int]) -> torch.Tensor | None:
        self._tell("log_probs", tokens)
        own = self.session.log_probs(tokens)
        self._answers()
        return own

    def cpu_seconds(self) -> float:
        """That the other ranks on this machine have computed."""
        self._tell("cpu_seconds")
        here = socket.gethostname()
        return float(sum(seconds for host, seconds in self._answers() if host == here))

    def records(self) -> list[RankRecord]:
        """Those of the other ranks."""
        self._tell("record")
        return self._answers()

    def close(self) -> None:
        self._tell("close")
        self.session.close()
        self._answers()

    def _compare_tokens(self) -> None:
        """A rank that drew other tokens than rank 0 has been computing another sentence since.

        Raises:
            WrongOutput: it did. A session that serves rows of its own in every rank says so by `streams`.
        """
        if self.last is None:
            return
        self._tell("tokens")
        own, self.last = self.last.sha256(), None
        answers = self._answers()
        if getattr(self.session, "streams", 1) > 1:
            return
        others = [number for number, answer in enumerate(answers, start=1) if answer != own]
        if others:
            raise WrongOutput(f"rank {others[0]} emitted other tokens than rank 0 in the same generation")

    def _tell(self, call: str, *arguments: object) -> None:
        send(self.channel, {"call": call, "arguments": arguments})

    def _answers(self) -> list[Any]:
        """The others' answers in order of rank, once the last is there; all ranks go on from here together."""
        answers: list[Any] = receive(self.channel)["answers"]
        return answers


def follow(request: BlockRequest, channel: Connection) -> None:
    """Load, and make each call that rank 0 makes, until it closes."""
    cell = request.cell
    backends.import_libraries(cell, request.checkpoint)
    record = Record()
    session = backends.find(cell.backend).load(cell, request.checkpoint or Path(), request.draft)
    record.note_loaded()
    generation = CollectiveGeneration(iter(()))
    while True:
        message = receive(channel)
        call = message["call"]
        answer: object = None
        if call == "generate":
            generation = CollectiveGeneration(session.generate())
        elif call == "tokens":
            answer = generation.sha256()
        elif call == "memory":
            record.memory |= session.memory()
            memory.reset_peak()
        elif call == "prove":
            answer = session.prove()
        elif call == "log_probs":
            session.log_probs(*message["arguments"])
        elif call == "cpu_seconds":
            answer = [socket.gethostname(), machine.cpu_ticks().get("own", 0.0)]
        elif call == "record":
            record.memory |= memory.peaks(cell.device)
            answer = record.described()
        elif call == "close":
            session.close()
        send(channel, {"answer": answer})
        receive(channel)  # all ranks go on from here together
        if call == "generate":
            generation.close()
        elif call == "close":
            return
