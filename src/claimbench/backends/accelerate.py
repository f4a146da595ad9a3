"""Hugging Face Accelerate: a model's layers dealt out over devices in order, and what fits on none of them offloaded.

Physics: it makes models run that do not fit, and saves no time. In a naive pipeline one device works while the others
wait, so a step reads all weights at the bandwidth of one device, however many there are. Weights that are offloaded
cross a slower link at every step: a step takes at least their bytes over the bandwidth of the host's memory, of PCIe,
or of the disk that they lie on.

One process. Offloaded to disk, weights are read from the checkpoint's own safetensors shards; with `offload_folder`
these are copied to that disk first and removed afterwards. Stepping and proofs are those of the Transformers session.
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Hashable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field, StrictFloat, StrictInt

from claimbench import optimizations, proof
from claimbench.backends import transformers
from claimbench.cost_model import cost
from claimbench.cost_model.weight_bytes import held_bytes
from claimbench.errors import OutOfMemory, Unavailable
from claimbench.hf import loading, session, weight_memory
from claimbench.hf.session import TransformersSession
from claimbench.hf.setup import GenerationSetup
from claimbench.proof import Findings
from claimbench.schema.cell import DTYPE_BYTES, Cell
from claimbench.schema.frozen import Frozen
from claimbench.schema.load import Layout
from claimbench.system import machine
from claimbench.system.scratch import Scratch, refusal

if TYPE_CHECKING:
    from accelerate.utils import OffloadedWeightsLoader
    from torch import nn
    from transformers import PreTrainedModel

REFERENCE = "transformers"
SEVERAL_PROMPTS = True
ENVIRONMENT = "core"
LIBRARIES = transformers.LIBRARIES
SWITCH = 'from_pretrained(..., device_map="auto")'
IMPORTS = (*transformers.IMPORTS, "accelerate")
import_model = transformers.import_model
SEAMS = frozenset({"attention", "cache", "grad", "history", "loop", "weights"})

Place = int | str
KEPT_FREE = 0.1
"""Share of a GPU that is left to the cache and to activations where no `max_memory` says otherwise."""


class Options(Frozen):
    devices: StrictInt = Field(
        default=1, ge=1, description="GPUs that the layers are dealt out over; a CPU is one device"
    )
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | dict[str, int | str] = Field(
        default="auto", description="a strategy of the library, or the device of each module by name"
    )
    max_memory: dict[str, int | str] | None = Field(
        default=None, description="by device ('0', '1', 'cpu'), bytes or text such as '70GB'; absent: what is free"
    )
    device_share: StrictFloat | None = Field(
        default=None, gt=0, lt=1, description="share of the weights that devices may hold together, for offloading"
    )
    offload: Literal["none", "cpu", "disk"] = "none"
    offload_folder: str | None = Field(default=None, description="a folder on the disk to offload to; it must exist")


def spread(options: Options) -> tuple[Layout, int] | None:
    return ("pipeline", options.devices) if options.offload == "none" else None


def unavailable(cell: Cell) -> str | None:
    options = Options.model_validate(cell.options)
    if find_spec("accelerate") is None:
        return "not installed: accelerate"
    if cell.device == "cpu" and options.devices > 1:
        return f"a pipeline over {options.devices} devices needs as many GPUs: a CPU is one device"
    if cell.device == "cpu" and options.offload == "cpu":
        return "the weights are in the CPU's memory already: offloading them to it moves nothing"
    if options.offload != "none" and any(optimizations.find(use.name).SEAM == "weights" for use in cell.optimizations):
        return "quantized weights cannot be offloaded: the library keeps them on the device"
    return transformers.unavailable(cell)


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> AccelerateSession:
    """The cell's model, each module where the library's map puts it.

    Raises:
        Unavailable: there are fewer devices, or nothing would be offloaded although it was asked for.
        OutOfMemory: the weights do not fit where they may lie.
    """
    options = Options.model_validate(cell.options)
    setup = session.make_setup(cell, optimizations.used_by(cell))
    placement = _placement(cell, options)
    scratch = _copied(checkpoint, options.offload_folder) if options.offload_folder else None
    try:
        with loading.refusals(setup):
            folder = scratch.folder if scratch else checkpoint
            model = loading.load_model(setup, folder, **setup.load, **placement)
            _check_map(map_of(model), cell, options)
            return AccelerateSession(cell, setup, checkpoint, model, scratch)
    except BaseException:
        if scratch:
            scratch.close()
        raise


def _copied(checkpoint: Path, parent: str) -> Scratch:
    """The checkpoint's files on the disk of `parent`."""
    files = [path for path in checkpoint.iterdir() if path.is_file()]
    reason = refusal(Path(parent), sum(path.stat().st_size for path in files))
    if reason:
        raise Unavailable(reason)
    scratch = Scratch(Path(parent))
    for path in files:
        shutil.copyfile(path, scratch.folder / path.name)
    return scratch


