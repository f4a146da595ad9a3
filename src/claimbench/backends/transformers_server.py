"""Transformers' own server, `transformers serve`, asked from outside: what HTTP, a queue and an event a token cost.

Plain, it runs `model.generate` for one request at a time: concurrent requests wait for each other. With
`continuous_batching` a decode step serves all requests there are, over a paged cache; that pays when several wait.
Its prefix cache holds whole pages: with a page longer than any request it can hold none. The server takes text and
tells no token ids. An end of sequence of -1 lets every answer run to its length.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from pydantic import Field

from claimbench.schema.cell import Cell
from claimbench.serving.client import CompletionRequest, JsonObject, Limits, StreamEvent, get_json, read_completion
from claimbench.serving.connect import start_or_connect
from claimbench.serving.process import Launch
from claimbench.serving.session import ServerOptions, ServerSession, Service
from claimbench.serving.tokens import Tokenizer, prompt_rows
from claimbench.system.processes import LOOPBACK

REFERENCE = "transformers"
ENVIRONMENT = "core"
LIBRARIES = ("fastapi", "httpx2", "openai", "starlette", "tokenizers", "torch", "transformers", "uvicorn")
SWITCH = "transformers serve MODEL"
SEAMS: frozenset[str] = frozenset()
STANDS_STILL = False
ADDRESS_VARIABLE = "CLAIMBENCH_TRANSFORMERS_SERVER_URL"
VARIABLES = (ADDRESS_VARIABLE,)

PAGE = 256
"""Tokens of a page that the server takes by default."""


class Options(ServerOptions):
    continuous_batching: bool = False
    attention: str | None = Field(default=None, description="attn_implementation; absent: the server's choice")


def unavailable(cell: Cell) -> str | None:
    absent = [name for name in ("fastapi", "openai", "torch", "transformers", "uvicorn") if find_spec(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    return "its tokens are drawn without a seed of ours: greedy workloads only" if cell.workload.sampling else None


@dataclass(frozen=True)
class Completions:
    """The completions API as this server takes it: what generates is set by a whole `generation_config`."""

    model: str
    path: str = "/v1/completions"
    counts: bool = True

    def body(self, ask: CompletionRequest) -> JsonObject:
        config = {
            "max_new_tokens": ask.new_tokens,
            "do_sample": False,
            "eos_token_id": -1,
            "repetition_penalty": 1.0,
        }
        return {"model": self.model, "prompt": ask.prompt, "stream": True, "generation_config": json.dumps(config)}

    def read(self, event: JsonObject) -> StreamEvent:
        return read_completion(event, self.model, ids_key=None)


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> ServerSession:
    """Start the server, or reach the one at an address; the model's name there is the checkpoint's folder.

    Raises:
        Unavailable: the prompt cannot be given as text.
        ServerFailed: the server does not start or does not answer.
    """
    options = Options.model_validate(cell.options)
    rows = prompt_rows(cell, checkpoint)
    tokenizer = Tokenizer(checkpoint)
    prompts = [tokenizer.text_of(row) for row in rows]
    model = str(checkpoint.resolve())
    with start_or_connect(
        options, ADDRESS_VARIABLE, lambda port: _launch(cell, options, model, port, len(rows[0]))
    ) as connection:
        service = Service(
            address=connection.address,
            dialect=Completions(model),
            prompts=list(prompts),
            rows=rows,
            about={
                "name": "transformers serve",
                "version": metadata.version("transformers") if connection.server else "unknown: it does not say",
                "model": model,
                "batching": "continuous" if options.continuous_batching else "one request at a time",
                "prefix_cache": "holds whole pages, and none is ever full" if options.continuous_batching else "none",
            },
            metrics=lambda: {"health": get_json(connection.address, "/health")},
            server=connection.server,
            tokenizer=tokenizer,
            limits=Limits(stall_s=options.stall_s),
            load=options.load,
        )
        return ServerSession(cell, service, checkpoint)


def _launch(cell: Cell, options: Options, model: str, port: int, prompt_tokens: int) -> Launch:
    device = "cuda:0" if cell.device == "cuda" else "cpu"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model]
    command += ["--host", LOOPBACK, "--port", str(port), "--device", device, "--dtype", cell.dtype]
    if options.attention:
        command += ["--attn-implementation", options.attention]
    if options.continuous_batching:
        length = prompt_tokens + cell.workload.new_tokens
        page = PAGE * (1 + length // PAGE)  # longer than a request: no page is ever full, so none can be shared
        slots = options.slots(cell.workload.batch)
        blocks = 2 * slots + 2
        command += ["--continuous-batching", "--cb-block-size", str(page), "--cb-num-blocks", str(blocks)]
        command += ["--cb-max-batch-tokens", str(max(PAGE, slots * prompt_tokens))]
    return Launch(command=tuple(command), port=port, healthy_s=options.healthy_s)
