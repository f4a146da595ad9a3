"""One virtual environment per backend family, from a pinned lock; the stamp says what is in it.

Only families that conflict with Claimbench's own environment have one. The stamp's lock hash changes with the lock,
so a result never outlives the libraries that it was measured with. What has to be compiled for a family is compiled
here, outside every timeout, by `<family>.build.py` beside the lock.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from claimbench.errors import SourceError
from claimbench.schema.json_file import write_json
from claimbench.system import turns
from claimbench.workflow import installing

SOURCE = Path(__file__).parent.parent.parent


def build(lock: Path, folder: Path, stamp: Path) -> None:
    """Create `folder` as a virtual environment with what `lock` names and this very package; `stamp` comes last.

    The lock names what the worker imports as well: pydantic, psutil and what the family's backends need, each with its
    hashes. Where it begins with `# torch: here`, torch comes in the build that this environment has. A program
    `<family>.build.py` beside the lock is run by the new environment's Python, to compile what pip does not.

    Raises:
        SourceError: pip could not install the lock, or the program failed; carries the last lines.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with turns.alone(folder.with_name(f".{folder.name}.lock"), f"{folder.name} to be installed") as waited:
        if not (waited and stamp.exists()):
            _build(lock, folder, stamp)


def _build(lock: Path, folder: Path, stamp: Path) -> None:
    text = lock.read_bytes()
    _run([sys.executable, "-m", "venv", "--clear", str(folder)], "create the environment")
    python = folder / "bin" / "python"
    _install(python, lock)
    program = lock.with_suffix(".build.py")
    if program.exists():
        _run([str(python), str(program)], f"run {program}")
    packages = _run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], "find its packages")
    (Path(packages.strip()) / "claimbench.pth").write_text(f"{SOURCE.resolve()}\n", encoding="utf-8")
    frozen = _run([str(python), "-m", "pip", "freeze"], "list what was installed").splitlines()
    version = _run([str(python), "--version"], "ask for its version").strip()
    write_json(stamp, {"lock": hashlib.sha256(text).hexdigest(), "python": version, "packages": sorted(frozen)})


def _install(python: Path, lock: Path) -> None:
    try:
        device = installing.here() if installing.torch_of(lock) else "cpu"
        installing.install(python, installing.with_torch(lock, device))
    except installing.InstallError as error:
        raise SourceError(str(error)) from None


def _run(command: list[str], purpose: str) -> str:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-4:])
        raise SourceError(f"could not {purpose}:\n{last}")
    return done.stdout
