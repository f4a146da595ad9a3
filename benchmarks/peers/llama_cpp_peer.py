"""llama.cpp through llama-cpp-python's bindings: its own evaluation, and an argmax over its logits as the sampler."""

from __future__ import annotations

from typing import Any

import llama_cpp
import numpy as np
from serve import Emit, serve


class LlamaCpp:
    def __init__(self, request: dict[str, Any]) -> None:
        self.prompt = request["prompt"]
        self.model = llama_cpp.Llama(
            request["gguf"],
            n_ctx=len(self.prompt) + request["new_tokens"],
            n_threads=request["threads"],
            n_threads_batch=request["threads"],
            n_gpu_layers=0,
            verbose=False,
        )
        self.about = {
            "versions": {"llama-cpp-python": llama_cpp.__version__},
            "dtype": request["settings"]["label"],
            "threads": self.model.n_threads,
            "system": llama_cpp.llama_print_system_info().decode(),
        }

    def _next(self) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self.model.n_vocab(),)).argmax())

    def generate(self, new_tokens: int, emit: Emit) -> None:
        self.model.reset()
        self.model.eval(self.prompt)
        for left in range(new_tokens, 0, -1):
            token = self._next()
            emit(token)
            if left > 1:
                self.model.eval([token])

    def teacher_force(self, tokens: list[int]) -> list[int]:
        found: list[int] = []
        self.model.reset()
        self.model.eval(self.prompt)
        for token in tokens:
            found.append(self._next())
            self.model.eval([token])
        return found

    def close(self) -> dict[str, Any]:
        return {"system": llama_cpp.llama_print_system_info().decode()}


if __name__ == "__main__":
    serve(LlamaCpp)
