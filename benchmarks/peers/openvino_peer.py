"""OpenVINO GenAI, which reads the GGUF file itself and builds its graph from it.

Its pipeline keeps prompts from call to call unless it is told not to: the second call would have no prefill.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
import openvino_genai
from serve import Emit, serve


class Tap(openvino_genai.StreamerBase):
    """Hands over token ids; the usual streamer would decode them to text first."""

    def __init__(self, emit: Emit) -> None:
        super().__init__()
        self.emit = emit

    def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
        for each in token if isinstance(token, list) else [token]:
            self.emit(int(each))
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """The driver counts the tokens."""


class OpenVINO:
    def __init__(self, request: dict[str, Any]) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        self.pipeline = openvino_genai.LLMPipeline(
            request["gguf"],
            "CPU",
            scheduler_config=scheduler,
            INFERENCE_NUM_THREADS=request["threads"],
            **request["settings"]["properties"],
        )
        self.prompt = request["prompt"]
        self.about = {
            "versions": {"openvino": openvino.__version__, "openvino-genai": openvino_genai.__version__},
            "dtype": request["settings"]["label"],
            "threads": request["threads"],
        }

    def _run(self, ids: list[int], new_tokens: int, emit: Emit) -> None:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = new_tokens
        config.ignore_eos = True
        config.do_sample = False
        row = np.array([ids], dtype=np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(row), openvino.Tensor(np.ones_like(row)))
        self.pipeline.generate(inputs, config, Tap(emit))

    def generate(self, new_tokens: int, emit: Emit) -> None:
        self._run(self.prompt, new_tokens, emit)

    def teacher_force(self, tokens: list[int]) -> list[int]:
        found: list[int] = []
        for length in range(len(tokens)):
            self._run(self.prompt + tokens[:length], 1, found.append)
        return found

    def close(self) -> dict[str, Any]:
        return {}


if __name__ == "__main__":
    serve(OpenVINO)
