"""What this process and everything below it take of the machine's time is not a neighbour's."""

from __future__ import annotations

import subprocess
import sys

import psutil

from claimbench.system import machine

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
