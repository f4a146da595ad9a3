"""What memory gives to the same threads in the same round, by the kernels of claimbench.measuring.ceiling."""

from __future__ import annotations

from typing import Any

from serve import serve

from claimbench.measuring import ceiling


class Bandwidth:
    def __init__(self, request: dict[str, Any]) -> None:
        import torch

        self.torch = torch
        torch.set_num_threads(request["threads"])
        self.about = {"versions": {"torch": torch.__version__}, "dtype": "float32", "threads": torch.get_num_threads()}

    def bandwidth(self) -> float:
        with self.torch.inference_mode():
            return ceiling._read_bandwidth("cpu")

    def close(self) -> dict[str, Any]:
        return {}


if __name__ == "__main__":
    serve(Bandwidth)
