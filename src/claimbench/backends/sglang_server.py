"""SGLang behind its own OpenAI-compatible server: continuous batching over a cache that is a tree of prefixes.

The tree spares prefill where prompts begin alike; it is off here, so that a repeated prompt is read anew. Concurrent
requests share each read of the weights. Prompts go in as token ids; what comes out is text, an event a token.
The server is started by the interpreter that has it, this one or the one that CLAIMBENCH_SGLANG_PYTHON names.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from pydantic import Field

from claimbench.errors import Unavailable
from claimbench.schema.cell import Cell
from claimbench.serving.client import Limits, OpenAI, get_json, served
from claimbench.serving.connect import start_or_connect
from claimbench.serving.process import Launch
from claimbench.serving.session import ServerOptions, ServerSession, Service
from claimbench.serving.tokens import Tokenizer, prompt_rows
from claimbench.system.processes import LOOPBACK

REFERENCE = "transformers"
ENVIRONMENT = "core"
LIBRARIES = ("httpx2", "sglang", "tokenizers", "transformers")
SWITCH = "python -m sglang.launch_server --model-path MODEL"
SEAMS: frozenset[str] = frozenset()
STANDS_STILL = False
ADDRESS_VARIABLE = "CLAIMBENCH_SGLANG_URL"
PYTHON_VARIABLE = "CLAIMBENCH_SGLANG_PYTHON"
VARIABLES = (ADDRESS_VARIABLE, PYTHON_VARIABLE)


class Options(ServerOptions):
    cuda_graphs: bool = True
    tensor_parallel: int = Field(default=1, ge=1, description="GPUs that share the model")


def _python() -> str | None:
    return os.environ.get(PYTHON_VARIABLE) or (sys.executable if find_spec("sglang") else None)


def unavailable(cell: Cell) -> str | None:
    options = Options.model_validate(cell.options)
    if cell.workload.sampling:
        return "its tokens are drawn by samplers of its own: greedy workloads only"
    if options.url or os.environ.get(ADDRESS_VARIABLE) or _python():
        return None
    return f"not installed: sglang ({PYTHON_VARIABLE} may name an interpreter that has it, {ADDRESS_VARIABLE} a server)"


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> ServerSession:
    """Start the server, or reach the one at an address, which must serve the checkpoint's name.

    Raises:
        Unavailable: it is not installed, or the checkpoint has no tokenizer.
        ServerFailed: the server does not start or does not answer.
        WrongOutput: it serves another model.
    """
    options = Options.model_validate(cell.options)
    rows, model, tokenizer = prompt_rows(cell, checkpoint), cell.checkpoint.name, Tokenizer(checkpoint)
    with start_or_connect(
        options, ADDRESS_VARIABLE, lambda port: _launch(cell, options, checkpoint, port)
    ) as connection:
        address = connection.address
        served(address, model)
        info = get_json(address, "/get_server_info")
        service = Service(
            address=address,
            dialect=OpenAI(model, extra={"ignore_eos": True, "skip_special_tokens": False}),
            prompts=list(rows),
            rows=rows,
            about={
                "name": "sglang",
                "version": info.get("version"),
                "model": model,
                "prefix_cache": "off" if info.get("disable_radix_cache") else "on: started by somebody else",
            },
            metrics=lambda: {"server_info": get_json(address, "/get_server_info").get("internal_states")},
            server=connection.server,
            tokenizer=tokenizer,
            limits=Limits(stall_s=options.stall_s),
            load=options.load,
        )
        return ServerSession(cell, service, checkpoint)


def _launch(cell: Cell, options: Options, checkpoint: Path, port: int) -> Launch:
    python = _python()
    if python is None:
        raise Unavailable("not installed: sglang")
    command = [python, "-m", "sglang.launch_server", "--model-path", str(checkpoint.resolve())]
    command += ["--served-model-name", cell.checkpoint.name, "--host", LOOPBACK, "--port", str(port)]
    command += ["--dtype", cell.dtype, "--device", cell.device, "--tp-size", str(options.tensor_parallel)]
    command += ["--disable-radix-cache", "--max-running-requests", str(options.slots(cell.workload.batch))]
    command += [] if options.cuda_graphs else ["--disable-cuda-graph"]
    return Launch(tuple(command), port, {"HF_HUB_OFFLINE": "1"}, healthy_s=options.healthy_s)
