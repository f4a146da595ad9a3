"""Hugging Face Transformers: a checkpoint as its users load it, driven by `model.generate`.

The plain run is what document A calls "no optimizations": eager attention, a dynamic key-value cache, greedy
`generate`. A stopping criterion hands each step's new columns to the caller; see hf/stepper.py.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from claimbench import optimizations
from claimbench.errors import Unavailable
from claimbench.hf.loading import load_model, refusals
from claimbench.hf.session import TransformersSession, make_setup
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

REFERENCE = "transformers"
SEVERAL_PROMPTS = True
ENVIRONMENT = "core"
LIBRARIES = ("accelerate", "greenlet", "safetensors", "tokenizers", "torch", "transformers")
IMPORTS = ("torch", "transformers.generation", "transformers.models.auto.modeling_auto")
SEAMS = frozenset({"attention", "cache", "compile", "draft", "grad", "history", "loop", "weights"})


class Options(Frozen):
    """None: everything that can be changed is an optimization."""


def import_model(checkpoint: Path) -> None:
    """Transformers finds its classes by the name in `config.json` and imports them late: seconds, inside a load."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def unavailable(cell: Cell) -> str | None:
    absent = [name for name in ("torch", "transformers", "greenlet") if find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def load(cell: Cell, checkpoint: Path, draft: Path | None) -> TransformersSession:
    """The cell's model, ready to generate.

    Raises:
        Unavailable: this machine or installation lacks what a technique needs.
        OutOfMemory: the weights do not fit.
    """
    import torch

    if cell.device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("torch sees no CUDA device")
    setup = make_setup(cell, optimizations.used_by(cell))
    with refusals(setup):
        model = load_model(setup, checkpoint, **setup.load)
        attention = setup.load["attn_implementation"]
        assistant = load_model(setup, draft, attn_implementation=attention) if draft and setup.uses_draft else None
        return TransformersSession(cell, setup, checkpoint, model, assistant)
