"""Claimbench's engine over several devices: every matrix is cut, so each device reads a share of the weights per step.

A decode step waits for memory, so with n devices it can be n times as fast, less two all-reduces per layer of
[batch, hidden] each, whose latency does not shrink. It helps large models on fast links; on a CPU, whose ranks share
one memory, it helps nothing: there it is run to see that it is right.

    devices     ranks: GPUs, or processes on a CPU
    checkpoint  `unsharded`: each rank reads its slices of whole tensors; `pre-sharded`: files cut ahead of time
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from claimbench import optimizations
from claimbench.backends import engine
from claimbench.checkpoints import tp_partition
from claimbench.cost_model import cost
from claimbench.engine import session
from claimbench.engine.session import EngineSession
from claimbench.errors import Unavailable
from claimbench.proof import Findings, expect
from claimbench.schema.cell import DTYPE_BYTES, Cell
from claimbench.schema.frozen import Frozen
from claimbench.system import launchers, process_group
from claimbench.technique import Technique

if TYPE_CHECKING:
    from claimbench.engine.decoder import Engine
    from claimbench.engine.model.spec import Spec
    from claimbench.engine.model.weights import Weights
    from claimbench.schema.load import Layout

REFERENCE = "transformers"
ENVIRONMENT = "core"
LIBRARIES = engine.LIBRARIES
IMPORTS = engine.IMPORTS
# without those that keep weights or buffers in an order of their own, and without drafts
SEAMS = frozenset(
    {
        "flash",
        "softmax",
        "norm",
        "gelu",
        "linear",
        "rows",
        "kv",
        "keys",
        "mask",
        "head",
        "details",
        "processing",
        "draw",
    }
)  # fmt: skip


class Options(Frozen):
    devices: int = Field(default=2, ge=1)
    checkpoint: Literal["unsharded", "pre-sharded"] = "pre-sharded"
    nodes: int = Field(default=1, ge=1, description="machines of a SLURM job that the devices are on")
    oversubscribe: bool = Field(default=False, description="more ranks than cores are fine: to test, not to measure")


def spread(options: Options) -> tuple[Layout, int]:
    return "tensor_parallel", options.devices


def presharded(options: Mapping[str, object]) -> int | None:
    asked = Options.model_validate(options)
    return asked.devices if asked.checkpoint == "pre-sharded" else None


def unavailable(cell: Cell) -> str | None:
    options = Options.model_validate(cell.options)
    return (
        engine.unavailable(cell)
        or tp_partition.refusal(cost.architecture_of(cell.checkpoint), options.devices)
        or launchers.too_many(options.devices, cell.device, nodes=options.nodes, oversubscribe=options.oversubscribe)
    )


def launch(cell: Cell) -> list[str]:
    return launchers.torchrun(cell.devices, cell.nodes)


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> TensorParallelSession:
    """This rank's share of the model.

    Raises:
        Unavailable: this machine or installation lacks what a technique needs.
        OutOfMemory: the share does not fit.
        CorruptCheckpoint: the checkpoint is cut for other ranks.
    """
    return session.checked(TensorParallelSession, cell, checkpoint, draft, optimizations.used_by(cell))


class TensorParallelSession(EngineSession):
    """An engine's session on one rank; its model meets those of the others inside every pass."""

    def __init__(self, cell: Cell, checkpoint: Path, draft: Path | None, techniques: tuple[Technique, ...]) -> None:
        from claimbench.engine.model.tensor_parallel import TensorParallelGroup

        self.group = TensorParallelGroup(*process_group.join(cell.device))
        self.whole = session.spec_in(checkpoint)
        if not tp_partition.is_known(self.whole.arch):
            raise Unavailable(tp_partition.UNKNOWN)
        super().__init__(cell, checkpoint, draft, techniques)

    def open(self, folder: Path) -> tuple[Spec, Weights]:
        import torch

        from claimbench.engine.model.tensor_parallel import RankShards, share_of
        from claimbench.engine.model.weights import weights_in

        own = share_of(self.whole, self.group.rank, self.group.ranks)
        dtype = getattr(torch, self.cell.dtype)
        with RankShards(folder, self.whole, dtype, self.cell.device, self.group) as shards:
            self.files, self.expected_bytes = shards.names(), shards.expected_bytes()
            return own, weights_in(shards, own)

    def composed(self, techniques: Iterable[Technique]) -> Engine:
        from claimbench.engine.model.tensor_parallel import meet

        composed = super().composed(techniques)
        meet(composed.parts, self.whole, self.group)
        return composed

    def prove(self) -> Findings:
        """What the engine proves, and that this rank holds its share and met the others as often as it must.

        Raises:
            WrongOutput: it did not.
        """
        found = super().prove()
        steps = self.generate()
        next(steps)
        before = self.group.all_reduces, self.group.all_gathers
        next(steps)
        reduces, gathers = self.group.all_reduces - before[0], self.group.all_gathers - before[1]
        steps.close()
        expected = 2 * self.whole.arch.layers + 1  # a half of a layer each, and the look-up
        expect("tensor parallelism", reduces == expected, f"{expected} all-reduces a step", f"{reduces}")
        expect("tensor parallelism", gathers == 1, "one gathering of logits a step", f"{gathers}")
        held = self.memory()["weights"]
        expect("tensor parallelism", held == self.expected_bytes, f"{self.expected_bytes} bytes of weights", f"{held}")
        whole = self.whole.arch.weights * DTYPE_BYTES[self.cell.dtype]
        return found | {
            "all_reduces_per_step": reduces,
            "all_gathers_per_step": gathers,
            "weights_share": round(held / whole, 4),
            "files": self.files,
        }

    def close(self) -> None:
        super().close()
        process_group.leave()
