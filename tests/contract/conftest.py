"""A tiny random Llama with a tokenizer of its own, cells that run it, and the techniques that it can follow."""

from __future__ import annotations

import gc
import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from claimbench import optimizations
from claimbench.backends import transformers as backend
from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Workload
from claimbench.serving import tgi

ROOT = Path(__file__).parents[2]
Use = str | tuple[str, dict[str, Any]]


def save_tiny(folder: Path, layers: int, weights: dict[str, Any] | None = None, hidden: int = 64) -> dict[str, Any]:
    """A random Llama of `layers` layers; its embeddings vary enough for its argmax to be well apart from the rest."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights or {}, strict=False)
    model.save_pretrained(folder)
    return dict(model.state_dict())


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE(vocab={letter: id for id, letter in enumerate(sorted(letters))}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder, 2)
    save_tokenizer(folder)
    gc.collect()
    gc.freeze()  # the libraries' own objects: sessions collect garbage often
    return folder


@pytest.fixture(scope="session")
def tiny_draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without its last layer."""
    source, folder = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("draft")
    save_tiny(folder, 1, save_tiny(source, 2))
    save_tokenizer(folder)
    return folder


def make_cell(*uses: Use, new_tokens: int = 10, draft: bool = False, **workload: Any) -> Cell:
    checkpoint = Checkpoint(name="tiny", source="file://tiny", architecture="tiny-llama")
    named = [(use, {}) if isinstance(use, str) else use for use in uses]
    workload = {"prompt": "hello hello hello", **workload}
    return Cell(
        checkpoint=checkpoint,
        draft=checkpoint if draft else None,
        backend="transformers",
        optimizations=tuple(
            OptimizationUse(name=name, settings=optimizations.settings_of(name, raw).model_dump(mode="json"))
            for name, raw in sorted(named)
        ),
        workload=Workload(new_tokens=new_tokens, **workload),
        device="cpu",
    )


def rows_of(session: Any) -> list[list[int]]:
    import torch

    rows: list[list[int]] = torch.cat(list(session.generate()), dim=1).tolist()
    return rows


Load = Callable[..., Any]


@pytest.fixture
def load(tiny: Path, tiny_draft: Path) -> Iterator[Load]:
    """`load(*optimizations, **workload)` -> a session that is closed when the test ends."""
    sessions = []

    def open_session(*uses: Use, **workload: Any) -> Any:
        draft = any(use[0] == "assisted" for use in uses)
        session = backend.load(make_cell(*uses, draft=draft, **workload), tiny, tiny_draft if draft else None)
        sessions.append(session)
        return session

    yield open_session
    for session in sessions:
        session.close()


@pytest.fixture(scope="session")
def plain_rows(tiny: Path) -> list[list[int]]:
    """What the plain run emits: the reference of every exact technique."""
    session = backend.load(make_cell(), tiny, None)
    rows = rows_of(session)
    session.close()
    return rows


SETTINGS: dict[str, dict[str, Any]] = {
    "assisted": {"draft": "tiny-draft", "num_assistant_tokens": 3, "confidence_threshold": 0},
    "draft_decoding": {"draft": "tiny-draft"},
    "early_exit": {"layers": 1, "confidence_threshold": 0},
    "compile_wrapped": {"mode": "default"},
}
SLOW = {"compile_layer", "compile_model"}
"""They compile: tested one by one, and in the combinations that studies use."""
COMPILED = [
    (("compile_layer", {}), ("static_cache", {}), ("sdpa", {})),
    (("compile_model", {"fullgraph": True}), ("forward_loop", {}), ("static_cache", {})),
    (("compile_model", {}), ("inference_mode", {}), ("static_cache", {})),
]


def use(name: str) -> tuple[str, dict[str, Any]]:
    return name, SETTINGS.get(name, {})


def companions(name: str) -> list[tuple[str, dict[str, Any]]]:
    """The technique together with those that it needs."""
    needed = getattr(optimizations.find(name), "NEEDS", frozenset())
    return [use(name), *(use(other) for other in sorted(needed))]


def fits(names: frozenset[str]) -> bool:
    """The planner's rules: one technique a seam, nothing that clashes; and nothing that takes long to compile."""
    modules = [optimizations.find(name) for name in names]
    seams = [module.SEAM for module in modules]
    clash = any(getattr(module, "CLASHES", frozenset()) & names for module in modules)
    compiles = {"compile_wrapped", "forward_loop"} <= names
    return len(set(seams)) == len(seams) and not clash and not compiles


def pairs(names: list[str]) -> list[frozenset[str]]:
    """Every two techniques that fit together, with what they need, each set once."""
    found = []
    for pair in combinations(names, 2):
        whole = frozenset(name for member in pair for name, _ in companions(member))
        if fits(whole) and whole not in found:
            found.append(whole)
    return found


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text-generation-launcher on the path; the file that it writes each request to."""
    program = tmp_path / "bin" / tgi.LAUNCHER
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m tests.contract.fake_tgi "$@"\n', encoding="utf-8"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    log = tmp_path / "request.json"
    monkeypatch.setenv("FAKE_TGI_LOG", str(log))
    return log
