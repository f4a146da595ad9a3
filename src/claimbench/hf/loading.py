"""A checkpoint as a Transformers model in memory, or the outcome that the library's refusal is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from claimbench.checkpoints.model_config import method_of
from claimbench.errors import OutOfMemory, Unavailable, WrongOutput
from claimbench.hf.setup import GenerationSetup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BROKEN = (AttributeError, ImportError, IndexError, KeyError, NotImplementedError, TypeError)
"""What a library's own code raises where it was never tried with this model, or lacks a package for it."""
BENEATH = ("torch", "importlib")
QUANTIZERS = "transformers.quantizers."


def load_model(setup: GenerationSetup, folder: Path, **arguments: object) -> PreTrainedModel:
    """The model in `folder` on the setup's device, unless `arguments` of `from_pretrained` place it elsewhere.

    Raises:
        Unavailable: it is quantized, and is to be quantized in another way, or the library would widen it here.
        WrongOutput: the folder lacks weights that the model has: the library would draw them at random.
    """
    import torch

    method = method_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if method and arguments.get("quantization_config"):
        raise Unavailable(f"the checkpoint is quantized already, by {method}: ask for the original one")
    model, info = class_for(folder).from_pretrained(
        folder,
        dtype=getattr(torch, setup.dtype),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **{"device_map": setup.device, **arguments},
    )
    _check_quantized(model, method)
    missing = sorted(info["missing_keys"])
    if missing:
        raise WrongOutput(f"{folder} lacks {missing[0]} ({len(missing)} in all): it would be drawn at random")
    return model.eval()


def _check_quantized(model: PreTrainedModel, method: str | None) -> None:
    """Raises Unavailable where the library widened a quantized checkpoint, since this machine cannot multiply it."""
    used = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    if method and (used is None or getattr(used, "dequantize", False)):
        raise Unavailable(f"Transformers widens weights that are quantized by {method} here, instead of reading them")


def class_for(folder: Path) -> type[PreTrainedModel]:
    """The class that generates text from the model in `folder`: one of those that read images too has it as a part."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    causal = type(config) in AutoModelForCausalLM._model_mapping
    chosen: type[PreTrainedModel] = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    return chosen


@contextmanager
def refusals(setup: GenerationSetup) -> Iterator[None]:
    """Turns what the libraries say about memory and support into the outcome that it is."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error)) from error
    except (RuntimeError, ValueError) as error:
        text = str(error)
        if "can't allocate memory" in text:
            raise OutOfMemory(text) from error
        if any(known in text for known in setup.unsupported) or _raised_in(error).startswith(QUANTIZERS):
            raise Unavailable(text) from error
        raise
    except BROKEN as error:
        if not _raised_in(error).startswith("transformers."):
            raise
        if isinstance(error, ImportError):
            raise Unavailable(str(error)) from error
        kind, said = type(error).__name__, str(error).partition("\n")[0]
        raise Unavailable(f"Transformers {version('transformers')} breaks off with {kind}: {said}") from error


def _raised_in(error: BaseException) -> str:
    """The module whose code raised `error`, or called what PyTorch and Python raised it in."""
    found, trace = "", error.__traceback__
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        found = found if name.partition(".")[0] in BENEATH else name
        trace = trace.tb_next
    return found
