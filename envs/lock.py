"""Write every lock in this folder by uv, from one resolution; for maintainers, see CONTRIBUTING.md.

    python envs/lock.py                         as it is locked, as far as pyproject.toml still allows it
    python envs/lock.py --upgrade transformers  the newest that fits of one package, or of all with `--upgrade all`

uv resolves for every Python that pyproject.toml allows at once, and writes markers where they differ. What it resolved
is cut into files that pip and uv both install: torch's two builds apart from the rest, since no marker can tell a
machine with a GPU from one without. Each file is whole, so it is installed without asking packages what they need.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import which

from packaging.markers import Marker

HERE = Path(__file__).parent
PROJECT = HERE.parent / "pyproject.toml"
EXTRAS = {
    "core": (),
    "dev": ("browser", "check", "s3", "site", "slurm", "ssh", "test"),
    "extras": ("llama", "quanto", "s3", "slurm", "ssh"),
    "kernels": ("cuda",),
}
"""Lock -> the extras that it is for. All but the first leave out what core.lock has."""
FAMILIES = ("deepspeed", "deepspeed_injection", "vllm")
CUDA = re.compile(r"torch|triton|cuda-.+|nvidia-(?!ml-py).+")
"""What the index's torch brings for NVIDIA's GPUs, itself included. No other build needs any of it."""
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLACES = [
    {
        **{"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine},
        **{"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "extra": ""},
        **{"implementation_name": "cpython", "platform_python_implementation": "CPython"},
    }
    for python in PYTHONS
    for machine in ("x86_64", "aarch64")
]
"""Where the locks are for. A marker that says no more than that is left out."""
ALWAYS = ("setuptools>=77",)
"""pip takes it from the environment, where it builds this project."""
SAYS = "# Written by envs/lock.py."

Blocks = dict[tuple[str, str], str]
"""(name, marker) -> its lines, hashes included."""


def uv(*arguments: str) -> str:
    beside = Path(sys.executable).with_name("uv")
    program = str(beside) if beside.exists() else which("uv")
    if program is None:
        sys.exit("uv is missing: pip install uv")
    # Nothing of this machine belongs into a lock: neither its indexes nor its folders of wheels.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, env=kept)
    if done.returncode:
        sys.exit(f"uv {' '.join(arguments)}\n{done.stderr}")
    return done.stdout


def compiled(*arguments: str) -> str:
    """Of every Python and platform, with hashes."""
    fixed = ["--quiet", "--universal", "--python-version", PYTHONS[0], "--generate-hashes", "--no-annotate"]
    return uv("pip", "compile", *fixed, "--no-header", *arguments)


def blocks(text: str) -> Blocks:
    found: Blocks = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", text.strip()):
        head = re.match(r"([A-Za-z0-9._-]+)==[^\s;\\]+\s*(?:;\s*([^\\]*))?", block)
        if head:
            found[head[1].lower().replace("_", "-"), (head[2] or "").strip()] = block
    return of_our_places(found)


def of_our_places(found: Blocks) -> Blocks:
    """Without what none of PLACES needs, and without the markers that all of them meet."""
    kept: Blocks = {}
    for (name, marker), block in found.items():
        met = [Marker(marker).evaluate(place) for place in PLACES] if marker else [True]
        if any(met):
            kept[name, "" if all(met) else marker] = block.replace(f" ; {marker}", "") if all(met) else block
    return kept


def write(name: str, said: str, chosen: Blocks) -> None:
    lines = [block for _, block in sorted(chosen.items())]
    (HERE / f"{name}.lock").write_text("\n".join([said + SAYS, *lines]) + "\n", encoding="utf-8")


def locked_now(names: list[str]) -> str:
    """Pins that are kept where they still fit, without their hashes."""
    pinned: dict[tuple[str, str], str] = {}
    for name in names:
        lock = HERE / f"{name}.lock"
        pinned |= {} if not lock.exists() else blocks(lock.read_text(encoding="utf-8"))
    return "".join(f"{block.partition(chr(92))[0].strip()}\n" for block in pinned.values())


def resolve(inputs: list[str], kept: str, upgrade: list[str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "whole.txt")
        output.write_text(kept, encoding="utf-8")
        newer = (
            ["--upgrade"] if upgrade == ["all"] else [word for name in upgrade for word in ("--upgrade-package", name)]
        )
        compiled(*newer, "--output-file", str(output), *inputs)
        return output.read_text(encoding="utf-8")


def of_project(upgrade: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        always, constraints = Path(folder, "always.in"), Path(folder, "constraints.txt")
        always.write_text("\n".join(ALWAYS), encoding="utf-8")
        kept = locked_now(["cuda", *reversed(EXTRAS)])
        everything = resolve([str(PROJECT), str(always), "--all-extras"], kept, upgrade)
        constraints.write_text(re.sub(r" \\\n\s+--hash=\S+", "", everything), encoding="utf-8")
        cut = {
            name: blocks(
                compiled(
                    "--constraint", str(constraints), str(PROJECT), str(always), *(f"--extra={one}" for one in extras)
                )
            )
            for name, extras in EXTRAS.items()
        }
    write(
        "cuda",
        "# torch as the index has it, with CUDA's libraries.\n",
        {k: v for k, v in cut["core"].items() if CUDA.fullmatch(k[0])},
    )
    core = {key: block for key, block in cut["core"].items() if not CUDA.fullmatch(key[0])}
    write(
        "core",
        "# torch: here\n# All else that pyproject.toml's dependencies reach; torch is in cpu.lock and cuda.lock.\n",
        core,
    )
    for name, extras in list(EXTRAS.items())[1:]:
        rest = {key: block for key, block in cut[name].items() if key not in cut["core"]} | of_own_pins(name)
        write(name, f"# What the extras {', '.join(extras)} add to core.lock.\n", rest)


def of_own_pins(name: str) -> Blocks:
    """What `<name>.in` puts in the place of core.lock's versions, where there is one."""
    own = HERE / f"{name}.in"
    return blocks(compiled("--no-deps", str(own))) if own.exists() else {}


def of_family(family: str, upgrade: list[str]) -> None:
    """The lock of an environment of its own: what `<family>.in` reaches, or no more than it names where it pins all."""
    wanted = HERE / f"{family}.in"
    text = wanted.read_text(encoding="utf-8")
    pinned = all("==" in line or line.startswith("#") for line in text.splitlines())
    found = (
        of_own_pins(family) if pinned else blocks(resolve([str(wanted)], locked_now([family, "core", "cuda"]), upgrade))
    )
    rest = {key: block for key, block in found.items() if pinned or not CUDA.fullmatch(key[0])}
    write(family, f"{text.splitlines()[0]}\n", rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", nargs="+", default=[], metavar="PACKAGE")
    upgrade = parser.parse_args().upgrade
    of_project(upgrade)
    for family in FAMILIES:
        of_family(family, upgrade)


if __name__ == "__main__":
    main()
