"""Folders for offloaded weights: gone when a block ends, also one that was killed; a living block's stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from claimbench.scratch import Scratch

HOLD = """
import sys
from pathlib import Path
from claimbench.scratch import Scratch
scratch = Scratch(Path(sys.argv[1]), 0)
(scratch.folder / "weights").write_bytes(bytes(100))
print("held", flush=True)
sys.stdin.read()
"""


def test_the_next_block_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "of someone else").write_text("kept", encoding="utf-8")
    living = Scratch(tmp_path, 0)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    assert len(list(tmp_path.glob("*/weights"))) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.glob("*/weights"))) == 1, "a killed process cannot remove its folder"
    Scratch(tmp_path, 0).close()
    assert living.folder.is_dir()
    living.close()
    assert [path.name for path in tmp_path.iterdir()] == ["of someone else"]
