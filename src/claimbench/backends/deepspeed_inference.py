"""DeepSpeed-Inference: one model cut over several devices, so that a step reads 1/n of the weights on each of them.

Physics: a decode step is bound by reading weights, and n devices read with n times the bandwidth. The price is one
all-reduce of [batch, hidden] after each attention and each feed-forward, and one of the logits. DeepSpeed cuts a model
of Transformers by itself (AutoTP). With kernels in the place of layers it is another backend, `deepspeed_injection`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from pydantic import Field

from claimbench import optimizations, proof
from claimbench.backends import transformers
from claimbench.checkpoints import manifest
from claimbench.cost_model import cost
from claimbench.errors import CorruptCheckpoint
from claimbench.hf import deepspeed as runtime
from claimbench.hf import evidence
from claimbench.hf.loading import class_for, refusals
from claimbench.hf.session import TransformersSession, make_setup
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen
from claimbench.schema.load import Layout
from claimbench.system import launchers

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import Cache, PreTrainedModel

REFERENCE = "transformers"
SEVERAL_PROMPTS = True
ENVIRONMENT = runtime.ENVIRONMENT
LIBRARIES = runtime.LIBRARIES
SWITCH = "deepspeed.init_inference(model, ...)"
IMPORTS = transformers.IMPORTS
import_model = transformers.import_model
SEAMS: frozenset[str] = frozenset()

HEAD = {"LmHeadLinearAllreduce"}
CUT = {"LinearLayer", "LinearAllreduce", "fused_LinearLayer"} | HEAD
REFUSED = {"is not supported by cpu accelerator": "use a GPU"}


class Options(Frozen):
    devices: int = Field(default=1, ge=1, description="ranks, each with a GPU, or a share of the cores, of its own")
    checkpoint: Literal["unsharded", "pre-sharded"] = Field(
        default="unsharded", description="every rank reads all weights and keeps its own, or reads only its own"
    )
    oversubscribe: bool = Field(default=False, description="more ranks than cores")


def unavailable(cell: Cell) -> str | None:
    options = Options.model_validate(cell.options)
    architecture = cost.architecture_of(cell.checkpoint)
    if options.devices == 1:
        reason = "one device has nothing to cut: set devices to 2"
    elif architecture is not None and architecture.kv_heads < options.devices:
        reason = (
            f"DeepSpeed cuts keys and values by heads, and {architecture.kv_heads} cannot be shared by "
            f"{options.devices} ranks: set devices to {architecture.kv_heads} at most"
        )
    else:
        reason = None
    return reason or runtime.too_many(cell, options.oversubscribe)


def spread(options: Options) -> tuple[Layout, int] | None:
    return "tensor_parallel", options.devices


def presharded(options: Mapping[str, object]) -> int | None:
    asked = Options.model_validate(options)
    return asked.devices if asked.checkpoint == "pre-sharded" else None


def launch(cell: Cell) -> list[str] | None:
    return launchers.torchrun(cell.devices)


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> InferenceSession:
    """This rank's part of the model.

    Raises:
        Unavailable: DeepSpeed or a part of it is not there, or does not support what was asked for.
        OutOfMemory: the weights do not fit.
    """
    options = Options.model_validate(cell.options)
    runtime.join(cell)
    setup = make_setup(cell, optimizations.used_by(cell))
    with refusals(setup), runtime.refusing(REFUSED):
        if options.checkpoint == "pre-sharded":
            model = _presharded_model(setup, options, checkpoint)
        else:
            model = _cut(setup, options, _whole_model(setup, checkpoint))
        return InferenceSession(cell, setup, checkpoint, model.to(runtime.device_of_rank()))


def _whole_model(setup: GenerationSetup, folder: Path) -> PreTrainedModel:
    """All weights, in this rank's host memory, as the document's script of the unsharded checkpoint reads them."""
    import torch

    return class_for(folder).from_pretrained(
        folder,
        dtype=getattr(torch, setup.dtype),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        **setup.load,
    )


def _cut(setup: GenerationSetup, options: Options, model: PreTrainedModel) -> PreTrainedModel:
    """`model`, cut to this rank's part."""
    import deepspeed
    import torch

    settings: dict[str, object] = {
        "dtype": getattr(torch, setup.dtype),
        # DeepSpeed cuts in grains of 64 columns, which leaves the last ranks of a small model without any
        "tensor_parallel": {"tp_size": options.devices, "tp_grain_size": 1},
    }
    engine = deepspeed.init_inference(model, **settings)
    cut = runtime.quiet(engine.module)
    if cut.config.model_type == "bloom":
        cut.transformer.register_forward_pre_hook(_give_a_mask, with_kwargs=True)
    return cut


class _Inputs(TypedDict, total=False):
    """Named arguments of a decoder's forward pass, as far as a mask is made of them."""

    input_ids: Tensor
    attention_mask: Tensor | None
    past_key_values: Cache | None


