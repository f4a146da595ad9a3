"""No secret that the process knows, or that looks like one, is written down."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from claimbench import __main__ as command
from claimbench.checkpoints.shard import shard
from claimbench.commands.stages import machine as machine_stage
from claimbench.errors import ConfigError
from claimbench.measuring.measure import measure
from claimbench.planning.result_key import key_of
from claimbench.schema import result
from claimbench.schema.cell import Cell, Checkpoint, Protocol, Workload
from claimbench.system.redaction import Redacting, redact, redacted, secrets_of

PLANTED = {
    "HF_TOKEN": "an-odd-token",
    "MY_API_KEY": "k3y-of-a-server",
    "CLAIMBENCH_TGI_URL": "http://keeper:pass-w0rd@127.0.0.1:9/",
    "PIP_INDEX_URL": "https://s0le-token@index.invalid/simple",
    "PRIVATE_PEM": "-----BEGIN-----\nline-0ne-of-it\nline-tw0-of-it",
}
SECRETS = ("an-odd-token", "k3y-of-a-server", "pass-w0rd", "s0le-token", "line-0ne-of-it", "line-tw0-of-it")
INNOCENT = {
    **{"TOKENIZERS_PARALLELISM": "false", "SSH_AUTH_SOCK": "/tmp/agent.sock", "USE_AUTH_TOKEN": "true"},
    **{"MAX_TOKENS": "2048", "AUTH": "abc", "OMP_NUM_THREADS": "2222", "PLAIN_URL": "http://host:80/path"},
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


def test_what_variables_hold_is_known_and_settings_are_no_secrets() -> None:
    found = secrets_of({**PLANTED, **INNOCENT})
    assert set(SECRETS) <= set(found)
    assert set(found) - set(SECRETS) == {PLANTED["PRIVATE_PEM"], "-----BEGIN-----"}
    assert list(found) == sorted(found, key=len, reverse=True)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("form", ["{}", "a {} b", "http://u:{}@host", "'{}'", "x{}y", "Bearer {}"])
def test_a_known_secret_is_found_wherever_it_stands(planted: None, secret: str, form: str) -> None:
    assert secret not in redact(form.format(secret))


def test_what_looks_like_a_secret_is_one() -> None:
    text = "hf_abcdefgh https://user:password@host/simple, Authorization: Bearer abc.def-ghi_jkl, ftp://lone@host"
    said = redact(text, ())
    assert said == "<secret> https://<secret>@host/simple, Authorization: Bearer <secret>, ftp://<secret>@host"
    innocent = "half_done, the bearer of news, http://host:80/a@b, 3 tokens"
    assert redact(innocent, ()) == innocent


def test_every_text_of_a_value_is_looked_at_and_numbers_are_left() -> None:
    value = {"a": ["k3y", {"k3y": "xk3yx"}], "b": 3, "c": None, "d": ("k3y",)}
    assert redacted(value, ("k3y",)) == {
        **{"a": ["<secret>", {"<secret>": "x<secret>x"}], "b": 3},
        **{"c": None, "d": ("<secret>",)},
    }


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    shard(cell("null_model").checkpoint, tmp_path / "fetched", tmp_path / "made")
    return tmp_path / "made"


def cell(backend: str, **options: Any) -> Cell:
    from claimbench import backends

    return Cell(
        checkpoint=Checkpoint(name="tiny", source="random://tiny-llama?seed=0", architecture="tiny-llama"),
        backend=backend,
        options=backends.find(backend).Options.model_validate(options).model_dump(mode="json"),
        workload=Workload(prompt="Hello", new_tokens=4),
        device="cpu",
        protocol=Protocol(samples=1, warmup_max=1, timeout_s=60),
    )


def test_a_password_in_a_server_s_address_is_refused_and_never_written(
    planted: None, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAIMBENCH_LLAMA_SERVER_URL", PLANTED["CLAIMBENCH_TGI_URL"])
    asked = cell("llama_server")
    record = measure(asked, 0, key_of(asked, "m"), tmp_path / "0.json", checkpoint=tiny)
    written = (tmp_path / "0.json").read_text(encoding="utf-8")
    assert not [secret for secret in SECRETS if secret in written]
    assert record.outcome == "unavailable"
    assert "CLAIMBENCH_SERVER_TOKEN" in str(record.reason)


ECHOES = """
from claimbench.backends import null_model
import os, sys

class Telling(null_model.NullSession):
    def prove(self):
        return {"server": {"said": "your key is " + os.environ["MY_API_KEY"]}}

null_model.NullSession = Telling
if os.environ.get("FAILS"):
    raise RuntimeError("refused: Bearer " + os.environ["MY_API_KEY"])
"""


@pytest.mark.parametrize("fails", ["", "1"])
def test_what_a_server_echoes_reaches_neither_result_nor_its_last_lines(
    fails: str, planted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(ECHOES, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path('src').absolute()}")
    monkeypatch.setenv("FAILS", fails)
    asked = cell("null_model")
    measure(asked, 0, key_of(asked, "m"), tmp_path / "0.json", checkpoint=None)
    written = (tmp_path / "0.json").read_text(encoding="utf-8")
    assert not [secret for secret in SECRETS if secret in written]
    assert "<secret>" in written
    assert result.read(tmp_path / "0.json").key == key_of(asked, "m")
    assert json.loads(written)


def test_what_a_command_prints_and_what_a_handler_logs_is_redacted(
    planted: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise ConfigError("cannot reach http://keeper:pass-w0rd@host with an-odd-token")

    monkeypatch.setattr(machine_stage, "run", fail)
    assert command.main(["machine", "--output", "x"]) == ConfigError.exit_status
    said = capsys.readouterr().err
    assert said == "claimbench: cannot reach http://<secret>@host with <secret>\n"
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s of %s", ("an-odd-token", "keeper"), None)
    assert Redacting().filter(record)
    assert record.getMessage() == "<secret> of keeper"
