"""What this process and everything below it take of the machine's time is not a neighbour's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from claimbench.system import machine, memory

GRANDCHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"


def test_the_time_of_a_living_grandchild_is_our_own() -> None:
    before = machine.cpu_ticks()
    child = subprocess.Popen([sys.executable, "-c", GRANDCHILD], start_new_session=True)
    try:
        while not (below := psutil.Process(child.pid).children()) or below[0].cpu_times().user < 0.3:
            pass
        after = machine.cpu_ticks()
    finally:
        for process in [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]:
            process.kill()
        child.wait()
    assert after["own"] - before["own"] >= 0.3
    assert after["busy"] - before["busy"] >= 0.25, "the machine's clock ticks coarsely, and counts it too"


def test_a_peak_is_of_what_came_after_it_was_reset() -> None:
    """So the memory of a generation is not that of loading, which may take more."""
    size = 256 << 20
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        pytest.skip(f"the kernel resets no peak here: {error}")
    held = b"1" * size
    before = memory.peaks("cpu")["rss_peak"]
    del held
    memory.reset_peak()
    after = memory.peaks("cpu")["rss_peak"]
    assert before - after > size // 2
