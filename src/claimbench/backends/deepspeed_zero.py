"""DeepSpeed ZeRO-3 inference: each of n devices keeps 1/n of every weight, and gathers a layer just before it runs it.

Physics: it saves memory, not time. Every device computes every layer on the whole of its weights, so a step moves
(n - 1)/n of the model over the links to each of them, however few rows it has. The way out is more rows: with `streams`
every device serves rows of its own with what was gathered for all, and n times as many tokens come out of a step.
`offload` keeps a device's part in host memory (on GPUs) or in files (`nvme`), and reads it from there at every step.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field, model_validator

from claimbench import optimizations, proof
from claimbench.backends import transformers
from claimbench.checkpoints.loaded_model import decoder_in
from claimbench.cost_model import cost
from claimbench.cost_model.decoder import Decoder
from claimbench.cost_model.weight_bytes import held_bytes
from claimbench.hf import deepspeed as runtime
from claimbench.hf import evidence
from claimbench.hf.loading import class_for, refusals
from claimbench.hf.session import TransformersSession, make_setup
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings
from claimbench.schema.cell import DTYPE_BYTES, Cell, Checkpoint
from claimbench.schema.frozen import Frozen
from claimbench.schema.load import Layout
from claimbench.system import launchers
from claimbench.system.cache import cache_folder
from claimbench.system.scratch import Scratch, refusal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REFERENCE = "transformers"
SEVERAL_PROMPTS = True
ENVIRONMENT = runtime.ENVIRONMENT
LIBRARIES = runtime.LIBRARIES
SWITCH = "deepspeed.initialize(model, config=...)  # ZeRO stage 3"
IMPORTS = transformers.IMPORTS
import_model = transformers.import_model
SEAMS: frozenset[str] = frozenset()

SMALLEST_SWAP = 1 << 20
"""DeepSpeed's own: a device's part of a weight is kept in memory where it is smaller, in bytes."""
LIVE_WEIGHTS = 1_000_000_000
"""DeepSpeed's own: weights that may be whole at a time."""
SWAP_BUFFERS = 8
AIO = {"queue_depth": 32, "thread_count": 1, "single_submit": False, "overlap_events": True}
AIO_BLOCK = 1 << 17


class Options(Frozen):
    devices: int = Field(default=1, ge=1, description="ranks, each with a GPU, or a share of the cores, of its own")
    offload: Literal["none", "cpu", "nvme"] = Field(default="none", description="where a device's part is kept")
    nvme_path: str | None = Field(
        default=None, description="a folder on the disk to offload to; absent: `offload` in Claimbench's cache"
    )
    smallest_swap: int = Field(
        default=SMALLEST_SWAP, ge=4096, description="bytes of a device's part of a weight; smaller ones stay in memory"
    )
    streams: int = Field(default=1, ge=1, description="1: the same rows on every device; devices: each has its own")
    oversubscribe: bool = Field(default=False, description="more ranks than cores")

    @model_validator(mode="after")
    def _a_stream_each(self) -> Options:
        if self.streams not in (1, self.devices):
            raise ValueError(f"streams: expected 1, or one for each of {self.devices} devices, got {self.streams}")
        return self

    def folder(self) -> Path:
        """Where to offload to; made where it is the default, while one that is named must be there."""
        if self.nvme_path:
            return Path(self.nvme_path)
        default = cache_folder("offload")
        with suppress(OSError):  # whoever writes there says why
            default.mkdir(parents=True, exist_ok=True)
        return default


def unavailable(cell: Cell) -> str | None:
    options = Options.model_validate(cell.options)
    reason = runtime.too_many(cell, options.oversubscribe)
    if reason:
        return reason
    if options.offload == "cpu" and cell.device == "cpu":
        return "the weights are in the CPU's memory already: offloading them to it moves nothing"
    if options.offload == "nvme":
        model = cost.decoder_of(cell.checkpoint)
        return refusal(options.folder(), int(held_bytes(model, DTYPE_BYTES[cell.dtype]))) if model else None
    return None


def spread(options: Options) -> tuple[Layout, int] | None:
    return ("zero", options.devices) if options.offload == "none" else None


def launch(cell: Cell) -> list[str] | None:
    return launchers.torchrun(cell.devices)


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> ZeroSession:
    """This rank's part of every weight.

    Raises:
        Unavailable: DeepSpeed or a part of it is not there.
        OutOfMemory: the weights do not fit.
    """
    options = Options.model_validate(cell.options)
    if options.offload == "nvme":
        runtime.require("async_io", "pin_memory")
    runtime.join(cell)
    setup = make_setup(cell, optimizations.used_by(cell))
    swap = Scratch(options.folder()) if options.offload == "nvme" else None
    try:
        with refusals(setup):
            model, kept = _partitioned(setup, options, checkpoint, cell.checkpoint, swap)
            return ZeroSession(cell, setup, checkpoint, model, kept, swap)
    except BaseException:
        if swap:
            swap.close()
        raise


