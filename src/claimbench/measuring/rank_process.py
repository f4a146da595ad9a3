"""One rank of a cell that runs in several processes: a keeper, and the process that it keeps.

    launcher (torchrun, DeepSpeed's, srun) -> keeper -> the rank itself

The keeper has no libraries in it. It passes on what its rank prints, tells the coordinator how the rank ended (a
launcher swallows the signal), and ends the rank when the coordinator is gone, on whichever machine that was. The rank
serves the request: rank 0 measures, the others do what it does.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from multiprocessing.connection import Connection, wait

from claimbench.measuring import rank_protocol
from claimbench.measuring.rank_protocol import RankEnded
from claimbench.system import launchers
from claimbench.system.launchers import Place
from claimbench.system.processes import die_with_parent, last_lines

TELL_S = 5.0


def main(address: str) -> int:
    """Keep one rank until it ends or the coordinator does."""
    die_with_parent()
    place = launchers.identify()
    line = rank_protocol.connect(address, "keeper", place)
    reading, writing = os.pipe()
    keeper = os.getpid()
    child = os.fork()
    if child == 0:
        die_with_parent()
        if os.getppid() != keeper:  # it died before it could be asked to take this one along
            os._exit(1)
        line.close()
        os.close(reading)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        os._exit(serve(address, place))
    os.close(writing)
    asked_to_end: list[int] = []

    def end(number: int, _: object) -> None:
        asked_to_end.append(number)
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    lines = _keep(child, reading, line)
    _, status = os.waitpid(child, 0)
    code = -asked_to_end[0] if asked_to_end else os.waitstatus_to_exitcode(status)
    ending: RankEnded = {"ended": code, "lines": lines}
    rank_protocol.send(line, ending)
    # The launcher may end the others as soon as this process does: the coordinator hears it first.
    if line.poll(TELL_S):
        rank_protocol.receive(line)
    return abs(code)


def _keep(child: int, reading: int, line: Connection) -> list[str]:
    """The last lines that the rank printed, which go to our own standard error as they come."""
    kept = last_lines()
    rest = b""
    while True:
        ready = wait([reading, line])
        if line in ready:  # it never speaks here: this is its end
            os.kill(child, signal.SIGKILL)
            break
        chunk = os.read(reading, 65536)
        if not chunk:
            break
        os.write(2, chunk)
        *whole, rest = (rest + chunk).split(b"\n")
        kept.extend(part.decode("utf-8", "replace") + "\n" for part in whole)
    return [*kept, rest.decode("utf-8", "replace")]


def serve(address: str, place: Place) -> int:
    """Do this rank's part of the request. Exit status 0 when a message says how it ended."""
    from claimbench.measuring import arm  # what a rank runs, and its keeper does not
    from claimbench.measuring.worker import guarded, run_block

    channel = rank_protocol.connect(address, "rank", place)
    asked = rank_protocol.RankRequest.model_validate(rank_protocol.receive(channel))
    request = asked.block

    def say(event: str, **content: object) -> None:
        rank_protocol.send(channel, {"event": event, **content})

    def work() -> None:
        cell = request.cell
        if cell.protocol.memory_limit:
            resource.setrlimit(resource.RLIMIT_AS, (cell.protocol.memory_limit, cell.protocol.memory_limit))
        lead = rank_protocol.LeaderSession(channel, place["WORLD_SIZE"])
        if place["RANK"]:
            rank_protocol.follow(request, channel)
        elif asked.arm:
            arm.answer(channel, arm.ArmRequest.model_validate_json(asked.arm), say, lead)
        else:
            run_block(request, say, lead)

    guarded(work, say)
    sys.stdout.flush()
    sys.stderr.flush()
    return 0


if __name__ == "__main__":
    status = main(sys.argv[-1])  # a launcher may put arguments of its own before it
    os._exit(status)
