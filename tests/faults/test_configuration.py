"""Whatever stands in params.yaml or a study is read as DVC reads it, or refused at once with file, line and key."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ruamel.yaml

from claimbench.__main__ import main
from claimbench.errors import ConfigError
from claimbench.schema import lines, params, validation
from claimbench.schema.study import Study

ROOT = Path(__file__).parents[2]
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGED_LAUGHS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)

REFUSED = {
    "a control character": (b"a: 1\nb: \x07\n", "line 2: a character that no text has (U+0007): take it out"),
    "a zero": (b"a: 1\nb: x\x00y\n", "line 2: a character that no text has (U+0000): take it out"),
    "brackets": (b"a: 1\nb: " + b"[" * 10_000, "line 2: b.0: lists and mappings are nested in more than 50 levels"),
    "braces": (b"b: " + b"{a: " * 10_000, "line 1: b.a: lists and mappings are nested in more than 50 levels"),
    "dashes": (b"b:\n" + b"- " * 10_000 + b"x\n", "line 2: b.0: lists and mappings are nested in more than 50 levels"),
    "aliases": (LAUGHS.encode(), "there are more than 100000 values, aliases expanded"),
    "merged aliases": (MERGED_LAUGHS.encode(), "there are more than 100000 values, aliases expanded"),
    "an alias of itself": (b"a: &a\n  b: [*a]\n", "line 2: a.b.0: an alias stands inside of what it is an alias for"),
    "an alias of nothing": (b"a: *b\n", "line 1: found undefined alias 'b'"),
    "infinity": (b"a:\n  b: .inf\n", "line 2: a.b: expected a finite number (got .inf)"),
    "less than infinity": (b"a: -.INF\n", "line 1: a: expected a finite number (got -.INF)"),
    "no number": (b"a: [1, .nan]\n", "line 1: a.1: expected a finite number (got .nan)"),
    "beyond a float": (b"a: 1e999\n", "line 1: a: expected a finite number (got 1e999)"),
    "digits": (b"a: " + b"1" * 10_000 + b"\n", "line 1: a: expected a number of at most 40 digits"),
    "a number in words": (b"a: !!int many\n", "line 1: a: expected a number (got 'many')"),
    "a boolean in words": (b"a: !!bool maybe\n", "line 1: a: expected true or false (got 'maybe')"),
    "a key twice": (b"a:\n  b: 1\n  c: 2\n  b: 3\n", "line 4: a: the key 'b' is there twice"),
    "two merges": (b"a: &a {b: 1}\nc:\n  <<: *a\n  <<: *a\n", "line 4: c: the key '<<' is there twice"),
    "a merge of a number": (b"a:\n  <<: 3\n", "line 2: expected a mapping or list of mappings for merging"),
    "a tab": (b"a:\n\tb: 1\n", "line 2: found character '\\t' that cannot start any token: indent with spaces"),
    "a fraction as key": (b"a:\n  1.5: b\n", "line 2: a: expected a key that is text, got 1.5: write '1.5'"),
    "a number twice": (b"a: {1: b, 01: c}\n", "line 1: a: the key '01' is there twice"),
    "a number and its text": (b"a: {1: b, '1': c}\n", "line 1: a: the key '1' is there twice"),
    "a boolean as key": (b"true: b\n", "line 1: expected a key that is text, got true: write 'true'"),
    "a list as key": (b"[a]: b\n", "line 1: expected a key that is text, got a list or a mapping"),
    "nothing as key": (b"? \n: b\n", "line 1: expected a key before the colon"),
    "code": (b"a: !!python/object/apply:os.getcwd []\n", "line 1: a: '!!python/object/apply:os.getcwd' is no kind of"),
    "bytes": (b"a: !!binary aGk=\n", "line 1: a: '!!binary' is no kind of plain value: leave it out"),
    "no UTF-8": (b"a: 1\nb: \xff\n", "line 2: expected UTF-8, got byte 0xff"),
    "UTF-16": ("a: 1".encode("utf-16"), "line 1: expected UTF-8, got byte 0xff"),
    "two documents": (b"a: 1\n---\nb: 1\n", "line 2: but found another document"),
    "a large file": (b"a: 1\n" * 10_000_000, "cannot be read (larger than 1000000 bytes)"),
    "many values": (b"a: [" + b"1," * 400_000 + b"]\n", "there are more than 100000 values, aliases expanded"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_one_sentence_at_once(case: str, tmp_path: Path) -> None:
    content, words = REFUSED[case]
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    begun = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        validation.read_yaml(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert words in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 160
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("case", ["aliases", "brackets", "a large file", "many values"])
def test_a_refusal_takes_little_memory_and_ends_the_command_with_status_2(case: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(REFUSED[case][0])
    code = (
        "from claimbench.__main__ import main\n"
        "from claimbench.system import memory\n"
        "memory.reset_peak()\n"  # a child's mark begins at its parent's size
        "status = main(['forecast'])\n"
        "print(status, memory.peak_of('self') // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    status, peak_kib = done.stdout.split()
    assert (status, done.stderr.count("\n")) == ("2", 1)
    assert int(peak_kib) < 1_500_000


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_fifo_or_a_folder_in_place_of_params_is_not_waited_for(
    make: Any, tmp_path: Path, monkeypatch, capsys
) -> None:
    make(tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    assert main(["forecast"]) == 2
    assert capsys.readouterr().err == "claimbench: params.yaml: cannot be read (it is not a regular file)\n"


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {b: 1, c: 2}\nd:\n  <<: *a\n  c: 3\n",
        "a: &a {b: 1}\ne: &e {f: 2, b: 3}\nd:\n  g: 4\n  <<: [*a, *e]\n",
        "a: &a {b: 1}\nd: &d {<<: *a, b: 2}\ne: {<<: *d, c: 3}\n",
        "a: &a [1, 2]\nb: *a\n",
        "\ufeffa: 1\n",
        "a: 1\r\nb: 2\r\n",
        "a: yes\nb: no\nc: on\nd: off\ne: Yes\nf: true\ng: False\n",
        "a: 010\nb: 0o10\nc: 0x1F\nd: 1_000\ne: 1:30\ng: +7\nh: -0\n",
        "a: 1e3\nb: 1e-05\nc: 1.5e3\nd: .5\ne: 1.\nf: -1E+2\n",
        "a: {1: b, 2: c}\n",
        "a:\nb: ~\nc: null\nd: ''\n",
        "a: |\n  one\n  two\nb: >-\n  one\n  two\n",
    ],
)
def test_what_dvc_accepts_is_read_as_dvc_reads_it(text: str) -> None:
    assert validation.parse_yaml(text, "params.yaml") == ruamel.yaml.YAML(typ="safe", pure=True).load(text)


@pytest.mark.parametrize(
    "value", [1e-05, 1e22, 0.1, 3, True, None, "no", "1e3", "010", "2024-01-01", "1:30", "~", "<<"]
)
def test_what_dvc_writes_for_an_experiment_is_read_as_the_value_that_was_set(value: Any) -> None:
    """As `dvc exp run -S` does: comments and order are kept, one value is another."""
    yaml = ruamel.yaml.YAML()
    yaml.default_flow_style = False
    document = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    before = validation.read_yaml(ROOT / "params.yaml")
    document["measure"]["tolerance"] = before["measure"]["tolerance"] = value
    yaml.dump(document, written := io.StringIO())
    found = validation.parse_yaml(written.getvalue(), "params.yaml")
    assert found == before
    assert type(found["measure"]["tolerance"]) is type(value)


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted((ROOT / "studies").rglob("*.yaml"))], ids=lambda p: p.name
)
def test_the_project_s_own_files_are_read_as_dvc_reads_them(path: Path) -> None:
    expected = ruamel.yaml.YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    assert json.dumps(validation.read_yaml(path)) == json.dumps(expected)


@pytest.mark.parametrize("device", ["mps", "rocm", "MPS", "hip", "xpu", "rocm:0"])
def test_another_maker_s_device_is_told_what_is_supported(device: str) -> None:
    value = {"studies": ["s"], "checkpoints": {"mine": "random://tiny-llama"}, "device": device}
    with pytest.raises(ConfigError) as caught:
        params.load_params(value)
    assert str(caught.value) == (
        "params.yaml: device: expected auto, cpu or cuda: NVIDIA GPUs (cuda) and CPUs are supported, and no others yet "
        f"(got {device!r})"
    )


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_a_number_from_a_command_line_is_finite_too(number: float) -> None:
    value: dict[str, Any] = {"studies": ["s"], "checkpoints": {"mine": "random://tiny-llama"}}
    with pytest.raises(
        ConfigError, match=r"^params.yaml: measure.timeout_s: expected a finite number \(got -?(inf|nan)\)$"
    ):
        params.load_params(value | {"measure": {"timeout_s": number}})
    with pytest.raises(ConfigError, match=r"^s.yaml: claims.0.checks.0.at_most: expected a finite number"):
        validation.validate(Study, {"claims": [{"checks": [{"at_most": number}]}]}, "s.yaml")


LOCATED = """\
title: A study
shared: &shared {backend: nope, options: {}}
experiments:
  pace.one:
    question: Why?
    cells:
      fast:
        <<: *shared
        optimizations:
          - plain
          - prompt_lookup: {tokens: 0}
      "a: b": {batch: 1}
