"""Which build of torch a machine gets, and that a lock is installed as it is or refused."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from claimbench.workflow import installing

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "src/claimbench/workflow/installing.py"


def machine(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    files: bool = False,
    serves: int | None = None,
    amd: bool = False,
) -> None:
    """One with these signs of a GPU: the driver's files, the CUDA version that its library says, AMD's device."""
    for name, there in (("nvidia", files), ("kfd", amd)):
        if there:
            (tmp_path / name).touch()
    monkeypatch.setattr(installing, "NVIDIA", (str(tmp_path / "nvidia"),))
    monkeypatch.setattr(installing, "AMD", str(tmp_path / "kfd"))

    def library(name: str) -> Any:
        if serves is None:
            raise OSError(f"{name}: cannot open shared object file")

        def version(pointer: Any) -> int:
            pointer._obj.value = serves
            return 0

        return SimpleNamespace(cuDriverGetVersion=version)

    monkeypatch.setattr(ctypes, "CDLL", library)


@pytest.mark.parametrize(
    ("signs", "device", "why"),
    [
        ({}, "cpu", "no NVIDIA driver is here"),
        ({"files": True}, "cuda", "an NVIDIA driver is here"),
        ({"serves": 13020}, "cuda", "an NVIDIA driver is here (libcuda)"),
        ({"files": True, "serves": 13000}, "cuda", "an NVIDIA driver is here"),
        ({"files": True, "serves": 12040}, "cpu", "serves CUDA 12 and torch's build wants 13: update the driver"),
        ({"amd": True}, "cpu", "an AMD GPU is here"),
        ({"amd": True, "serves": 13000}, "cuda", "an NVIDIA driver is here"),
    ],
)
def test_auto_takes_the_build_that_the_driver_can_work_with_and_says_why(
    signs: dict[str, Any], device: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(monkeypatch, tmp_path, **signs)
    choice = installing.choose("auto")
    assert choice.device == device
    assert why in choice.why
    for asked in ("cpu", "cuda"):
        assert installing.choose(asked).device == asked, "what is asked for is what is taken"


@pytest.mark.parametrize("asked", ["rocm", "mps", "xpu", "gpu", ""])
def test_another_device_is_refused_in_one_sentence_that_says_what_there_is(asked: str) -> None:
    with pytest.raises(installing.InstallError, match="expected auto, cpu or cuda: only NVIDIA's GPUs are supported"):
        installing.choose(asked)
    done = subprocess.run(
        [sys.executable, "-P", str(PROGRAM), "--device", asked, "core"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_gpu_has_the_kernels_too_and_torch_comes_first() -> None:
    core = installing.LOCKS / "core.lock"
    names = {device: [lock.stem for lock in installing.with_torch(core, device)] for device in ("cpu", "cuda")}
    assert names == {"cpu": ["cpu", "core"], "cuda": ["cuda", "core", "kernels"]}
    assert [lock.stem for lock in installing.with_torch(installing.LOCKS / "vllm.lock", "cuda")] == ["cpu", "vllm"]


def wheel(folder: Path, version: str) -> str:
    """A wheel of a package that needs another one; its hash."""
    folder.mkdir(exist_ok=True)
    path = folder / f"claimbench_probe-{version}-py3-none-any.whl"
    info = f"claimbench_probe-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("claimbench_probe.py", f"VERSION = {version!r}\n")
        head = f"Metadata-Version: 2.1\nName: claimbench-probe\nVersion: {version}\n"
        archive.writestr(f"{info}/METADATA", f"{head}Requires-Dist: no-such-package-of-claimbench\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment") / "new"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / "bin" / "python"


@pytest.mark.parametrize("tools", [["pip"], ["uv", "pip"]])
def test_a_lock_is_installed_whole_and_alone_and_a_changed_file_is_refused(
    tools: list[str], fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = Path(sys.executable).parent
    if tools[0] == "uv" and installing.which("uv", path=f"{beside}{os.pathsep}{os.environ['PATH']}") is None:
        pytest.skip("uv is not installed")
    monkeypatch.setenv("PATH", str(beside), prepend=os.pathsep)
    monkeypatch.setattr(installing, "tools", lambda: tools)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("UV_OFFLINE", "1")
    right = wheel(tmp_path / "wheels", f"1.0+{tools[0]}")
    lock = tmp_path / "probe.lock"
    lock.write_text(f"claimbench-probe==1.0+{tools[0]} --hash=sha256:{right}\n", encoding="utf-8")
    installing.install(fresh, [lock])
    asked = [str(fresh), "-c", "import claimbench_probe; print(claimbench_probe.VERSION)"]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() == f"1.0+{tools[0]}"
    wheel(tmp_path / "wheels", f"2.0+{tools[0]}")
    lock.write_text(f"claimbench-probe==2.0+{tools[0]} --hash=sha256:{right}\n", encoding="utf-8")
    with pytest.raises(installing.InstallError, match=r"(?is)could not install .*probe.lock.*hash"):
        installing.install(fresh, [lock])
    lock.write_text(f"claimbench-probe==2.0+{tools[0]}\n", encoding="utf-8")
    with pytest.raises(installing.InstallError, match=r"(?i)hash"):
        installing.install(fresh, [lock])


def test_pip_is_asked_where_uv_fails_and_pytorchs_index_where_the_usual_one_has_no_cpu_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, str | None]] = []

    def attempt(tool: str, python: Path, lock: Path, index: str | None) -> str | None:
        asked.append((tool, index))
        return None if (tool, index) == succeeds else "no such file"

    monkeypatch.setattr(installing, "attempt", attempt)
    monkeypatch.setattr(installing, "tools", lambda: ["uv", "pip"])
    order = [("uv", None), ("pip", None), ("uv", installing.CPU_INDEX), ("pip", installing.CPU_INDEX)]
    for number, expected in enumerate(order, 1):
        succeeds = expected
        asked.clear()
        installing.install(Path("python"), [installing.LOCKS / "cpu.lock"])
        assert asked == order[:number]
    succeeds = ("none", None)
    with pytest.raises(installing.InstallError, match="PIP_FIND_LINKS=folder takes one from a folder, and DEVICE=cuda"):
        installing.install(Path("python"), [installing.LOCKS / "cpu.lock"])
    asked.clear()
    with pytest.raises(installing.InstallError):
        installing.install(Path("python"), [installing.LOCKS / "core.lock"])
    assert asked == order[:2], "nothing else is taken from PyTorch's index"


def test_uv_looks_where_pip_was_told_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    assert installing.as_pip_is_configured() == []
    monkeypatch.setenv("PIP_FIND_LINKS", "/a /b")
    monkeypatch.setenv("PIP_INDEX_URL", "https://index")
    assert installing.as_pip_is_configured() == [
        "--find-links",
        "/a",
        "--find-links",
        "/b",
        "--index-url",
        "https://index",
    ]
