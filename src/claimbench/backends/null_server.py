"""The null server as a backend: a server without a model, at a set pace, which fails in a set way.

Every piece of bad luck that a server can bring is tested with it in seconds, and the client is checked against its
pace.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import Field

from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen
from claimbench.serving.client import Limits, OpenAI, get_json, served
from claimbench.serving.load import Load
from claimbench.serving.null_server import MODEL, Failure, Settings
from claimbench.serving.process import Launch, Server
from claimbench.serving.session import ServerSession, Service
from claimbench.system.processes import free_port

REFERENCE = "null_server"
ENVIRONMENT = "core"
LIBRARIES: tuple[str, ...] = ()
SEAMS: frozenset[str] = frozenset()
STANDS_STILL = False

PROMPT_TOKENS = 4


class Options(Frozen):
    """The first token comes after `prefill_ms`, each further one `step_ms` later."""

    prefill_ms: float = Field(default=0, ge=0)
    step_ms: float = Field(default=0, ge=0)
    token: int = Field(default=1, ge=0, description="the token that every step emits")
    port: int | None = Field(default=None, description="absent: a free one")
    healthy_s: float = Field(default=30, gt=0)
    stall_s: float = Field(default=30, gt=0)
    fails: Failure | None = None
    load: Load | None = None


def unavailable(cell: Cell) -> str | None:
    return None


class NullServerSession(ServerSession):
    def memory(self) -> dict[str, int]:
        return {"weights": 0, "step_weights": 0, "kv_cache": 0}


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> NullServerSession:
    """Raises ServerFailed in whatever way was asked for."""
    options = Options.model_validate(cell.options)
    port = options.port or free_port()
    given = options.model_dump(include={"prefill_ms", "step_ms", "token", "fails"})
    settings = Settings(port=port, **given)
    command = (sys.executable, "-m", "claimbench.serving.null_server", settings.model_dump_json())
    server = Server(Launch(command=command, port=port, healthy_s=options.healthy_s))
    try:
        served(server.address, MODEL)
        service = Service(
            address=server.address,
            dialect=OpenAI(MODEL, extra={}, ids_key="token_ids"),
            prompts=[cell.workload.prompt] * cell.workload.batch,
            rows=[list(range(PROMPT_TOKENS))] * cell.workload.batch,
            about={"model": MODEL, "prefix_cache": "there is none"},
            metrics=lambda: get_json(server.address, "/metrics"),
            server=server,
            limits=Limits(stall_s=options.stall_s),
            load=options.load,
        )
        return NullServerSession(cell, service, checkpoint)
    except BaseException:
        server.stop()
        raise
