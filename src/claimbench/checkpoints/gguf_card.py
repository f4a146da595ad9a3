"""The header of a GGUF file -> its model's card, and the bytes of its tensors by type. The tensors need not be there.

echo '{"path": "model.gguf"}' | python -m claimbench.checkpoints.gguf_card
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from claimbench.checkpoints import counting, gguf, gguf_config
from claimbench.errors import SourceError


def header_bytes(path: Path) -> float:
    """Where the tensors of the file at `path` begin, if zeros stand for what is not there; inf: not one header."""
    try:
        return float(min((tensor.begin for tensor in gguf.read(path).tensors), default=path.stat().st_size))
    except SourceError:
        return float("inf")


def read(path: Path) -> dict[str, object]:
    """Raises SourceError where it is no GGUF file, or of no model that is read from one."""
    header = gguf.read(path)
    config = gguf_config.of(_without_positions(header))
    return {"card": counting.count(config).model_dump(mode="json"), "bytes_by_dtype": header.bytes_by_dtype}


def _without_positions(header: gguf.Header) -> gguf.Header:
    """How rotary positions are scaled costs nothing, and lies in tensors."""
    return header._replace(
        tensors=tuple(tensor for tensor in header.tensors if not tensor.name.startswith("rope_")),
        values={key: value for key, value in header.values.items() if ".rope.scaling." not in key},
        entries={key: value for key, value in header.entries.items() if ".rope.scaling." not in key},
    )


def main() -> int:
    counting.bound_memory()
    try:
        print(json.dumps(read(Path(json.load(sys.stdin)["path"]))))
    except SourceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
