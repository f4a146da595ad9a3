"""Measures rounds: each in a supervised fresh process, with the device to itself, and sealed as soon as it is over."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

from claimbench.errors import ClaimbenchError
from claimbench.measuring.measure import device_lock
from claimbench.measuring.round_process import RoundRequest
from claimbench.measuring.supervisor import GRACE_S, environment_of
from claimbench.schema import round as round_file
from claimbench.schema.round import Round
from claimbench.system import scratch
from claimbench.system.processes import end_group


def measure_round(request: RoundRequest, output: Path, python: str = sys.executable) -> Round:
    """Measure the round that `request` asks for, and write it to `output`.

    Every arm ends in an outcome of its own. A round that is interrupted leaves no process and no file.

    Raises:
        ClaimbenchError: the round's own process ended without a round.
    """
    cells = [arm.block.cell for arm in request.arms]
    with device_lock(cells[0].device), closing(scratch.Scratch(scratch.temporary())) as own:
        process = subprocess.Popen(
            [python, "-m", "claimbench.measuring.round_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment_of(cells[0], own.folder),
            start_new_session=True,
        )
        try:
            limit_s = sum(cell.protocol.timeout_s for cell in cells) + GRACE_S * len(cells)
            said, complaints = process.communicate(request.model_dump_json(), timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise ClaimbenchError(f"a round did not end within the {limit_s:g} s that its arms have together") from None
        finally:
            end_group(process, GRACE_S)
    if process.returncode:
        last = complaints.strip().splitlines()[-1:] or ["it said nothing"]
        raise ClaimbenchError(f"the process of a round ended with status {process.returncode}: {last[0]}")
    record = Round.model_validate_json(said)
    round_file.write(output, record)
    return record
