"""What a container, a slice or a job of SLURM takes away is seen: cores, time of cores, memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from claimbench.backends import accelerate
from claimbench.measuring import ceiling, supervisor, worker
from claimbench.schema.cell import Cell, Checkpoint, Protocol, Workload
from claimbench.serving import vllm
from claimbench.system import affinity, control_groups, launchers, machine

CORES = set(range(8))
GB = 1_000_000_000
HOST_BYTES = 64 * GB
Tree = dict[str, dict[str, str]]
"""Files by group, groups by their path below the mount."""


class Fake:
    """A machine of eight cores and 64 GB, whose kernel says what a test wants of control groups."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.mounts = tmp_path, list[str]()
        (tmp_path / "proc").mkdir()
        monkeypatch.setattr(control_groups, "PROC", tmp_path / "proc")
        monkeypatch.setattr(control_groups, "USUAL_MOUNT", tmp_path / "usual")
        monkeypatch.setattr(machine, "STAT", tmp_path / "stat")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: CORES)
        memory = psutil.virtual_memory()._replace(total=HOST_BYTES, available=60 * GB)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        self.groups("")
        self.stat(dict.fromkeys(CORES, 100.0))

    def groups(self, text: str) -> None:
        (self.root / "proc" / "cgroup").write_text(text)

    def mount(self, kind: str, name: str, tree: Tree, root: str = "/", options: str = "rw") -> Path:
        """Groups with their files at a mount point, whose name may hold a space."""
        point = self.root / name
        for path, files in tree.items():
            (point / path).mkdir(parents=True, exist_ok=True)
            for file, content in files.items():
                (point / path / file).write_text(content + "\n")
        escaped = str(point).replace(" ", "\\040")
        self.mounts.append(f"31 23 0:28 {root} {escaped} rw,nosuid shared:9 - {kind} {kind} {options}")
        (self.root / "proc" / "mountinfo").write_text("\n".join(["22 1 8:1 / / rw - ext4 /dev/sda rw", *self.mounts]))
        return point

    def stat(self, busy_s: dict[int, float], steal_s: float = 0.0) -> None:
        """Of /proc/stat: what each core was busy, and that the hypervisor took from each."""
        per_s = os.sysconf("SC_CLK_TCK")

        def line(name: str, busy: float, steal: float) -> str:
            return f"{name} {int(busy * per_s)} 0 0 {10**6} 0 0 0 {int(steal * per_s)} 0 0"

        whole = line("cpu", sum(busy_s.values()), steal_s * len(busy_s))
        lines = [line(f"cpu{core}", busy, steal_s) for core, busy in busy_s.items()]
        (self.root / "stat").write_text("\n".join([whole, *lines, "intr 1", ""]))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


def docker_v2(fake: Fake) -> None:
    """A namespace of its own: the container's group is the root of what it sees."""
    fake.groups("0::/\n")
    fake.mount("cgroup2", "v2", {"": {"cpu.max": "250000 100000", "memory.max": str(8 * GB)}})


