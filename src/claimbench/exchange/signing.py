"""Results that somebody vouches for: the sha256 of each raw file, in a list that OpenSSH signs.

Other programs read both: `sha256sum --check raw.sha256`, `ssh-keygen -Y verify`. What is made of raw files, tables and
verdicts, is not signed: whoever checks makes it again.
"""

from __future__ import annotations

import re
import subprocess
from functools import partial
from pathlib import Path

from claimbench.checkpoints.manifest import sha256_of
from claimbench.errors import ResultError
from claimbench.exchange.folder import ResultsFolder
from claimbench.planning.paths import raw_files
from claimbench.schema import durable, plain_file

LIST, SIGNATURE = "raw.sha256", "raw.sha256.sig"
NAMESPACE = "claimbench"
LIST_BYTES = 50_000_000
PROGRAM = "ssh-keygen"
PROGRAM_S = 120
"""Someone may have to type a passphrase or touch a key."""


def sign(folder: ResultsFolder, key: Path) -> int:
    """Write the list of raw files and its signature by `key` (a private one, or a public one that an agent has).

    Returns how many files were signed.

    Raises:
        ResultError: a raw file is missing, or OpenSSH refused.
    """
    names = _raw_names(folder)
    missing = [name for name in names if not (folder.path / name).is_file()]
    if missing:
        raise ResultError(f"{missing[0]} is missing: only whole results are signed")
    text = "".join(f"{sha256_of(folder.path / name)}  {name}\n" for name in names)
    durable.write(folder.path / LIST, text.encode())
    (folder.path / SIGNATURE).unlink(missing_ok=True)  # ssh-keygen asks before it writes over one
    done = _ssh_keygen("-Y", "sign", "-q", "-f", str(key), "-n", NAMESPACE, str(folder.path / LIST), is_asked=True)
    if done.returncode:
        raise ResultError(f"{PROGRAM} did not sign: {_last_line(done)}")
    return len(names)


def is_signed(folder: ResultsFolder) -> bool:
    return (folder.path / SIGNATURE).exists()


def differing(folder: ResultsFolder) -> list[str]:
    """Raw files that are not what was signed, each with what is wrong with it."""
    listed = _listed(folder)
    found = []
    for name in sorted({*listed, *_raw_names(folder)}):
        path = folder.path / name
        if name not in listed:
            found.append(f"{name} was not signed")
        elif not path.is_file():
            found.append(f"{name} was signed and is missing")
        elif sha256_of(path) != listed[name]:
            found.append(f"{name} is not what was signed")
    return found


def key_of(folder: ResultsFolder) -> str:
    """The key that signed the list, by its fingerprint: `ED25519 key SHA256:...`; nothing says whose it is.

    Raises:
        ResultError: the signature is not of this list.
    """
    done = _ssh_keygen("-Y", "check-novalidate", "-n", NAMESPACE, "-s", _signature(folder), list_of=folder)
    found = re.search(r"[A-Z0-9-]+ key SHA256:[A-Za-z0-9+/]+", done.stdout + done.stderr)
    if done.returncode or not found:
        raise ResultError(f"{SIGNATURE} is not a signature of {LIST}: {_last_line(done)}")
    return found[0]


def signer_of(folder: ResultsFolder, signers: Path) -> str:
    """Who of `signers`, a file in the format of ALLOWED SIGNERS of ssh-keygen(1), signed the list.

    Raises:
        ResultError: nobody of them did.
    """
    key = key_of(folder)
    found = _ssh_keygen("-Y", "find-principals", "-f", str(signers), "-s", _signature(folder))
    for name in found.stdout.splitlines() if not found.returncode else []:
        asked = ("-Y", "verify", "-f", str(signers), "-I", name, "-n", NAMESPACE, "-s", _signature(folder))
        if _ssh_keygen(*asked, list_of=folder).returncode == 0:
            return f"{name}, {key}"
    raise ResultError(f"signed by nobody of {signers}: by {key}")


def _raw_names(folder: ResultsFolder) -> list[str]:
    rounds = folder.decided.seals if folder.decided else ()
    return sorted(str(Path(name).relative_to("results")) for name in raw_files(folder.plan, rounds))


def _listed(folder: ResultsFolder) -> dict[str, str]:
    """Name -> sha256, as signed."""
    found = {}
    for line in _list_in(folder).splitlines():
        digest, _, name = line.partition("  ")
        if (
            not re.fullmatch(r"[0-9a-f]{64}", digest)
            or not name
            or Path(name).is_absolute()
            or ".." in Path(name).parts
        ):
            raise ResultError(f"{LIST}: expected a sha256, two spaces and a file of this folder, found {line[:100]!r}")
        found[name] = digest
    return found


def _list_in(folder: ResultsFolder) -> str:
    try:
        return plain_file.read_text(folder.path / LIST, LIST_BYTES)
    except (OSError, ValueError) as error:
        raise ResultError(f"{LIST} cannot be read: {error}") from None


def _signature(folder: ResultsFolder) -> str:
    return str(folder.path / SIGNATURE)


def _ssh_keygen(
    *arguments: str, list_of: ResultsFolder | None = None, is_asked: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run it with the list on its stdin, or, where somebody may be asked something, with our own."""
    content = _list_in(list_of) if list_of else None
    stdin = None if is_asked else subprocess.DEVNULL
    run = partial(subprocess.run, stdin=stdin) if content is None else partial(subprocess.run, input=content)
    try:
        return run(
            [PROGRAM, *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PROGRAM_S,
            check=False,
        )
    except FileNotFoundError:
        raise ResultError(f"{PROGRAM} is not here: install OpenSSH's client") from None
    except subprocess.TimeoutExpired:
        raise ResultError(f"{PROGRAM} did not end within {PROGRAM_S} s") from None


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1][:300] if lines else f"exit status {done.returncode}"
