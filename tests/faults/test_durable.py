"""A file that is named once, on file systems that know no second name for a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from claimbench.schema import durable


def refusing(number: int) -> object:
    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return link


@pytest.mark.parametrize("number", durable.NO_LINKS)
def test_without_links_a_new_file_is_written_and_one_that_is_there_stays(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable.os, "link", refusing(number))
    durable.write_new(tmp_path / "result.json", b"first")
    with pytest.raises(FileExistsError):
        durable.write_new(tmp_path / "result.json", b"second")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"result.json": b"first"}


def test_a_disk_that_breaks_is_not_taken_for_one_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable.os, "link", refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        durable.write_new(tmp_path / "result.json", b"first")
    assert list(tmp_path.iterdir()) == []
