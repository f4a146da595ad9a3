"""Transformers' own tensor parallelism (`tp_plan="auto"`): the library cuts the layers by its model's plan.

A decode step reads 1/n of the matrices on each of n devices and pays one all-reduce for each matrix that is cut along
its inputs, two a layer as a rule. Each parameter is a DTensor that knows its cut, and at every matrix the library looks
at that from Python, which small models feel. Which models have a plan is the library's business: Llama, Qwen and Gemma
do, BLOOM and GPT-BigCode do not. What a plan cuts is read from the model, so that every model with one can be checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from claimbench import optimizations
from claimbench.backends import transformers
from claimbench.checkpoints import counting, tp_partition
from claimbench.checkpoints.loaded_model import decoder_in
from claimbench.cost_model import cost, parallelism
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
SEVERAL_PROMPTS = True
ENVIRONMENT = "core"
LIBRARIES = transformers.LIBRARIES
SWITCH = 'from_pretrained(..., tp_plan="auto")'
IMPORTS = transformers.IMPORTS
import_model = transformers.import_model
SEAMS = frozenset({"attention", "cache", "grad"})


ALL_REDUCE = "c10d::allreduce_"  # the profiler's name for it, whoever asked and over whatever link
CUT = re.compile("colwise|rowwise|moe_tp_experts")
"""Styles of a plan that cut a module's matrices."""
SUMMED = re.compile("rowwise|moe_tp_experts")
"""And those of them after which the devices sum what each has."""


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
    """The library cuts keys and values as it cuts queries: their heads must divide as well.

    Of a model that there is no formula for, the heads are known once it is here.
    """
    if arch is None:
        return None
    why = tp_partition.indivisible(arch, devices)
    return why or _uneven_heads(arch.kv_heads, devices)


def _uneven_heads(kv_heads: int, devices: int) -> str | None:
    if kv_heads % devices == 0:
        return None
    fits = [degree for degree in range(1, kv_heads + 1) if kv_heads % degree == 0]
    why = f"Transformers cannot give {devices} devices equal parts of {kv_heads} key-value heads: "
    return why + f"{' or '.join(map(str, fits))} would do"


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
    text = config.get_text_config(decoder=True)
    if not getattr(text, "base_model_tp_plan", None):
        raise Unavailable(f"Transformers has no tensor-parallel plan for models of the type {text.model_type}")
    why = _uneven_heads(getattr(text, "num_key_value_heads", None) or text.num_attention_heads, cell.devices)
    if why:
        raise Unavailable(why)
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
        self.decoder = parallelism.share_of(decoder_in(checkpoint, cell.checkpoint), cell.devices)
        """Of which the key-value cache is counted."""
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        whole = counting.meta_model(config).named_parameters(remove_duplicate=False)
        self.whole = {name: one.numel() for name, one in whole}
        self.seen: TransformersEvidence | None = None

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
        reduces = self.seen.operators.get(ALL_REDUCE, 0) / (self.seen.decode_steps + 1)
        least = sum(1 for style, _ in self._planned() if SUMMED.match(style))
        each = f"at least {least} all-reduces a pass, one for each matrix that is cut along its inputs"
        expect("tensor parallelism", reduces >= least > 0, each, f"{reduces:g}")
        return found | {"all_reduces_per_step": int(reduces), "matrices_cut": self._count_cut()}

    def _planned(self) -> Iterator[tuple[str, str]]:
        """(style, name) of each module that the model's plan names; a layer's experts are one."""
        plan = self.model.tp_plan
        for name, _ in self.model.named_modules():
            style = plan.get(re.sub(r"\d+", "*", name))
            if style:
                yield style, name

    def _count_cut(self) -> int:
        """Matrices of which this rank holds its part and no more, all of those that the plan cuts."""
        weights = self.model.named_parameters(remove_duplicate=False)
        own = {name: _local(weight).numel() for name, weight in weights}
        for name in self._matrices_to_cut():
            part, whole = own[name], self.whole[name]
            most = -(-whole // self.cell.devices)
            expect("tensor parallelism", part <= most, f"at most {most} of {whole} values of {name} here", part)
        return sum(own[name] < self.whole[name] for name, _ in self.model.named_parameters())

    def _matrices_to_cut(self) -> Iterator[str]:
        for style, module in self._planned():
            if CUT.search(style):
                weights = self.model.get_submodule(module).named_parameters(recurse=False)
                yield from (f"{module}.{name}" for name, weight in weights if weight.dim() > 1)

    def close(self) -> None:
        super().close()
        process_group.leave()


def _local(weight: Tensor) -> Tensor:
    """This rank's part of a parameter."""
    return weight.to_local() if hasattr(weight, "to_local") else weight