def _give_a_mask(
    module: nn.Module, arguments: tuple[Tensor, ...], named: _Inputs
) -> tuple[tuple[Tensor, ...], _Inputs]:
    """Transformers 5 builds ALiBi for all heads where no row is padded; DeepSpeed cuts the one built from a mask."""
    import torch

    if named.get("attention_mask") is None:
        ids = arguments[0] if arguments else named["input_ids"]  # [batch, length]
        cache = named.get("past_key_values")
        length = ids.shape[1] + (cache.get_seq_length() if cache is not None else 0)
        named["attention_mask"] = torch.ones(ids.shape[0], length, dtype=torch.long, device=ids.device)
    return arguments, named


def _presharded_model(setup: GenerationSetup, options: Options, folder: Path) -> PreTrainedModel:
    """The model cut while it has no weights, then filled from the files of this rank alone.

    Raises:
        CorruptCheckpoint: the checkpoint is not cut for so many ranks, or not where DeepSpeed cuts.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    written = manifest.read(folder)
    written.require_ranks(options.devices)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, setup.dtype), **setup.load)
    computed = {name: value.clone() for name, value in model.named_buffers()}
    model = _cut(setup, options, model)  # where weights are absent, it empties what was computed as well
    for name, value in model.named_buffers():
        value.copy_(computed[name])
    _fill(model, written, folder)
    return model


def _fill(model: PreTrainedModel, written: manifest.Manifest, folder: Path) -> None:
    """Weights from this rank's files. DeepSpeed keeps the embedding whole, so its parts are gathered from all ranks."""
    from safetensors.torch import load_file

    parts: dict[str, Tensor] = {}
    for file in written.files_of(launchers.rank()):
        parts |= load_file(folder / file.name)
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings().weight
    names = {id(weight): name for name, weight in model.named_parameters()}
    for name, weight in model.named_parameters():
        source = names[id(embedding)] if weight is head.weight and name not in parts else name
        value = parts[source]
        if written.layout.cuts[source] == "vocabulary":
            value = _gathered(value, embedding.shape[0])  # [vocabulary, hidden]
        if weight is head.weight:
            value = value[:, _columns(value.shape[1], written.layout.ranks, launchers.rank())]
        if value.shape != weight.shape:
            cut = (
                f"{folder}: {name}: DeepSpeed cuts it to {tuple(weight.shape)}, the checkpoint to {tuple(value.shape)}"
            )
            raise CorruptCheckpoint(f"{cut}: load it unsharded")
        weight.data.copy_(value)


def _columns(hidden: int, ranks: int, rank: int) -> slice:
    """DeepSpeed cuts the head along its inputs; where they do not divide, the first ranks have one more."""
    share, more = divmod(hidden, ranks)
    begin = rank * share + min(rank, more)
    return slice(begin, begin + share + (rank < more))


def _gathered(part: Tensor, rows: int) -> Tensor:
    """All rows [rows, hidden] of a matrix of which each rank has its part; the last one's may be smaller."""
    import torch
    import torch.distributed as dist

    ranks = dist.get_world_size()
    most = -(-rows // ranks)
    place = runtime.device_of_rank()
    padded = torch.zeros(most, *part.shape[1:], dtype=part.dtype, device=place)
    padded[: part.shape[0]] = part.to(place)
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded)
    return torch.cat(parts)[:rows]


class InferenceSession(TransformersSession):
    """A model of Transformers that `generate` drives, in every rank; its layers send to each other."""

    def __init__(self, cell: Cell, setup: GenerationSetup, checkpoint: Path, model: PreTrainedModel) -> None:
        self.options = Options.model_validate(cell.options)
        super().__init__(cell, setup, checkpoint, model, None)

    def prove(self) -> Findings:
        """What was cut, what is held of it here, and how often the ranks sent to each other.

        Raises:
            WrongOutput: the model is whole, or the ranks did not send.
        """
        found = super().prove()
        seen = self.seen
        cut = {name: times for name, times in seen.modules.items() if name in CUT}
        proof.expect("AutoTP", cut.get("LinearAllreduce", 0) >= 2 * seen.layers, "two cut layers a block", seen.modules)
        sent = runtime.count(seen, runtime.REDUCTIONS)
        found["all_reduces_per_pass"] = runtime.expect_per_pass("AutoTP", seen, sent, 2 * seen.layers)
        found["modules"] = cut
        found["share_of_layers"] = self._share_of_layers()
        return found

    def watch(self) -> evidence.TransformersEvidence:
        self.seen = super().watch()
        return self.seen

    def _share_of_layers(self) -> float:
        """Bytes of the decoder layers' matrices here over those of the whole model.

        Raises:
            WrongOutput: this rank holds more than its heads' part, by a rank's worth of rounding.
        """
        matrices = [module.weight for module in self.model.modules() if type(module).__name__ in CUT - HEAD]
        here = sum(weight.numel() for weight in matrices)
        share: float = here / self.decoder.matrices
        text = self.model.config.get_text_config(decoder=True)
        kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        heads = -(-kv_heads // self.options.devices) / kv_heads
        proof.expect(
            "AutoTP", share <= heads + 0.01, f"at most {heads:.3f} of the layers' weights here", f"{share:.3f}"
        )
        return share

    def close(self) -> None:
        super().close()
        runtime.leave()
