"""What the worker of a block is asked: one JSON object on its standard input, which a rank gets over its line."""

from __future__ import annotations

from pathlib import Path

from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen


class BlockRequest(Frozen):
    """`reference` is the cell to compare with, loaded from `reference_checkpoint` where its layout is another."""

    cell: Cell
    checkpoint: Path | None = None
    draft: Path | None = None
    reference: Cell | None = None
    reference_checkpoint: Path | None = None
