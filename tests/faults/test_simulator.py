"""Whole runs in a simulator: whatever goes wrong, nothing is lost, half-written, doubled or judged wrongly.

A seed that fails is in the message, and `python -m tests.faults.simulated.run SEED` says all that happens in it.
`CLAIMBENCH_SEEDS=10000 pytest tests/faults/test_simulator.py -k seeds` tries more of them.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from tests.faults.simulated.disk import Disk, Killed
from tests.faults.simulated.run import SETTINGS, Scenario, scenario, simulate
from tests.faults.simulated.world import Fault

from claimbench.schema import durable

SEEDS = int(os.environ.get("CLAIMBENCH_SEEDS", "1000"))
PARTS = 8


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_in_which_nothing_goes_wrong(setting: str) -> None:
    """The simulator stands in for parts of the package by their names: one that was renamed is found here."""
    assert simulate(0, Scenario(setting, (((),),))).operations >= 60


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_seeds_end_with_everything_that_was_measured_and_no_wrong_verdict(part: int) -> None:
    for seed in range(part, SEEDS, PARTS):
        simulate(seed)


@pytest.mark.slow
def test_a_seed_replays_bit_for_bit() -> None:
    for seed in range(0, 60, 6):
        first, again = simulate(seed), simulate(seed)
        assert first.happened == again.happened
        assert first.fingerprint == again.fingerprint
    assert len({simulate(seed).fingerprint for seed in range(4)}) == 4


def test_seeds_try_every_kind_of_fault_and_two_runs_at_once() -> None:
    several = [scenario(seed) for seed in range(200)]
    kinds = {(fault.kind, fault.of_work) for one in several for runs in one.steps for run in runs for fault in run}
    assert len(kinds) == 14
    assert any(len(runs) == 2 for one in several for runs in one.steps)
    assert any(one.rots for one in several)


def operations_of(setting: str) -> int:
    """On the disk, of a run in which nothing goes wrong."""
    return simulate(0, Scenario(setting, (((),),))).operations


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["blocks", "clear"])
@pytest.mark.parametrize("kind", ["kill run", "kill job", "cut power", "break disk", "fill disk"])
def test_at_every_operation_on_the_disk(kind: str, setting: str) -> None:
    """Each write, rename, flush and removal is the one at which it happens, once."""
    operations = operations_of(setting)
    assert operations >= 60
    for at in range(1, operations + 1):
        simulate(at, Scenario(setting, (((Fault(kind, at),),),)))


FOUND = {
    "a clock that is set back leaves results of the future": Scenario(
        "clear", (((Fault("set clock back", 2, of_work=True), Fault("kill run", 4, of_work=True)),),)
    ),
    "a clock that is set back between rounds changes no order": Scenario(
        "near", (((Fault("set clock back", 3, of_work=True), Fault("set clock back", 5, of_work=True)),),)
    ),
    "a run that is killed once its rounds are listed measures none of them again": Scenario(
        "clear", (((Fault("kill run", 58),),),)
    ),
    "two runs at once in a fresh folder": Scenario("blocks", (((), ()),)),
    "two runs at once measure the same rounds once": Scenario("mixed", (((), ()),)),
    "two runs at once list the rounds of both": Scenario("near", (((), ()),)),
    "what one damages, two find at once": Scenario("mixed", (((),), ((), ())), rots=(0,)),
    "a machine that sleeps in a round voids it": Scenario("clear", (((Fault("sleep", 2, of_work=True),),),)),
    "a worker that dies again and again": Scenario(
        "blocks", tuple(((Fault("kill worker", at, of_work=True),),) for at in (2, 2, 2, 2))
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", FOUND)
def test_found(what: str) -> None:
    for seed in range(6):
        simulate(seed, FOUND[what])


def chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - faults, not secrets


class Ground:
    """A disk below one folder, and what is cut off it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.operations, self.dies_at = list[str](), 0
        self.disk = Disk(self._before, lambda: 10**18)
        monkeypatch.setattr(durable, "os", self.disk.stand_in())

    def _before(self, operation: str, path: Path) -> None:
        self.operations.append(operation)
        if len(self.operations) == self.dies_at:
            raise Killed


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    return Ground(tmp_path, monkeypatch)


def test_the_disk_of_the_simulator_forgets_what_was_not_flushed(ground: Ground, tmp_path: Path) -> None:
    """Else nothing that is tested on it would say anything."""
    outcomes = set()
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        calls, path = ground.disk.stand_in(), folder / "a"
        handle = calls.open(path, os.O_WRONLY | os.O_CREAT)
        calls.write(handle, memoryview(b"abcdef"))
        calls.close(handle)
        calls.rename(path, folder / "b")
        ground.disk.cut_power(chance(seed))
        found = {one.name: one.read_bytes() for one in folder.iterdir()}
        outcomes.add("nothing" if not found else f"{next(iter(found))} of {len(next(iter(found.values())))}")
    assert {"nothing", "a of 0", "b of 3"} <= outcomes


def test_what_was_written_is_there_after_a_power_cut_and_what_was_not_changes_nothing(
    ground: Ground, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    durable.write(path, b"first")
    ground.disk.cut_power(chance(0))
    assert path.read_bytes() == b"first"
    done, total = len(ground.operations), 0
    durable.write(path, b"second")
    total, ground.operations = len(ground.operations) - done, []
    ground.disk.forget()
    for at in range(1, total + 1):
        for seed in range(5):
            path.write_bytes(b"first")
            ground.operations, ground.dies_at = [], at
            with pytest.raises(Killed):
                durable.write(path, b"second")
            ground.disk.cut_power(chance(seed))
            assert path.read_bytes() in (b"first", b"second")
    ground.dies_at = 0
    durable.write(path, b"third")
    assert [one.name for one in path.parent.iterdir()] == ["a.json"], "what dead writers left is gone"


def test_a_new_file_never_takes_the_place_of_another(tmp_path: Path) -> None:
    durable.write_new(tmp_path / "a", b"1")
    with pytest.raises(FileExistsError):
        durable.write_new(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