def _placement(cell: Cell, options: Options) -> dict[str, object]:
    """Arguments of `from_pretrained` that say where modules may lie."""
    if isinstance(options.device_map, dict):
        return {"device_map": dict(options.device_map)}
    if options.max_memory:
        allowed = {int(name) if name.isdigit() else name: size for name, size in options.max_memory.items()}
    else:
        allowed = dict(_room(cell, options))
    return {"device_map": options.device_map, "max_memory": allowed}


def _room(cell: Cell, options: Options) -> Iterator[tuple[Place, int]]:
    """Bytes that each device may hold; what fits on none of them goes to the disk, which has no limit."""
    share = options.device_share
    weights = _weight_bytes(cell)
    host = _host_bytes()
    if cell.device == "cpu":
        yield "cpu", int(weights * share) if share else host
        return
    import torch

    if torch.cuda.device_count() < options.devices:
        raise Unavailable(f"{options.devices} GPUs are asked for and {torch.cuda.device_count()} are here")
    for device in range(options.devices):
        free = int(torch.cuda.mem_get_info(device)[0] * (1 - KEPT_FREE))
        yield device, min(free, int(weights * share / options.devices)) if share else free
    if options.offload == "cpu":
        yield "cpu", host


def _weight_bytes(cell: Cell) -> float:
    """Raises Unavailable where the model's size is not known: then no share of it is either."""
    model = cost.decoder_of(cell.checkpoint)
    if model is None:
        raise Unavailable(f"the size of {cell.checkpoint.name} is not known before it is loaded")
    return held_bytes(model, DTYPE_BYTES[cell.dtype])


def _host_bytes() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    available = machine.available_bytes()
    return available if limit == resource.RLIM_INFINITY else min(available, limit)


def _check_map(placed: Placement, cell: Cell, options: Options) -> None:
    """
    Raises:
        OutOfMemory: modules went where they were not allowed to.
        Unavailable: offloading was asked for, and all modules fit on the devices.
    """
    away = {module: place for module, place in placed.items() if place in _places_beyond(cell.device)}
    unasked = [module for module, place in away.items() if place != options.offload]
    if unasked and not (options.offload == "cpu" and set(away.values()) == {"cpu"}):
        size = _weight_bytes(cell) / 1e9
        raise OutOfMemory(
            f"{size:.3g} GB of weights do not fit: {len(unasked)} of {len(placed)} modules had no room "
            f"({', '.join(unasked[:3])}, ...)"
        )
    if options.offload != "none" and not away:
        raise Unavailable(
            f"all modules fit on {options.devices} device(s), so none is offloaded: lower device_share or max_memory"
        )


def _places_beyond(device: str) -> tuple[str, ...]:
    return ("disk",) if device == "cpu" else ("cpu", "disk")


Placement = Mapping[str, int | str]
"""Module -> the number of a GPU, `cpu` or `disk`: the library's map."""


class Held(NamedTuple):
    """A weight as it is held between two steps."""

    name: str
    place: str
    """A device, or `disk`; `cpu` is offloaded where the cell's device is a GPU."""
    key: Hashable
    """Equal for tensors that share their bytes."""
    size: int
    is_read: bool
    """By every step: an embedding that is looked up is not."""
    is_away: bool = False
    """The module itself holds nothing; a hook brings the weight for as long as the module runs."""
    file: Path | None = None