claims:
  - statement: It is so
    id: T1
    checks:
      - kind: ratio
        metric: nonsense
  - {id: T2, checks: []}
"""


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("title", 1),
        ("experiments.pace.one.cells.fast.missing", 7),
        ("experiments.pace.one.cells.fast.options.step_ms", 2),
        ("experiments.pace.one.cells.fast.optimizations.1", 11),
        ("experiments.pace.one.cells.fast.optimizations.plain", 10),
        ("experiments.pace.one.cells.fast.optimizations.prompt_lookup.tokens", 11),
        ("claims.T1.checks.0.metric", 18),
        ("claims.0.checks.0.metric", 18),
        ("claims.T2", 19),
        ("claims.T3.checks", 13),
        ("nothing.of.it", None),
        ("(top)", None),
    ],
)
def test_the_line_of_a_key_is_found(
    key: str, line: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(LOCATED, encoding="utf-8")
    where = f", line {line}" if line else ""
    assert lines.located(f"study.yaml: {key}: expected: more") == f"study.yaml{where}: {key}: expected: more"


def test_a_message_without_a_file_or_key_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text("a: [", encoding="utf-8")
    Path("bytes.yaml").write_bytes(b"a: \xff")
    Path("cli.yaml").write_text("device: cpu", encoding="utf-8")
    located = "cli.yaml, line 1: device: not here (got 'cpu')"
    assert lines.located("cli.yaml: device: not here (got 'cpu')") == located
    others = ["gone.yaml: a: no", "broken.yaml: a: no", "bytes.yaml: a: no", "a: no", "x.yaml, line 3: a: no", ""]
    for message in [*others, "cli.yaml: device: a command line says it (got 'mps')"]:
        assert lines.located(message) == message


def test_every_mistake_of_a_file_has_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("studies: []\n\nmeasure:\n  blokcs: 3\n  samples: many\n", encoding="utf-8")
    assert main(["forecast"]) == 2
    said = capsys.readouterr().err.removeprefix("claimbench: ").splitlines()
    assert "params.yaml, line 5: measure.samples: expected a whole number (got 'many')" in said
    assert any(line.startswith("params.yaml: checkpoints: this key is missing") for line in said), "it has no line"
    assert "params.yaml, line 4: measure.blokcs: unknown key 'blokcs'. Did you mean 'blocks'?" in said
