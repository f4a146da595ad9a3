"""The numbers of the model in a checkpoint's folder: as planned, as counted once and remembered, or counted now.

`cards` asks hubs and wheels as well. This is apart from it because a cell's key hashes the code that the cell imports:
a change of fetching must not measure anything anew.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

from pydantic import ValidationError

from claimbench.checkpoints import counting
from claimbench.checkpoints.stored import with_stored_bytes
from claimbench.cost_model import cost
from claimbench.cost_model.cost import ModelConfig
from claimbench.cost_model.decoder import Decoder
from claimbench.errors import SourceError
from claimbench.schema.card import Card
from claimbench.schema.cell import Checkpoint
from claimbench.schema.json_file import digest

FOLDER = Path(".claimbench") / "cards"


def decoder_in(folder: Path, checkpoint: Checkpoint) -> Decoder:
    """What the cost of the checkpoint in `folder` is computed from: as planned, or counted now."""
    known = cost.decoder_of(checkpoint) or _card_in(folder)
    return with_stored_bytes(known, folder) if isinstance(known, Card) else known


def unplanned_card(checkpoint: Checkpoint, folder: Path) -> Card | None:
    """The numbers of the model in `folder` where nothing was known of it when it was planned, as inside a download."""
    if cost.decoder_of(checkpoint) is not None or not (folder / "config.json").is_file():
        return None
    try:
        return with_stored_bytes(_card_in(folder), folder)
    except SourceError:
        return None


def _card_in(folder: Path) -> Card:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        return Card.model_validate_json(remembered(config).read_bytes())
    except (OSError, ValidationError):
        return counting.count(config)


def remembered(config: ModelConfig, keep_layers: int | None = None) -> Path:
    """Where the card of `config` is kept once it was counted."""
    settings = [config, keep_layers, metadata.version("transformers"), counting.VERSION]
    return FOLDER / f"{digest(settings)}.json"
