"""The gauge of a round reads when it is asked, and a round goes on without it."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, os, signal, sys
import torch  # a round's process has imported it as well, and computes nothing either
from claimbench.measuring import ceiling, gauge

ceiling.READ_BYTES["cpu"] = 1 << 26
one = gauge.Gauge("cpu", ["float32"])
found = [one.read(), one.read()]
os.kill(one.process.pid, signal.SIGKILL)
found += [one.read(), one.read()]
one.end()
print(json.dumps(found))
"""


def test_a_gauge_reads_until_it_dies() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True)
    first, second, *after_death = json.loads(ended.stdout)
    for rates in (first, second):
        assert set(rates) == {"read", "float32"}
        assert rates["read"] > 1e8
        assert rates["float32"] > 1e8
    assert after_death == [{}, {}]
