"""Threads that compute get a core each, and can leave it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, threading, time
from claimbench.system import affinity

def compute(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass

ready, leave = threading.Barrier(4), threading.Event()
def work(seconds):
    compute(seconds)
    ready.wait()
    leave.wait()

compute(0.1)
before = affinity.cpu_ns()
threads = [threading.Thread(target=work, args=(seconds,)) for seconds in (0.06, 0.05, 0.0)]
for one in threads:
    one.start()
ready.wait()
cores = os.sched_getaffinity(0)
bound = affinity.spread(before)
where = {one.native_id: sorted(os.sched_getaffinity(one.native_id)) for one in threads}
alone = affinity.spread(affinity.cpu_ns())
affinity.release(bound, cores)
after = [sorted(os.sched_getaffinity(one.native_id)) for one in threads]
leave.set()
named = [one.native_id for one in threads]
print(json.dumps([named, sorted(bound), list(where.values()), after, alone, sorted(cores)]))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no threads")
@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: [])(0)) < 2, reason="one core")
def test_whoever_computes_gets_a_core_of_its_own() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    (first, second, idle), bound, where, after, alone, cores = json.loads(ended.stdout)
    assert bound == sorted([first, second])
    assert idle not in bound
    assert where == [[cores[0]], [cores[1]], cores]
    assert after == [cores] * 3
    assert alone == {}