def docker_v1(fake: Fake) -> None:
    """No namespace: the path is the host's, and the mount shows that part of the tree alone."""
    fake.groups("4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n")
    cpu = {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"}
    fake.mount("cgroup", "cpu,cpuacct", {"": cpu}, "/docker/abc", "rw,cpu,cpuacct")
    fake.mount("cgroup", "memory", {"": {"memory.limit_in_bytes": str(8 * GB)}}, "/docker/abc", "rw,memory")


def slice_above(fake: Fake) -> None:
    """The group itself is free; the slices above are not, and the tightest is in the middle."""
    fake.groups("0::/user.slice/user-1.slice/session.scope\n")
    tree: Tree = {
        "user.slice": {"cpu.max": "400000 100000", "memory.max": str(32 * GB)},
        "user.slice/user-1.slice": {"cpu.max": "125000 50000", "memory.high": str(8 * GB), "memory.max": "max"},
        "user.slice/user-1.slice/session.scope": {"cpu.max": "max 100000", "memory.max": "max"},
        "other.slice": {"cpu.max": "100000 100000", "memory.max": str(GB)},
    }
    fake.mount("cgroup2", "with a space", tree)


def slurm_v1(fake: Fake) -> None:
    fake.groups("5:memory:/slurm/uid_1/job_2/step_0\n3:cpu:/slurm/uid_1/job_2/step_0\n0::/\n")
    quota = {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}
    job = "slurm/uid_1/job_2"
    fake.mount("cgroup2", "unified", {"": {}})
    fake.mount("cgroup", "cpu", {f"{job}/step_0": quota, job: quota | {"cpu.cfs_quota_us": "250000"}}, "/", "rw,cpu")
    no_limit = {"memory.limit_in_bytes": "9223372036854771712"}
    memory: Tree = {f"{job}/step_0": no_limit, job: {"memory.limit_in_bytes": str(8 * GB)}}
    fake.mount("cgroup", "memory", memory, "/", "rw,memory")


def hierarchy_outside(fake: Fake) -> None:
    """Version 1 tells of groups that a container cannot see."""
    docker_v1(fake)
    (fake.root / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712")
    (fake.root / "memory" / "memory.stat").write_text(f"cache 1\nhierarchical_memory_limit {8 * GB}\n")


LIMITED = [docker_v2, docker_v1, slice_above, slurm_v1, hierarchy_outside]


def no_groups(fake: Fake) -> None:
    """A kernel without them."""


def free_v2(fake: Fake) -> None:
    fake.groups("0::/user.slice\n")
    fake.mount("cgroup2", "v2", {"user.slice": {"cpu.max": "max 100000", "memory.max": "max", "memory.high": "max"}})


def free_v1(fake: Fake) -> None:
    fake.groups("4:memory:/\n3:cpu:/\n")
    fake.mount("cgroup", "cpu", {"": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}}, "/", "rw,cpu")
    fake.mount("cgroup", "memory", {"": {"memory.limit_in_bytes": "9223372036854771712"}}, "/", "rw,memory")


def more_than_there_is(fake: Fake) -> None:
    fake.groups("0::/\n")
    fake.mount("cgroup2", "v2", {"": {"cpu.max": "1600000 100000", "memory.max": str(100 * GB)}})


def garbage(fake: Fake) -> None:
    fake.groups("no colons\n0\n::\n7:memory\n0::/../../outside\n4:memory:/..\n")
    files = {"cpu.max": "all of it", "memory.max": "-5", "memory.high": "0", "memory.stat": "inactive_file\n\nx y z"}
    fake.mount("cgroup2", "v2", {"": files})
    fake.mount("cgroup", "cpu", {"": {"cpu.cfs_quota_us": "5", "cpu.cfs_period_us": "0"}}, "/", "rw,cpu")
    fake.mounts.append("half a line -")
    (fake.root / "v2" / "memory.current").write_bytes(b"\xff\xfe")


def hidden(fake: Fake) -> None:
    docker_v2(fake)
    for name in ("cgroup", "mountinfo"):
        (fake.root / "proc" / name).unlink()


FREE = [no_groups, free_v2, free_v1, more_than_there_is, garbage, hidden]
by_name: Callable[[object], str] = lambda one: one.__name__  # type: ignore[attr-defined]  # noqa: E731


def test_without_a_limit_a_machine_is_what_it_was(fake: Fake) -> None:
    plain = machine.identify()
    assert (plain["cpu"]["cores"], plain["memory_gb"]) == (8, 64)
    assert plain["cpu"].keys() == {"model", "family", "generation", "cores", "instruction_sets"}, "its key would change"
    for free in FREE:
        fake.mounts.clear()
        free(fake)
        assert machine.identify() == plain, free.__name__
        assert machine.available_bytes() == 60 * GB
        assert not machine.is_quota_bound()


@pytest.mark.parametrize("limit", LIMITED, ids=by_name)
def test_two_and_a_half_cores_and_eight_gb_are_seen_wherever_they_are_asked_for(
    limit: Callable[[Fake], None], fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = machine.identify()
    monkeypatch.setattr(affinity, "cpu_ns", lambda: {1 << 29: 10**9, (1 << 29) + 1: 10**9})
    assert list(affinity.spread({}).values()) == [0, 1]
    limit(fake)
    here = machine.identify()
    assert (here["cpu"]["cores"], here["cpu"]["quota"], here["memory_gb"]) == (2, 2.5, 8)
    assert here["key"] != plain["key"]
    assert machine.available_bytes() == 8 * GB
    cell = a_cell()
    assert supervisor.environment_of(cell, a_folder(fake))["OMP_NUM_THREADS"] == "2"
    assert launchers.threads(1, None) == 2
    assert launchers.too_many(3, "cpu") == "3 ranks need 3 cores, and here are 2: set devices to 2 at most"
    assert accelerate._host_bytes() == 8 * GB
    assert affinity.spread({}) == {}, "others may be on those cores"


def a_folder(fake: Fake) -> Path:
    (folder := fake.root / "temporary").mkdir()
    return folder


def a_cell(**protocol: int) -> Cell:
    return Cell(
        checkpoint=Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama"),
        backend="transformers",
        workload=Workload(prompt="a", batch=1, new_tokens=1),
        protocol=Protocol(**protocol),
        dtype="float32",
        device="cpu",
    )


def test_a_server_is_bound_to_as_many_cores_as_it_has(fake: Fake) -> None:
    from claimbench.cost_model import cost

    docker_v2(fake)
    cell = a_cell()
    decoder = cost.decoder_of(cell.checkpoint)
    assert decoder is not None
    assert vllm.environment(cell, decoder, 1)["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"


def test_half_a_core_is_one_thread(fake: Fake) -> None:
    fake.groups("0::/\n")
    fake.mount("cgroup2", "v2", {"": {"cpu.max": "50000 100000"}})
    here = machine.identify()["cpu"]
    assert (here["cores"], here["quota"]) == (1, 0.5)


def test_a_small_memory_bounds_what_the_ceiling_takes(fake: Fake) -> None:
    assert ceiling.read_bytes("cpu") == 1 << 29
    fake.groups("0::/\n")
    fake.mount("cgroup2", "v2", {"": {"memory.max": str(512 * 1024**2)}})
    assert ceiling.read_bytes("cpu") == 64 * 1024**2


@pytest.mark.parametrize("version", [1, 2])
def test_memory_that_is_left_counts_the_page_cache_as_free(version: int, fake: Fake) -> None:
    stat = f"total_inactive_file {2 * GB}\ntotal_active_file {GB}\ninactive_file {2 * GB}\nactive_file {GB}\n"
    if version == 2:
        fake.groups("0::/above/own\n")
        fake.mount(
            *("cgroup2", "v2"),
            {
                "above": {"memory.max": str(10 * GB), "memory.current": str(9 * GB), "memory.stat": stat},
                "above/own": {"memory.max": str(8 * GB), "memory.current": str(2 * GB), "memory.stat": "anon 5"},
            },
        )
    else:
        fake.groups("4:memory:/above\n")
        files = {"memory.limit_in_bytes": str(10 * GB), "memory.usage_in_bytes": str(9 * GB), "memory.stat": stat}
        fake.mount("cgroup", "memory", {"above": files}, "/", "rw,memory")
    assert machine.available_bytes() == 4 * GB, "of the group above: 10 - (9 - 3)"


@pytest.mark.parametrize("version", [1, 2])
def test_a_process_that_its_group_killed_for_memory_is_counted(version: int, fake: Fake) -> None:
    before = supervisor.kernel_oom_kills()
    if version == 2:
        fake.groups("0::/above/own\n")
        fake.mount(
            "cgroup2",
            "v2",
            {"above": {"memory.events": "oom_kill 9"}, "above/own": {"memory.events": "oom 5\noom_kill 3"}},
        )
    else:
        fake.groups("4:memory:/own\n")
        fake.mount("cgroup", "memory", {"own": {"memory.oom_control": "under_oom 0\noom_kill 3"}}, "/", "rw,memory")
    assert supervisor.kernel_oom_kills() == before + 3


def ticks(fake: Fake, busy_s: dict[int, float], own_s: float, steal_s: float = 0.0) -> machine.CpuTicks:
    fake.stat(busy_s, steal_s)
    return {**machine.cpu_ticks(), "own": own_s}


def test_work_on_cores_that_one_may_not_use_is_no_neighbour(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3})
    before = ticks(fake, dict.fromkeys(CORES, 100.0), 0.0)
    busy = {core: 110.0 for core in CORES}
    after = ticks(fake, busy, 20.0)
    assert worker.neighbours(before, after, 10.0) == {"foreign_cpu": 0.0, "steal": 0.0}
    after = ticks(fake, busy, 15.0, steal_s=1.0)
    found = worker.neighbours(before, after, 10.0)
    assert found == pytest.approx({"foreign_cpu": 0.25, "steal": 0.1}), "5 s of 20 s that two cores have in 10 s"


def test_a_quota_is_met_by_others_only_where_no_core_is_free_for_it(fake: Fake) -> None:
    docker_v2(fake)
    before = ticks(fake, dict.fromkeys(CORES, 100.0), 0.0)
    five_busy = {core: 110.0 if core < 5 else 100.0 for core in CORES}
    assert worker.neighbours(before, ticks(fake, five_busy, 0.0), 10.0)["foreign_cpu"] == 0.0
    seven_busy = {core: 110.0 if core < 7 else 100.0 for core in CORES}
    found = worker.neighbours(before, ticks(fake, seven_busy, 0.0), 10.0)
    assert found["foreign_cpu"] == pytest.approx(1.5 / 2.5), "one core is free of the two and a half"


def test_all_cores_are_looked_at_where_the_kernel_numbers_them_otherwise(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's own /proc/stat may begin at 0 whatever its cores are."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {40, 41})
    before = ticks(fake, {0: 0.5, 1: 0.5}, 0.0)
    found = worker.neighbours(before, ticks(fake, {0: 10.5, 1: 0.5}, 0.0), 10.0)
    assert found["foreign_cpu"] == pytest.approx(0.5)
