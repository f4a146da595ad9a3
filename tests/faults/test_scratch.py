"""Folders for offloaded weights: refused before they are used, and gone when a block ends, also one that was killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from claimbench.errors import ClaimbenchError
from claimbench.system.scratch import Scratch, refusal, remove_abandoned, temporary

HOLD = """
import sys
from pathlib import Path
from claimbench.system.scratch import Scratch
scratch = Scratch(Path(sys.argv[1]))
(scratch.folder / "weights").write_bytes(bytes(100))
print(scratch.folder, flush=True)
sys.stdin.read()
"""


def test_a_folder_that_is_closed_is_gone(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    (scratch.folder / "weights").write_bytes(b"x" * 8192)
    assert scratch.stored() == {"weights": 8192}
    scratch.close()
    assert list((tmp_path).iterdir()) == []


def test_the_next_block_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "of someone else").write_text("kept", encoding="utf-8")
    (tmp_path / "claimbench-scratch-without-a-lock").mkdir()
    living = Scratch(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    assert remove_abandoned(tmp_path) == []
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert (left / "weights").exists(), "a killed process cannot remove its folder"
    Scratch(tmp_path).close()
    assert living.folder.is_dir()
    living.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claimbench-scratch-without-a-lock", "of someone else"]


def test_a_removal_that_is_cut_off_is_finished_by_the_next_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = Scratch(tmp_path)
    (scratch.folder / "rank0").mkdir()
    (scratch.folder / "rank0" / "weights").write_bytes(bytes(100))

    def killed(path: Path, **_: object) -> None:
        (path / "owner").unlink(missing_ok=True)  # the first that it comes by
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            scratch.close()
    scratch._lock.close()  # as the kernel does
    assert remove_abandoned(tmp_path) == [scratch.folder]
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    for parent in (tmp_path / "file", tmp_path / "misspelled", Path("/proc")):
        reason = refusal(parent, 1)
        assert reason is not None
        assert str(parent) in reason


def test_too_little_space_is_told_in_numbers(tmp_path: Path) -> None:
    assert refusal(tmp_path, 1000) is None
    reason = refusal(tmp_path, 10**18)
    assert reason is not None
    assert "1e+09 GB" in reason
    assert "GB free" in reason


def test_no_folder_for_temporary_files_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    with pytest.raises(ClaimbenchError, match=r"missing.*make room in one of them, or set TMPDIR"):
        temporary()
