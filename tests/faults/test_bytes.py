"""Bytes, types and files that nobody expects end in one recorded outcome or one sentence, and never in waiting."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.faults.test_blocks import cell_with

from claimbench.checkpoints import cards, fetch, manifest
from claimbench.checkpoints.local_files import wanted_files
from claimbench.errors import CorruptCheckpoint, ResultError, SourceError
from claimbench.measuring.measure import measure
from claimbench.planning.result_key import key_of
from claimbench.schema import result
from claimbench.serving import client
from claimbench.workflow import jobs

NOISE = {
    "no UTF-8 on stderr": "head -c 300000 /dev/zero | tr '\\0' '\\377' >&2",
    "zeros on stderr": "head -c 300000 /dev/zero >&2",
    "words on stdout": "echo hello; echo '{\"event\"'; echo 3; echo null; echo '[]'; echo '{}'",
    "no UTF-8 on stdout": "printf '\\377\\n'",
    "much on stdout": "head -c 300000 /dev/zero | tr '\\0' 'x'; echo",
}


def noisy(folder: Path, noise: str) -> str:
    """An interpreter that makes a noise before it runs what it is told."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\n{noise}\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("noise", NOISE)
def test_what_a_worker_prints_is_read_to_its_end_whatever_it_is(noise: str, tmp_path: Path) -> None:
    cell, begun = cell_with({"timeout_s": 30}), time.monotonic()
    key = key_of(cell, "test-machine")
    record = measure(cell, 0, key, tmp_path / "0.json", checkpoint=None, python=noisy(tmp_path, NOISE[noise]))
    assert record.outcome == "ok", record.reason
    assert result.read(tmp_path / "0.json") == record
    assert time.monotonic() - begun < 25


def test_a_failed_worker_s_bytes_are_kept_as_text(tmp_path: Path) -> None:
    python = noisy(tmp_path, "printf 'caf\\351 \\377\\n' >&2; exit 3")
    cell = cell_with()
    record = measure(cell, 0, key_of(cell, "m"), tmp_path / "0.json", checkpoint=None, python=python)
    assert record.outcome == "error"
    assert record.detail == "caf\ufffd \ufffd\n"


def test_half_a_character_in_a_reason_is_written_as_a_question_mark(tmp_path: Path) -> None:
    said = json.dumps({"event": "refused", "outcome": "error", "reason": "the server said \ud800"})
    cell = cell_with()
    python = noisy(tmp_path, f"echo {shlex.quote(said)}; exit 0")
    record = measure(cell, 0, key_of(cell, "m"), tmp_path / "0.json", checkpoint=None, python=python)
    assert (record.outcome, record.reason) == ("error", "the server said ?")
    assert result.read(tmp_path / "0.json") == record


@pytest.mark.parametrize(
    "event",
    [
        {"choices": {}},
        {"choices": [3]},
        {"choices": [{"text": 3}]},
        {"choices": [{"text": "a", "token_ids": ["1"]}]},
        {"choices": [{"text": "a", "token_ids": [-1]}]},
        {"choices": [{"text": "a", "token_ids": [10**400]}]},
        {"choices": [{"text": "a", "token_ids": [True]}]},
        {"choices": [{"text": "a", "token_ids": [1.0]}]},
        {"usage": {"completion_tokens": -1}},
        {"usage": {"completion_tokens": 1e300}},
        {"usage": {"completion_tokens": float("nan")}},
        {"usage": []},
    ],
)
def test_a_server_s_wrong_types_are_a_garbled_answer(event: dict[str, Any]) -> None:
    with pytest.raises(client.RequestFailed, match="an event is not what the API says"):
        client.read_completion(event, "m", "token_ids")


@pytest.mark.parametrize("data", ["[" * 200_000, '{"a":' * 200_000, "3", "null", "\x00", ""])
def test_a_server_s_nonsense_is_a_garbled_answer(data: str) -> None:
    with pytest.raises(client.RequestFailed, match="an event is not a JSON object"):
        client._parsed(data)
    assert len(client.message_of(data)) <= client.SHOWN


def test_a_fifo_in_place_of_a_checkpoint_s_file_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("config.json", "manifest.json", "source.json", "model.safetensors", "tokenizer.json"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(SourceError, match=r"not JSON \(it is not a regular file\)"):
        cards.read_config(tmp_path / "config.json")
    with pytest.raises(CorruptCheckpoint, match="it is not a regular file"):
        manifest.read(tmp_path)
    with pytest.raises(SourceError, match="it is not a regular file"):
        fetch.read(tmp_path)
    with pytest.raises(SourceError, match=r"expected model\.safetensors"):
        wanted_files(tmp_path)
    os.mkfifo(tmp_path / "0.json")
    with pytest.raises(ResultError, match="it is not a regular file"):
        result.read(tmp_path / "0.json")


@pytest.mark.parametrize("prompt", ["word " * 28_000, "'" * 60_000, "\u2028\x85é" * 20_000, "short"])
def test_a_prompt_of_any_length_reaches_the_worker_through_a_shell(prompt: str, tmp_path: Path, monkeypatch) -> None:
    """A shell's whole command is one argument, of 128 KiB at most."""
    monkeypatch.chdir(tmp_path)
    cell = cell_with()
    cell = cell.model_copy(update={"workload": cell.workload.model_copy(update={"prompt": prompt})})
    argument = jobs.as_argument(jobs.canonical_json(cell.model_dump(mode="json")))
    code = (
        "import sys; from claimbench.commands.parser import make; from claimbench.schema.cell import Cell\n"
        "print(Cell.model_validate_json(make(sys.argv[1:]).parse_args(sys.argv[1:]).cell).id)"
    )
    flags = ["measure", "--cell", argument, "--key", "{}", "--block", "0", "--plan", "p", "--output", "o"]
    command = ["/bin/bash", "-c", shlex.join([sys.executable, "-c", code, *flags])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == cell.id
    assert argument.startswith("@") == (prompt != "short")
