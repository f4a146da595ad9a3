"""The header of a GGUF file -> its model's card, and the bytes of its tensors by type. The tensors need not be there.

echo '{"path": "model.gguf"}' | python -m claimbench.checkpoints.gguf_card
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

from claimbench.checkpoints import counting, gguf_any
from claimbench.checkpoints.gguf import GgufFile
from claimbench.errors import SourceError


def header_bytes(path: Path) -> float:
    """Where the tensors of the file at `path` begin, if zeros stand for what is not there; inf: not one header."""
    from gguf import GGUFReader

    try:
        return float(GGUFReader(path).data_offset)
    except (ValueError, KeyError, IndexError, OverflowError, MemoryError, struct.error):
        return float("inf")


def read(path: Path) -> dict[str, object]:
    """Raises SourceError where it is no GGUF file, or of no model that is read from one."""
    file = GgufFile(path)
    config = file.config() if file.family == "llama" else gguf_any.read(path)[0]
    return {"card": counting.count(config).model_dump(mode="json"), "bytes_by_dtype": file.bytes_by_dtype()}


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
