"""vLLM on a CPU, in the processes that it starts by default; they are asked for a step at a time, without a server.

Its worker must be a process of its own: only there does vLLM preload the OpenMP library that binding threads needs. It
computes on as many cores as there are threads, none kept back for the engine, which it would do by default. Prefix
caching is off: a prompt that was kept from the last generation is not a prefill.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from serve import Emit, serve


class VLLM:
    def __init__(self, request: dict[str, Any]) -> None:
        os.environ.pop("OMP_NUM_THREADS", None)  # given, it would also hold for the engine's own process
        cores = sorted(os.sched_getaffinity(0))[: request["threads"]]
        os.environ |= {
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CACHE_ROOT": str(Path(request["work"]) / "vllm"),
            "VLLM_NO_USAGE_STATS": "1",
        }
        import vllm

        self.vllm = vllm
        self.prompt = request["prompt"]
        self.llm = vllm.LLM(
            request["checkpoint"],
            dtype=request["settings"]["dtype"],
            max_model_len=len(self.prompt) + request["new_tokens"] + 1,
            max_num_seqs=1,
            enable_prefix_caching=False,
            disable_log_stats=True,
            enforce_eager=request["settings"].get("enforce_eager", False),
        )
        import torch
        import transformers

        self.about = {
            "versions": {
                "vllm": vllm.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "dtype": request["settings"]["dtype"],
            "threads": len(cores),
        }
        self.asked = 0

    def _run(self, ids: list[int], new_tokens: int, emit: Emit) -> None:
        from vllm.sampling_params import RequestOutputKind

        engine = self.llm.llm_engine
        parameters = self.vllm.SamplingParams(
            temperature=0.0,
            max_tokens=new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self.asked += 1
        engine.add_request(str(self.asked), {"prompt_token_ids": ids}, parameters)
        while engine.has_unfinished_requests():
            for output in engine.step():
                for token in output.outputs[0].token_ids:
                    emit(int(token))

    def generate(self, new_tokens: int, emit: Emit) -> None:
        self._run(self.prompt, new_tokens, emit)

    def teacher_force(self, tokens: list[int]) -> list[int]:
        found: list[int] = []
        for length in range(len(tokens)):
            self._run(self.prompt + tokens[:length], 1, found.append)
        return found

    def close(self) -> dict[str, Any]:
        self.llm.llm_engine.engine_core.shutdown()  # it has processes and shared memory, which would stay
        return {}


if __name__ == "__main__":
    serve(VLLM)
