"""A folder for offloaded weights is refused before it is used, and does not outlive its user."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from claimbench.swap_folder import SwapFolder, refusal, remove_abandoned

HOLD = """
import sys, time
from pathlib import Path
from claimbench.swap_folder import SwapFolder
folder = SwapFolder(Path(sys.argv[1]))
(folder.path / "weights.swp").write_bytes(b"x" * 4096)
print(folder.path, flush=True)
time.sleep(60)
"""


def test_a_folder_that_is_removed_is_gone(tmp_path: Path) -> None:
    folder = SwapFolder(tmp_path / "new/parent")
    (folder.path / "weights.swp").write_bytes(b"x" * 8192)
    assert folder.stored() == {"weights.swp": 8192}
    folder.remove()
    assert list((tmp_path / "new/parent").iterdir()) == []


def test_what_a_dead_process_left_is_removed_and_what_a_live_one_holds_is_not(tmp_path: Path) -> None:
    own = SwapFolder(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    left = Path(other.stdout.readline().strip())
    assert remove_abandoned(tmp_path) == []
    other.kill()
    other.wait()
    other.stdout.close()
    assert remove_abandoned(tmp_path) == [left]
    assert [path for path in tmp_path.iterdir()] == [own.path]
    own.remove()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "claimbench-offload-without-a-lock").mkdir()
    (tmp_path / "photographs").mkdir()
    assert remove_abandoned(tmp_path) == []


def test_a_parent_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for parent in (tmp_path / "file", Path("/proc/claimbench")):
        reason = refusal(parent, 1)
        assert reason is not None
        assert str(parent) in reason


def test_too_little_space_is_told_in_numbers(tmp_path: Path) -> None:
    assert refusal(tmp_path, 1000) is None
    reason = refusal(tmp_path, 10**18)
    assert reason is not None
    assert "1e+09 GB" in reason
    assert "GB free" in reason
