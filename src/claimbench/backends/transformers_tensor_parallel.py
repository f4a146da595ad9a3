"""Transformers' own tensor parallelism (`tp_plan="auto"`): the library cuts the layers by its model's plan.

A decode step reads 1/n of the matrices on each of n devices and pays two all-reduces a layer for it. Each parameter is
a DTensor that knows its cut, and at every matrix the library looks at that from Python, which small models feel. Which
families have a plan is the library's business: Llama and Mistral do, BLOOM and GPT-BigCode do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from claimbench import optimizations
from claimbench.backends import transformers
from claimbench.checkpoints import tensors, tp_partition
from claimbench.cost_model import cost
from claimbench.errors import Unavailable
from claimbench.hf import loading, session
from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.session import TransformersSession
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen
from claimbench.system import launchers, process_group

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

REFERENCE = "transformers"
ENVIRONMENT = "core"
LIBRARIES = transformers.LIBRARIES
IMPORTS = transformers.IMPORTS
import_model = transformers.import_model
SEAMS = frozenset({"attention", "cache", "grad"})


ALL_REDUCE = "c10d::allreduce_"  # the profiler's name for it, whoever asked and over whatever link


class Options(Frozen):
    devices: int = Field(default=2, ge=1)
    nodes: int = Field(default=1, ge=1, description="machines of a SLURM job that the devices are on")
    oversubscribe: bool = Field(default=False, description="more ranks than cores are fine: to test, not to measure")


def unavailable(cell: Cell) -> str | None:
    options = Options.model_validate(cell.options)
    return (
        transformers.unavailable(cell)
        or _refusal(cost.architecture_of(cell.checkpoint), options.devices)
        or launchers.too_many(options.devices, cell.device, nodes=options.nodes, oversubscribe=options.oversubscribe)
    )


def _refusal(arch: cost.Architecture | None, devices: int) -> str | None:
    """The library cuts keys and values as it cuts queries: their heads must divide as well."""
    why = tp_partition.refusal(arch, devices)
    if why is None and arch is not None and arch.kv_heads % devices:
        fits = [degree for degree in tp_partition.degrees(arch, arch.kv_heads) if arch.kv_heads % degree == 0]
        why = f"Transformers cannot give {devices} devices equal parts of {arch.kv_heads} key-value heads: "
        why += f"{' or '.join(map(str, fits))} would do"
    return why


def launch(cell: Cell) -> list[str]:
    return launchers.torchrun(cell.devices, cell.nodes)


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> TensorParallelSession:
    """This rank's share of the model.

    Raises:
        Unavailable: the library has no plan for this family of models, or this machine lacks something.
        OutOfMemory: the share does not fit.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    if not getattr(config, "base_model_tp_plan", None):
        raise Unavailable(f"Transformers has no tensor-parallel plan for models of the type {config.model_type}")
    process_group.join(cell.device)
    setup = session.make_setup(cell, optimizations.used_by(cell))
    with loading.refusals(setup):
        model = loading.load_model(setup, checkpoint, **setup.load, **_spread())
        return TensorParallelSession(cell, setup, checkpoint, model)


def _spread() -> dict[str, object]:
    """The argument of `from_pretrained`, which Transformers 5.18 began to move into a configuration of its own."""
    arguments: dict[str, object] = {"device_map": None}
    try:
        from transformers.distributed import DistributedConfig

        return arguments | {"distributed_config": DistributedConfig(tp_plan="auto")}
    except (ImportError, TypeError):
        return arguments | {"tp_plan": "auto"}


class TensorParallelSession(TransformersSession):
    def __init__(self, cell: Cell, setup: GenerationSetup, checkpoint: Path, model: PreTrainedModel) -> None:
        super().__init__(cell, setup, checkpoint, model, None)
        whole = cost.architecture_of(cell.checkpoint)
        assert whole is not None, "see `unavailable`"
        self.whole = whole
        self.decoder = tp_partition.share_of(whole, cell.devices)  # of which the key-value cache is counted
        self.seen: TransformersEvidence | None = None

    def memory(self) -> dict[str, int]:
        """The library leaves some parts as views of whole tensors: those are held, and a step reads the parts."""
        import torch

        read: dict[int, int] = {}
        for module in self.model.modules():
            if not isinstance(module, torch.nn.Embedding):
                for weight in module.parameters(recurse=False):
                    part = _local(weight)
                    read[part.data_ptr()] = part.nbytes
        return super().memory() | {"step_weights": sum(read.values())}

    def watch(self) -> TransformersEvidence:
        self.seen = super().watch()
        return self.seen

    def prove(self) -> Findings:
        """What a Transformers session proves, and that this rank holds a share and sums with the others.

        Raises:
            WrongOutput: it does not.
        """
        found = super().prove()
        assert self.seen is not None
        passes, layers = self.seen.decode_steps + 1, self.whole.layers
        reduces = self.seen.operators.get(ALL_REDUCE, 0) / passes
        each = f"{2 * layers} all-reduces a pass, or one more for the embedding"
        expect("tensor parallelism", reduces in (2 * layers, 2 * layers + 1), each, f"{reduces:g}")
        return found | {"all_reduces_per_step": int(reduces), "matrices_cut": self._count_cut()}

    def _count_cut(self) -> int:
        """Matrices of layers of which this rank holds its part and no more."""
        shapes, own = tensors.shapes(self.whole), tp_partition.partitions(self.whole, self.cell.devices)
        count = 0
        for name, weight in self.model.named_parameters():
            if name in own and own[name].kind in ("column", "row"):
                held = tuple(_local(weight).shape)
                expected = own[name].share(shapes[name], launchers.rank())
                expect("tensor parallelism", held == expected, f"{name} of shape {expected} here", held)
                count += 1
        return count

    def close(self) -> None:
        super().close()
        process_group.leave()


def _local(weight: Tensor) -> Tensor:
    """This rank's part of a parameter."""
    return weight.to_local() if hasattr(weight, "to_local") else weight