class AccelerateSession(TransformersSession):
    def __init__(
        self, cell: Cell, setup: GenerationSetup, checkpoint: Path, model: PreTrainedModel, scratch: Scratch | None
    ) -> None:
        super().__init__(cell, setup, checkpoint, model, None)
        self.scratch = scratch

    def memory(self) -> dict[str, int]:
        """What is offloaded counts as held and as read: every step brings it again."""
        memory = super().memory()
        away = [item for item in held_weights(self.model) if item.is_away]
        for place, size in _bytes_by_place(away).items():
            memory[f"weights_on_{place}"] = size
            memory["weights"] += size
        memory["step_weights"] += sum(_bytes_by_place([item for item in away if item.is_read]).values())
        return memory

    def prove(self) -> Findings:
        """What every run must show, and that weights lie where the map says, between two steps too.

        Raises:
            WrongOutput: a weight lies elsewhere, stayed on the device after its use, or has no file behind it.
        """
        found = super().prove()
        generation = self.generate()
        next(generation)
        held = held_weights(self.model)
        generation.close()
        return {**found, "placement": check_placement(held, map_of(self.model))}

    def close(self) -> None:
        super().close()
        if self.scratch:
            self.scratch.close()


def map_of(model: PreTrainedModel) -> Placement:
    """Where each module was put; the library writes no map for a model that is on one device as a whole."""
    placed: Placement = getattr(model, "hf_device_map", {"": str(model.device)})
    return placed


def held_weights(model: PreTrainedModel) -> list[Held]:
    """Every parameter, where it lies now; buffers stay on the device whatever the map says."""
    import torch

    found = []
    for path, module in model.named_modules():
        is_read = not isinstance(module, torch.nn.Embedding)
        for name, tensor in module.named_parameters(recurse=False):
            if tensor.device.type == "meta":
                found.append(_away(module, path, name, tensor.nbytes, is_read))
                continue
            for part in weight_memory.inner_tensors(tensor):
                storage = part.untyped_storage()
                place = str(part.device)
                found.append(Held(f"{path}.{name}", place, storage.data_ptr(), storage.nbytes(), is_read))
    return found


def _away(module: nn.Module, path: str, name: str, size: int, is_read: bool) -> Held:
    """Where the library's hook takes an absent weight from, each time that its module runs."""
    hook = getattr(module, "_hf_hook", None)
    sources = [getattr(one, "weights_map", None) for one in getattr(hook, "hooks", (hook,))]
    source = next((one for one in sources if one is not None), None)
    proof.expect("offloading", source is not None, f"a hook that brings {path}.{name} back", type(hook).__name__)
    loader: OffloadedWeightsLoader = getattr(source, "dataset", source)
    key = getattr(source, "prefix", "") + name
    kept = getattr(loader, "state_dict", loader)
    if key in kept:
        return Held(f"{path}.{name}", "cpu", kept[key].data_ptr(), size, is_read, is_away=True)
    entry = loader.index[key]
    file = Path(entry.get("safetensors_file") or Path(loader.save_folder) / f"{key}.dat")
    return Held(f"{path}.{name}", "disk", (file, entry.get("weight_name", key)), size, is_read, True, file)


def check_placement(held: list[Held], placed: Placement) -> Findings:
    """The map and the bytes behind it.

    Raises:
        WrongOutput: a weight lies elsewhere than the map says, or the file that it is read from is not there.
    """
    for item in held:
        module = max((name for name in placed if not name or f"{item.name}.".startswith(f"{name}.")), key=len)
        meant = {str(placed[module]), f"cuda:{placed[module]}"}
        proof.expect("the device map", item.place in meant, f"{item.name} on {placed[module]}", item.place)
    files = sorted({item.file for item in held if item.file})
    missing = [str(file) for file in files if not file.is_file()]
    proof.expect("disk offload", not missing, "a file behind every offloaded weight", missing)
    return {
        "device_map": {module: str(place) for module, place in placed.items()},
        "bytes": _bytes_by_place(held),
        "away": sum(item.is_away for item in held),
        "files": [file.name for file in files],
    }


def _bytes_by_place(held: list[Held]) -> dict[str, int]:
    sizes: dict[str, dict[Hashable, int]] = {}
    for item in held:
        sizes.setdefault(item.place, {})[item.key] = item.size
    return {place: sum(parts.values()) for place, parts in sorted(sizes.items())}
