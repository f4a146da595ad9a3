"""A folder that holds one run: its params and study, the workflow that comes with the package, results and a report.

Checkpoints and environments are shared with the folder that it is in: `resources` and `envs` are links. Everything else
is its own, so the folder can be handed to somebody as it is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from claimbench.errors import ClaimbenchError, ConfigError
from claimbench.workflow import source

RUNS = Path("runs")
SNAKEFILE = """\
# The workflow that comes with Claimbench, on the params.yaml and the studies of this folder: `snakemake` runs it.
from claimbench.workflow import source


include: source.snakefile()


rule everything:
    default_target: True
    input:
        rules.all.input,
"""


QUIET = ("rules", "reason", "host", "progress")
"""Of Snakemake's own words; what the rules say stays."""


class Failed(ClaimbenchError):
    """Snakemake ended with an error, which it has told."""


def write(folder: Path, files: Mapping[str, str], shared: Path) -> None:
    """Lay `files`, by their path in `folder`, and the workflow out; what is there already and the same is left.

    Raises:
        ConfigError: a file is there already and says something else.
    """
    texts = {**files, "Snakefile": SNAKEFILE, ".gitignore": "resources\nenvs\nlogs/\n.snakemake/\n.claimbench/\n"}
    if holds_other(folder, texts):
        raise ConfigError(f"{folder} holds another study already: name another folder with --folder")
    for name, text in texts.items():
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    shared.mkdir(parents=True, exist_ok=True)
    _link(folder / "resources", shared)
    _link(folder / "envs", source.folder() / "envs")


def _link(path: Path, target: Path) -> None:
    """A link to where `target` is now: packages and folders move."""
    if path.is_symlink():
        path.unlink()
    if not path.exists():
        path.symlink_to(target.absolute(), target_is_directory=True)


def holds_other(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether one of `files` is in `folder` with another text, or `folder` is no folder."""
    if folder.exists() and not folder.is_dir():
        return True
    return any((folder / name).exists() and _text(folder / name) != text for name, text in files.items())


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def free(name: str, files: Mapping[str, str]) -> Path:
    """The first of runs/name, runs/name-2, ... that is not there, or holds these very `files`."""
    number = 1
    while holds_other(folder := RUNS / (name if number == 1 else f"{name}-{number}"), files):
        number += 1
    return folder


def snakemake(folder: Path, line: Callable[[str], None]) -> None:
    """Run the workflow in `folder`; `line` gets each line of what it says.

    It is a group of processes of its own, which gets the signal where this process is interrupted or ended: so none of
    them outlives it, and none gets the signal twice.

    Raises:
        Failed: it ended with an error.
        KeyboardInterrupt: this process was interrupted; Snakemake has ended.
    """
    profile = str(source.folder() / "profiles" / "default")
    packages = [str(source.PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    running = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--workflow-profile", profile, "--quiet", *QUIET],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(packages)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for text in _lines(running):
            line(text)
        status = running.wait()
    except BaseException:
        _end(running)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if status:
        raise Failed(f"the workflow ended with status {status}: what it said is above, its logs are in {folder}/logs")


def _lines(running: subprocess.Popen[str]) -> Iterator[str]:
    assert running.stdout is not None
    for text in running.stdout:
        if text.strip():
            yield text.rstrip()


def _end(running: subprocess.Popen[str]) -> None:
    """As Ctrl-C would; what does not end by it within a while is ended."""
    for number, patience_s in ((signal.SIGINT, 30.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with suppress(KeyboardInterrupt):  # whoever types it twice is in a hurry
            if _is_gone(running, number, patience_s):
                return


def _is_gone(running: subprocess.Popen[str], number: int, patience_s: float) -> bool:
    """Whether nothing is left of its group some time after signal `number`."""
    until = time.monotonic() + patience_s
    try:
        os.killpg(running.pid, number)
        while time.monotonic() < until:
            running.poll()
            os.killpg(running.pid, 0)
            time.sleep(0.1)
    except ProcessLookupError:
        return True
    return False
