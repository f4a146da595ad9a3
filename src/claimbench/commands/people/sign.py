"""Vouch for a folder of results: raw files listed by sha256, and the list signed by an OpenSSH key."""

from __future__ import annotations

import argparse
from pathlib import Path

ABOUT = "sign a folder of results with an SSH key, so that others can check whose they are"
EXAMPLES = (
    "claimbench sign results --key ~/.ssh/id_ed25519",
    "claimbench sign runs/smollm2 --key ~/.ssh/id_ed25519.pub",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a project, its results, or a run, e.g. runs/smollm2")
    parser.add_argument(
        "--key", type=Path, required=True, help="a private key, or a public one whose private one an agent has"
    )


def run(arguments: argparse.Namespace) -> int:
    from claimbench.commands import output
    from claimbench.exchange import folder, signing
    from claimbench.formatting import count

    results = folder.find(arguments.folder)
    signed = signing.sign(results, arguments.key.expanduser())
    print(f"{count(signed, 'raw file')} signed: {results.path / signing.SIGNATURE}")
    output.note("whoever has your public key can now run: claimbench check FOLDER --signers FILE")
    return 0