def settings(options: Options, dtype: str, model: Decoder, swap: Scratch | None) -> dict[str, object]:
    """DeepSpeed's configuration: every weight is partitioned, and none stays whole for its next use.

    Buckets are those of the document's script. Its own limits on what may stay whole hold any small model altogether.
    """
    zero: dict[str, object] = {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": model.hidden * model.hidden * 9 // 10,
        "reduce_bucket_size": model.hidden * model.hidden,
        "stage3_max_live_parameters": min(LIVE_WEIGHTS, 2 * model.matrices // model.layers),
        "stage3_max_reuse_distance": 0,
    }
    config: dict[str, object] = {
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == "bfloat16"},
        "fp16": {"enabled": dtype == "float16"},
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed asks for it, in inference too
        "wall_clock_breakdown": False,
    }
    if options.offload == "cpu":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    if swap:
        buffers = {"buffer_size": -(-model.largest // options.devices) + AIO_BLOCK, "buffer_count": SWAP_BUFFERS}
        zero["offload_param"] = {"device": "nvme", "nvme_path": str(swap.folder), "pin_memory": False, **buffers}
        config["aio"] = AIO | {"block_size": min(AIO_BLOCK, options.smallest_swap)}
    return config


def _partitioned(
    setup: GenerationSetup, options: Options, folder: Path, checkpoint: Checkpoint, swap: Scratch | None
) -> tuple[PreTrainedModel, object]:
    """The model, and what must live as long as it: Transformers asks it whether ZeRO-3 is on."""
    import deepspeed
    import torch
    from deepspeed.runtime.swap_tensor import partitioned_param_swapper
    from transformers.integrations import HfDeepSpeedConfig

    config = settings(options, setup.dtype, decoder_in(folder, checkpoint), swap)
    partitioned_param_swapper.MIN_AIO_BYTES = options.smallest_swap  # it has no setting
    keeper = HfDeepSpeedConfig(config)
    model = class_for(folder).from_pretrained(
        folder,
        dtype=getattr(torch, setup.dtype),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        **setup.load,
    )
    engine = deepspeed.initialize(model=runtime.quiet(model), config=config)[0]
    return engine.module, (keeper, engine)


class WeightPart(Protocol):
    """This rank's part of a weight."""

    ds_numel: int
    """How many numbers it has, wherever they lie."""

    def numel(self) -> int:
        """How many of them are in memory."""


class PartitionedWeight(Protocol):
    """What ZeRO-3 adds to a parameter."""

    ds_numel: int
    """How many numbers the whole of it has."""
    ds_tensor: WeightPart


class ZeroSession(TransformersSession):
    """A model of Transformers whose weights are here in part; its layers gather the rest as `generate` reaches them."""

    def __init__(
        self,
        cell: Cell,
        setup: GenerationSetup,
        checkpoint: Path,
        model: PreTrainedModel,
        kept: object,
        swap: Scratch | None,
    ) -> None:
        self.options = Options.model_validate(cell.options)
        self.streams = self.options.streams
        self.kept, self.swap = kept, swap
        super().__init__(cell, setup, checkpoint, model, None)
        if self.streams > 1:
            self.mask = self.mask.roll(launchers.rank(), dims=1)
            self.prompt = self.prompt.roll(launchers.rank(), dims=1)  # rows of its own; rank 0's are the workload's
        self.bytes_per_weight = DTYPE_BYTES[cell.dtype]

    def memory(self) -> dict[str, int]:
        """Weights held here in memory, and those that one step of this rank reads: all of them, once gathered."""
        held = sum(_held_numel(weight) for weight in self.model.parameters()) * self.bytes_per_weight
        looked_up = self.decoder.weights - self.decoder.step_weights
        read = (sum(weight.ds_numel for weight in self.model.parameters()) - looked_up) * self.bytes_per_weight
        return super().memory() | {"weights": held, "step_weights": int(read)}

    def prove(self) -> Findings:
        """That weights are partitioned between passes, were gathered in them, and lie where they were asked to.

        Raises:
            WrongOutput: some weight is whole, or none was gathered, or no file holds what was offloaded.
        """
        found = super().prove()
        whole = [name for name, weight in self.model.named_parameters() if weight.numel()]
        proof.expect("ZeRO-3", not whole, "every weight in parts between two passes", whole[:3])
        weights = sum(weight.ds_numel for weight in self.model.parameters())
        part = sum(weight.ds_tensor.ds_numel for weight in self.model.parameters())
        share = part / weights
        most = 1 / self.options.devices + 0.02
        proof.expect("ZeRO-3", share <= most, f"at most {most:.3f} of the weights in this rank's part", f"{share:.3f}")
        if self.options.devices > 1:
            sent = runtime.count(self.seen, runtime.GATHERS)
            found["gathers_per_pass"] = runtime.expect_per_pass("ZeRO-3", self.seen, sent, self.seen.layers)
        found |= {"share_of_weights": share, "streams": self.streams}
        return found | self._prove_offload(part * self.bytes_per_weight)

    def _prove_offload(self, part_bytes: int) -> Findings:
        if self.swap is None:
            return {}
        stored = self.swap.stored()
        in_files = sum(stored.values())
        kept = sum(_held_numel(weight) for weight in self.model.parameters()) * self.bytes_per_weight
        proof.expect("NVMe offload", bool(stored), "files with weights", f"none in {self.swap.folder}")
        proof.expect("NVMe offload", in_files + kept >= part_bytes, f"{part_bytes} bytes on disk or kept", in_files)
        return {"offloaded_bytes": in_files, "offload_files": len(stored), "kept_bytes": kept}

    def watch(self) -> evidence.TransformersEvidence:
        self.seen = super().watch()
        return self.seen

    def close(self) -> None:
        """Release the model and the files; DeepSpeed keeps a registry of both for the life of the process."""
        self.kept = None
        super().close()
        if self.swap:
            self.swap.close()
        runtime.leave()


def _held_numel(weight: PartitionedWeight) -> int:
    """Of this rank's part, what lies in memory: one that is in a file has a placeholder of one number."""
    return weight.ds_tensor.numel() if weight.ds_tensor.numel() > 1 else 0
