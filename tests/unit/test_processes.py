"""Nothing that a process started outlives its end, and of what it printed the newest lines are there."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

from claimbench.system.processes import end_group, kill_all, last_lines

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
LEADER = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {DEAF!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""
ADOPTER = """
import subprocess, sys
from claimbench.system.processes import adopt_orphans, end_descendants
adopt_orphans()
orphan = "subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=-3, stderr=-3).pid"
command = [sys.executable, "-c", f"import subprocess; print({orphan})"]
print(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip(), flush=True)
end_descendants()
print("ended", flush=True)
sys.stdin.read()
"""
PARENT = """
import subprocess, sys, time
from claimbench.system.processes import die_with_parent
print(subprocess.Popen(["sleep", "600"], preexec_fn=die_with_parent).pid, flush=True)
time.sleep(600)
"""


def start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def is_gone(pid: int) -> bool:
    """Within a few seconds: what nobody waits for stays listed as a zombie, which holds nothing any more."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def test_a_group_is_gone_with_a_child_that_ignores_the_request_to_end():
    leader = start(LEADER)
    child = int(line_of(leader))
    end_group(leader, grace_s=5)
    assert leader.returncode is not None
    assert is_gone(child)


def test_a_leader_that_ignores_the_request_to_end_is_killed_after_its_grace():
    leader = start(DEAF)
    assert line_of(leader) == "deaf"
    begun = time.monotonic()
    end_group(leader, grace_s=0.3)
    assert time.monotonic() - begun >= 0.3
    assert leader.returncode == -9


def test_a_group_that_has_ended_is_ended_once_more_without_a_word():
    leader = start("pass")
    leader.wait()
    end_group(leader, grace_s=5)
    assert leader.returncode == 0


def test_an_orphan_in_a_session_of_its_own_is_gone():
    adopter = start(ADOPTER)
    orphan = int(line_of(adopter))
    assert line_of(adopter) == "ended"
    assert is_gone(orphan)
    assert adopter.poll() is None
    adopter.communicate()


def test_a_killed_parent_takes_its_child_along():
    parent = start(PARENT)
    child = int(line_of(parent))
    parent.kill()
    parent.wait()
    assert is_gone(child)


def test_one_that_is_gone_already_keeps_no_other_alive():
    gone, alive = (start("import time; time.sleep(600)") for _ in range(2))
    listed = [psutil.Process(gone.pid), psutil.Process(alive.pid)]
    gone.kill()
    gone.wait()
    kill_all(listed)
    assert alive.wait(5) == -9


def test_the_newest_lines_are_kept_and_no_more():
    lines = last_lines(3)
    lines.extend(f"{number}\n" for number in range(10))
    assert list(lines) == ["7\n", "8\n", "9\n"]
