"""What DeepSpeed's backends share: whether it can run here, its process group, and what it was seen to send.

Both start their ranks with torchrun. DeepSpeed's own launcher takes a fixed port, so that two blocks on one machine
collide, and waits for ranks of its own in a second process between us and them. It sets one variable more, LOCAL_SIZE,
without which DeepSpeed's shared memory on a CPU is used before it is made, and the rank dies of SIGSEGV.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from claimbench.errors import Unavailable
from claimbench.hf.evidence import TransformersEvidence
from claimbench.proof import expect
from claimbench.schema.cell import Cell
from claimbench.system import launchers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENVIRONMENT = "deepspeed"
LIBRARIES = ("accelerate", "deepspeed", "greenlet", "safetensors", "tokenizers", "torch", "transformers")
PEER_S = 900  # ranks read a large checkpoint at paces of their own; one that dies is noticed at once, elsewhere

REDUCTIONS = ("deepspeed::inference_all_reduce_", "c10d::allreduce_")
GATHERS = ("c10d::_allgather_base_", "c10d::allgather_")
SHARED_MEMORY, BUFFER = Path("/dev/shm"), "deepspeed_allreduce_buffer"  # noqa: S108


def too_many(cell: Cell, oversubscribe: bool) -> str | None:
    return launchers.too_many(cell.devices, cell.device, oversubscribe=oversubscribe)


def require(*parts: str, environment: str = ENVIRONMENT) -> None:
    """
    Raises:
        Unavailable: DeepSpeed is not installed, or a part of it was not compiled when its environment was built.
    """
    try:
        metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        stamp = f"resources/environments/{environment}/stamp.json"
        raise Unavailable(f"DeepSpeed is not installed: build {stamp}") from None
    built = Path(sys.prefix) / "ops.json"
    states = json.loads(built.read_text(encoding="utf-8")) if built.exists() else {}
    for part in parts:
        state = states.get(part, f"the environment was built without envs/{environment}.build.py: build it anew")
        if state != "compiled":
            raise Unavailable(f"DeepSpeed's {part} is not compiled: {state}")


@contextmanager
def refusing(texts: dict[str, str]) -> Iterator[None]:
    """What DeepSpeed says that it does not support becomes the outcome that it is: its words -> what to do."""
    try:
        yield
    except (ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        for text, advice in texts.items():
            if text in str(error):
                raise Unavailable(f"{error}: {advice}") from error
        raise


def join(cell: Cell) -> None:
    """Become one of the ranks: the device, and the process group over which DeepSpeed sends.

    Raises:
        Unavailable: no CUDA device, a part that was not compiled, or a type that DeepSpeed has not here.
    """
    import torch

    if cell.device == "cpu":
        require("deepspeed_shm_comm")
        os.environ["DS_ACCELERATOR"] = "cpu"
    elif not torch.cuda.is_available():
        raise Unavailable("torch sees no CUDA device")
    os.environ["LOCAL_SIZE"] = os.environ["LOCAL_WORLD_SIZE"] = os.environ.get("LOCAL_WORLD_SIZE", str(cell.devices))
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if getattr(torch, cell.dtype) not in get_accelerator().supported_dtypes():
        raise Unavailable(f"DeepSpeed has no {cell.dtype} on this {cell.device}: set dtype to bfloat16 or float32")
    if cell.device == "cuda":
        get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if cell.device == "cuda" else "gloo"
    deepspeed.init_distributed(backend, timeout=timedelta(seconds=PEER_S), verbose=False)
    if cell.device == "cpu":
        _unname_shared_memory()


def _unname_shared_memory() -> None:
    """DeepSpeed never removes its buffers, 69 MB a rank; one without a name is freed with the last who has it open."""
    import torch.distributed

    torch.distributed.barrier()  # by then every rank has opened those of all
    where = "_".join(os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"))
    (SHARED_MEMORY / f"{BUFFER}_{os.getuid()}_{where}").unlink(missing_ok=True)


def device_of_rank() -> str:
    from deepspeed.accelerator import get_accelerator

    name: str = get_accelerator().current_device_name()
    return name


def count(seen: TransformersEvidence, names: tuple[str, ...]) -> int:
    """Times that this rank sent in the steps that were watched; torch records what goes over any of its backends."""
    return sum(seen.operators.get(name, 0) for name in names)


def expect_per_pass(what: str, seen: TransformersEvidence, times: int, least: int) -> float:
    """Times per pass through the model, as far as they were watched.

    Raises:
        WrongOutput: fewer than `least`.
    """
    passes = len(seen.step_tokens)
    expect(what, times >= least * passes, f"at least {least} a pass", f"{times} in {passes} passes")
    return times / passes


def leave() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def quiet(module: PreTrainedModel) -> PreTrainedModel:
    """`module` for inference alone: no gradients are kept, whatever its maker left on."""
    return module.requires_grad_(False).eval()
