"""text-generation-inference: continuous batching, tensor parallelism and kernels of its own, behind HTTP.

With tensor parallelism each GPU reads a share of the weights per step, so a step can be nearly as many times faster as
there are GPUs. Alone on one GPU, a request gains what its kernels and CUDA graphs save in launches. Custom kernels can
be switched off by DISABLE_CUSTOM_KERNELS, which its code for BLOOM and GPT-NeoX alone reads: the proof says whether the
switch could matter for the model at hand. Prefix caching is off where the server is started here.

It is started by its launcher where that is installed, else in a container whose image is pinned by digest, else it is
reached at an address. The limits of tokens that it is started with are document A's, and `/info` must confirm them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from claimbench.cost_model import cost
from claimbench.proof import Findings
from claimbench.schema.cell import Cell
from claimbench.serving import tgi
from claimbench.serving.client import Limits, get_json, get_text
from claimbench.serving.connect import Connection, start_or_connect
from claimbench.serving.process import Launch
from claimbench.serving.session import ServerOptions, ServerSession, Service, url_of
from claimbench.serving.tokens import Tokenizer, prompt_rows
from claimbench.system import machine

REFERENCE = "transformers"
ENVIRONMENT = "core"
LIBRARIES = ("httpx2", "tokenizers", "transformers")
SWITCH = "text-generation-launcher --model-id MODEL"
SEAMS: frozenset[str] = frozenset()
STANDS_STILL = False
ADDRESS_VARIABLE = "CLAIMBENCH_TGI_URL"
VARIABLES = (ADDRESS_VARIABLE, tgi.IMAGE_VARIABLE)

READ_THE_SWITCH = frozenset({"bloom", "gpt_neox"})
DTYPES = ("bfloat16", "float16")
Quantization = Literal[
    "awq", "bitsandbytes", "bitsandbytes-fp4", "bitsandbytes-nf4", "eetq", "exl2", "fp8", "gptq", "marlin"
]


class Options(ServerOptions):
    num_shard: int = Field(default=1, ge=1, description="GPUs that share the model, by tensor parallelism")
    disable_custom_kernels: bool = False
    cuda_graphs: bool | None = Field(default=None, description="on or off; absent: as the release has them")
    quantize: Quantization | None = None
    details: bool = Field(default=True, description="the server counts tokens in a last event")
    image: str | None = Field(default=None, description="of a container, pinned: name@sha256:digest")
    max_input_tokens: int = Field(default=1000, ge=1)
    max_batch_prefill_tokens: int = Field(default=2100, ge=1)
    max_total_tokens: int = Field(default=2100, ge=1, description="input and answer of one request together")
    max_batch_total_tokens: int = Field(default=4000, ge=1)


def unavailable(cell: Cell) -> str | None:
    options, workload = Options.model_validate(cell.options), cell.workload
    if workload.sampling:
        return "its tokens are drawn by samplers of its own: greedy workloads only"
    if cell.dtype not in DTYPES:
        return f"it computes in {' or '.join(DTYPES)}, not in {cell.dtype}"
    length = (workload.prompt_tokens or 1) + workload.new_tokens
    if length > options.max_total_tokens:
        return f"{length} tokens of prompt and answer, and max_total_tokens is {options.max_total_tokens}"
    if options.url or os.environ.get(ADDRESS_VARIABLE):
        return None
    gpus = len(machine.identify()["gpus"])
    if options.num_shard > max(gpus, 1):
        return f"{options.num_shard} shards need as many GPUs: this machine has {gpus}"
    reason = tgi.missing(options.image)
    return f"{reason}; or name a server that runs in {ADDRESS_VARIABLE}" if reason else None


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> ServerSession:
    """Start the server, or reach the one at an address.

    Raises:
        Unavailable: nothing can start it, or the prompt cannot be given as text.
        ServerFailed: the launcher or the server does not start or does not answer.
        WrongOutput: it serves another model, or was started with other limits.
    """
    options = Options.model_validate(cell.options)
    rows, tokenizer = prompt_rows(cell, checkpoint), Tokenizer(checkpoint)
    prompts = [tokenizer.text_of(row) for row in rows]
    starts = None if url_of(options, ADDRESS_VARIABLE) else tgi.launcher(options.image, options.healthy_s)
    with start_or_connect(
        options, ADDRESS_VARIABLE, lambda port: _launch(cell, options, checkpoint, port, starts)
    ) as connection:
        service = Service(
            address=connection.address,
            dialect=tgi.Generate(options.details),
            prompts=list(prompts),
            rows=rows,
            about=_about(cell, options, checkpoint, connection, starts),
            metrics=lambda: tgi.counters(get_text(connection.address, "/metrics")),
            server=connection.server,
            limits=Limits(stall_s=options.stall_s),
            load=options.load,
        )
        return ServerSession(cell, service, checkpoint)


def _about(
    cell: Cell, options: Options, checkpoint: Path, connection: Connection, starts: tgi.Launcher | None
) -> Findings:
    names = (
        (str(checkpoint.resolve()), tgi.INSIDE) if connection.server else (_hub_name(cell), str(checkpoint.resolve()))
    )
    limits = {"max_input_tokens": options.max_input_tokens, "max_total_tokens": options.max_total_tokens}
    reported = get_json(connection.address, "/info")
    info = tgi.check_info(reported, names, limits if connection.server else {})
    architecture = cost.architecture_of(cell.checkpoint)
    family = architecture.family if architecture else "this architecture"
    matters = family in READ_THE_SWITCH
    return {
        "name": "text-generation-inference",
        "version": info["version"],
        "model": info["model_id"],
        "info": info,
        "custom_kernels": "off" if options.disable_custom_kernels else "on",
        "custom_kernels_switch": f"{'read' if matters else 'not read'} by its code for {family}",
        "cuda_graphs": starts.graphs(options.cuda_graphs)[1] if starts else "unknown: it was started by somebody else",
        "prefix_cache": "off" if connection.server else "unknown: it was started by somebody else",
    }


def _hub_name(cell: Cell) -> str:
    """`org/name` of a checkpoint from the hub; a server at an address knows the model by it."""
    return cell.checkpoint.source.removeprefix("hf://").partition("@")[0]


def _launch(cell: Cell, options: Options, checkpoint: Path, port: int, starts: tgi.Launcher | None) -> Launch:
    assert starts is not None, "there is no address"
    flags = ["--num-shard", str(options.num_shard)]
    flags += ["--quantize", options.quantize] if options.quantize else ["--dtype", cell.dtype]
    flags += starts.graphs(options.cuda_graphs)[0]
    flags += ["--disable-custom-kernels"] if options.disable_custom_kernels else []
    for name in ("max_input_tokens", "max_batch_prefill_tokens", "max_total_tokens", "max_batch_total_tokens"):
        flags += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    asked = tgi.Asked(tuple(flags), {"PREFIX_CACHING": "0", "HF_HUB_OFFLINE": "1"})
    cuda = cell.device == "cuda"
    return tgi.launch(starts, options.image, checkpoint, asked, port, cuda, healthy_s=options.healthy_s)
