"""Tiny models of each family that the engine serves, cells on them, and what one cell of them must show.

A cell is held to four things on the device: its tokens are those that the plain run says on the CPU in float32 (a lossy
one is close to its probabilities), three generations are one, and the proof finds that what was asked for ran.
"""

from __future__ import annotations

import functools
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_day.record import Json
from gpu_day.right_device import expect
from gpu_day.stage import Skip

Use = tuple[str, dict[str, Any]]
FAMILIES = ("tiny-llama", "tiny-bigcode", "tiny-bloom")
LAYERS = {"tiny-llama": "num_hidden_layers", "tiny-bigcode": "n_layer", "tiny-bloom": "n_layer"}
WIDE = {"hidden_size": 256, "intermediate_size": 512}
"""Of Transformers' llama: libraries' quantisers and attention kernels refuse rows that are narrower."""
SHARP = 1.6
"""What logits vary by, about: enough for tokens that are well apart, little enough for 4 bits to stay close."""
DRAFT = "tiny-draft"
FAR = 0.5
"""Nats between the probabilities of a lossy cell and the plain run's, on average."""
REPEATS = 3


@dataclass(frozen=True)
class Asked:
    """A cell in the words of these tables."""

    uses: tuple[Use, ...]
    family: str
    device: str
    backend: str = "engine"
    dtype: str = "float32"
    workload: tuple[tuple[str, Any], ...] = ()

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.uses}


def cell_of(asked: Asked) -> Any:
    from claimbench import optimizations
    from claimbench.schema.cell import Cell, Checkpoint, OptimizationUse, Workload

    checkpoint = Checkpoint(name="tiny", source=f"random://{asked.family}", architecture=asked.family)
    drafts = any(hasattr(optimizations.find(name), "CHECKPOINT_SETTING") for name in asked.names)
    return Cell(
        checkpoint=checkpoint,
        draft=checkpoint.model_copy(update={"name": DRAFT}) if drafts else None,
        backend=asked.backend,
        optimizations=tuple(
            OptimizationUse(name=name, settings=optimizations.settings_of(name, raw).model_dump(mode="json"))
            for name, raw in sorted(asked.uses, key=lambda use: use[0])
        ),
        dtype=asked.dtype,
        workload=Workload(**{"prompt": "hello hello hello", "new_tokens": 10, **dict(asked.workload)}),
        device=asked.device,
    )


@functools.cache
def saved(family: str, layers: int | None = None, **more: int) -> Path:
    """A folder with random weights that vary enough for the likeliest token to be well apart from the next."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from claimbench.cost_model import cost

    changed = more | ({} if layers is None else {LAYERS[family]: layers})
    folder = Path(tempfile.mkdtemp(prefix=f"{family}-"))
    torch.manual_seed(0)
    config = AutoConfig.for_model(**cost.config(family) | changed)
    config.initializer_range = SHARP / math.sqrt(config.hidden_size)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.0 if name.endswith("bias") else 1.0, 0.1)
    model.save_pretrained(folder)
    return folder


def loaded(asked: Asked) -> Any:
    """A session, or `Skip` with what this machine lacks for it."""
    from claimbench import backends, optimizations
    from claimbench.errors import Unavailable

    cell = cell_of(asked)
    for technique in optimizations.used_by(cell):
        reason = technique.unavailable(cell)
        if reason:
            raise Skip(reason)
    try:
        wide = WIDE if asked.backend == "transformers" else {}
        draft = saved(asked.family, 1, **wide) if cell.draft else None
        return backends.find(asked.backend).load(cell, saved(asked.family, **wide), draft)
    except Unavailable as why:
        raise Skip(str(why)) from why


def rows_of(session: Any) -> list[list[int]]:
    import torch

    rows: list[list[int]] = torch.cat(list(session.generate()), dim=1).tolist()
    return rows


SAID: dict[str, list[list[int]]] = {}
"""Tokens of plain runs: many cells are compared with one."""


def plain(asked: Asked) -> list[list[int]]:
    if repr(asked) not in SAID:
        session = loaded(asked)
        SAID[repr(asked)] = rows_of(session)
        session.close()
    return SAID[repr(asked)]


def hold(asked: Asked) -> Json:
    """Load a cell and hold it to what its techniques promise; what was found."""
    from claimbench import optimizations
    from claimbench.measuring.clock import hash_tokens

    session = loaded(asked)
    try:
        rows = rows_of(session)
        hashes = {hash_tokens(rows), *(hash_tokens(rows_of(session)) for _ in range(REPEATS - 1))}
        expect(len(hashes) == 1, f"{REPEATS} generations of the same tokens", f"{len(hashes)} kinds")
        drawn = dict(asked.workload).get("sampling") is not None
        exact = optimizations.is_exact(session.cell) and asked.dtype == "float32"
        found: Json = {"exact": exact, "dtype": asked.dtype}
        if exact:
            expected = plain(reference_of(asked))
            where = "this device" if drawn else "the CPU"
            expect(rows == expected, f"the tokens of the plain run on {where}: {expected[0]}", f"{rows[0]} in row 0")
        elif not drawn:
            found["kl"] = distance(session, rows[0], asked)
        proof = session.prove()
        lacking = asked.names - set(proof["optimizations"])
        expect(not lacking, "a proof of each technique", f"none of {sorted(lacking)}")
        expect(hash_tokens(rows_of(session)) in hashes, "the same tokens after the proof", "others")
        return found | {"graph_launches": proof.get("graph_launches"), "graphs": proof.get("graphs")}
    finally:
        session.close()


def reference_of(asked: Asked) -> Asked:
    """The plain run on the CPU; where tokens are drawn, on the same device and with what draws others."""
    from claimbench import optimizations

    drawn = dict(asked.workload).get("sampling") is not None
    kept = [use for use in asked.uses if drawn and getattr(optimizations.find(use[0]), "REDRAWS", False)]
    return Asked(tuple(kept), asked.family, asked.device if drawn else "cpu", asked.backend, "float32", asked.workload)


def distance(session: Any, tokens: list[int], asked: Asked) -> float:
    """Kullback-Leibler divergence from the plain run on the CPU, along `tokens`, in nats a token."""
    reference = loaded(Asked((), asked.family, "cpu", asked.backend, "float32", asked.workload))
    theirs, ours = reference.log_probs(tokens).float().cpu(), session.log_probs(tokens).float().cpu()
    reference.close()
    far = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    expect(-1e-4 < far < FAR, f"less than {FAR} nats from the plain run", f"{far:.3f}")
    return round(far, 5)
