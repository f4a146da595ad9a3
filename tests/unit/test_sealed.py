"""Sealed files: an edited one is refused, and each refusal says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from claimbench.errors import ResultError
from claimbench.schema import sealed
from claimbench.schema.json_file import digest

CONTENT = {"speed": 1.5}


class Record(BaseModel):
    speed: float


@pytest.fixture
def path(tmp_path: Path) -> Path:
    sealed.write(tmp_path / "record.json", "record", Record(speed=1.5))
    return tmp_path / "record.json"


def read(path: Path, kind: str = "record") -> Record:
    return sealed.read(path, kind, Record, "Delete it and run again")


def rewrite(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changed, separators=(",", ":")))


def test_a_file_opens_with_the_sha256_of_its_content(path: Path) -> None:
    seal = digest(CONTENT, length=64)
    assert len(seal) == 64
    assert json.loads(path.read_text(encoding="utf-8")) == {"seal": seal, "record": CONTENT}
    assert sealed.seal_of(CONTENT) == sealed.seal(Record(speed=1.5)) == seal
    assert sealed.seal_in(path) == sealed.seal_at(path) == seal
    assert read(path) == Record(speed=1.5)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("record", "a record was edited after it was measured: its seal does not match its content"),
        ("records", "records were edited after they were made: their seal does not match their content"),
    ],
)
def test_an_edited_file_is_refused_by_name(kind: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    sealed.write(path, kind, Record(speed=1.5))
    rewrite(path, **{kind: {"speed": 2.5}})
    with pytest.raises(ResultError) as refused:
        read(path, kind)
    assert str(refused.value) == f"{sentence}. Delete it and run again: {path}"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "3", '{"seal": "0"}', '{"record": {"speed": 1.5}}', '{"seal": "0", "record": {}}', "[" * 200_000],
)
@pytest.mark.parametrize(("kind", "what"), [("record", "a record"), ("records", "records")])
def test_another_file_is_none_of_this_version(content: str, kind: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(content.replace("record", kind), encoding="utf-8")
    with pytest.raises(
        ResultError, match=rf"^not {what} of this version of Claimbench \(.*\)\. Delete it and run again: "
    ):
        read(path, kind)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with pytest.raises(ResultError) as refused:
        read(path)
    assert str(refused.value) == f"cannot read record {path}: No such file or directory"
    with pytest.raises(ResultError) as refused:
        sealed.seal_in(path)
    assert str(refused.value) == f"cannot read {path}: No such file or directory"
    assert sealed.seal_at(path) is None


@pytest.mark.parametrize(
    "content", [b"", b"{}", b' {"seal":"' + b"0" * 64 + b'"}', b'{"seal":"' + b"0" * 63 + b'"}', b"\xff"]
)
def test_a_file_that_does_not_open_with_a_seal_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(ResultError) as refused:
        sealed.seal_in(path)
    assert str(refused.value) == f"{path}: expected a sealed file. Delete it and run again"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"seal": 3}', "[" * 200_000])
def test_a_file_without_a_seal_has_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(content, encoding="utf-8")
    assert sealed.seal_at(tmp_path / "record.json") is None


def test_a_new_file_takes_no_other_s_place(path: Path) -> None:
    sealed.write_new(path.with_name("other.json"), "record", Record(speed=3.0))
    assert read(path.with_name("other.json")) == Record(speed=3.0)
    with pytest.raises(FileExistsError):
        sealed.write_new(path, "record", Record(speed=3.0))
    assert read(path) == Record(speed=1.5)


def test_what_was_made_of_other_inputs_is_refused_with_the_stage_that_makes_it_anew(path: Path) -> None:
    made_of = {"plan": "a", "table": "b"}
    sealed.require_made_of(path, made_of, {"plan": "a"}, "judge")
    sealed.require_made_of(path, made_of, {}, "judge")
    for given in ({"plan": "a", "table": "c"}, {"plan": "a", "ceilings": "d"}):
        name = [*given][1]
        with pytest.raises(ResultError) as refused:
            sealed.require_made_of(path, made_of, given, "judge")
        assert str(refused.value) == (
            f"{path} does not follow from the {name} that it is shown with: it was made of others. "
            "Delete it and run again: the stage `judge` makes it anew"
        )


def test_what_is_wrong_with_a_file_is_said_in_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"seal": "0", "record": {"speed": "fast"}}', encoding="utf-8")
    with pytest.raises(
        ResultError, match=r"^not a record of this version of Claimbench \(1 validation error for Record\)"
    ):
        read(path)
    path.write_text('{"seal": "0"}', encoding="utf-8")
    with pytest.raises(ResultError, match=r"\('record'\)\. Delete"):
        read(path)


def test_a_seal_is_of_what_is_written_and_not_of_what_it_stands_for() -> None:
    class Placed(BaseModel):
        at: Path
        several: tuple[int, ...]

    assert sealed.seal(Placed(at=Path("a"), several=(1, 2))) == sealed.seal_of({"at": "a", "several": [1, 2]})
