"""Tiny random models of each family that the engine serves, and sessions of the engine and of Transformers on them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from claimbench import backends, optimizations
from claimbench.cost_model import cost
from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Workload

Use = str | tuple[str, dict[str, Any]]
FAMILIES = ("tiny-llama", "tiny-bigcode", "tiny-bloom")


def save_family(folder: Path, architecture: str, **changed: Any) -> Path:
    """Random weights that vary enough for an argmax to be well apart from the rest; biases and scales as well."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**cost.config(architecture) | changed)
    config.initializer_range = 0.2
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.0 if name.endswith("bias") else 1.0, 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: save_family(tmp_path_factory.mktemp(name), name) for name in FAMILIES}
    gc.collect()
    gc.freeze()  # the libraries' own objects: every session that closes collects garbage
    return folders


def engine_cell(*uses: Use, architecture: str = "tiny-llama", backend: str = "engine", **workload: Any) -> Cell:
    named = [(use, {}) if isinstance(use, str) else use for use in uses]
    dtype, device = workload.pop("dtype", "float32"), workload.pop("device", "cpu")
    workload = {"prompt": "hello hello hello", "new_tokens": 10, **workload}
    checkpoint = Checkpoint(name="tiny", source=f"random://{architecture}", architecture=architecture)
    drafts = any(hasattr(optimizations.find(name), "CHECKPOINT_SETTING") for name, _ in named)
    return Cell(
        checkpoint=checkpoint,
        draft=checkpoint.model_copy(update={"name": "tiny-draft"}) if drafts else None,
        backend=backend,
        optimizations=tuple(
            OptimizationUse(name=name, settings=optimizations.settings_of(name, raw).model_dump(mode="json"))
            for name, raw in sorted(named, key=lambda pair: pair[0])
        ),
        dtype=dtype,
        workload=Workload(**workload),
        device=device,
    )


LoadEngine = Callable[..., Any]


@pytest.fixture
def load_engine(families: dict[str, Path]) -> Iterator[LoadEngine]:
    """`load_engine(*techniques, architecture=..., backend=..., draft=..., **workload)` -> a session."""
    sessions = []

    def open_session(*uses: Use, draft: Path | None = None, **workload: Any) -> Any:
        cell = engine_cell(*uses, **workload)
        session = backends.find(cell.backend).load(cell, families[cell.checkpoint.architecture], draft)
        sessions.append(session)
        return session

    yield open_session
    while sessions:
        sessions.pop().close()
    gc.freeze()  # what is left was imported meanwhile, and every session that closes would look through it again


@pytest.fixture(scope="session")
def known_rows() -> dict[str, list[list[int]]]:
    """What plain cells said, by their JSON: many techniques are compared with the same one."""
    return {}


RowsOf = Callable[..., list[list[int]]]


@pytest.fixture
def told(load_engine: LoadEngine, known_rows: dict[str, list[list[int]]]) -> RowsOf:
    """`told(*techniques, architecture=..., **workload)` -> the rows of a cell without a draft, generated once."""

    def rows(*uses: Use, **workload: Any) -> list[list[int]]:
        key = engine_cell(*uses, **workload).model_dump_json()
        if key not in known_rows:
            known_rows[key] = rows_of(load_engine(*uses, **workload))
        return known_rows[key]

    return rows


def rows_of(session: Any) -> list[list[int]]:
    import torch

    rows: list[list[int]] = torch.cat(list(session.generate()), dim=1).tolist()
    return rows
