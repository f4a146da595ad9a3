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


def test_a_file_that_is_there_is_named_by_the_error_with_links_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable.write(tmp_path / "result.json", b"first")
    with pytest.raises(FileExistsError) as with_links:
        durable.write_new(tmp_path / "result.json", b"second")
    monkeypatch.setattr(durable.os, "link", refusing(errno.EPERM))
    with pytest.raises(FileExistsError) as without:
        durable.write_new(tmp_path / "result.json", b"second")
    assert with_links.value.errno == without.value.errno == errno.EEXIST
    assert without.value.filename == str(tmp_path / "result.json")
    assert without.value.strerror == os.strerror(errno.EEXIST)


def test_a_file_is_everyone_s_to_read_and_no_child_s_to_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags, opened = list[int](), os.open

    def opening(path: Path, how: int, mode: int = 0o777) -> int:
        flags.append(how)
        return opened(path, how, mode)

    monkeypatch.setattr(durable.os, "open", opening)
    before = os.umask(0o077)
    try:
        durable.write(tmp_path / "result.json", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "result.json").stat().st_mode & 0o777 == 0o644
    assert all(how & os.O_CLOEXEC for how in flags)
    (of_file,) = [how for how in flags if how & os.O_CREAT]
    assert of_file & os.O_EXCL, "a partial file is nobody else's"
    assert all(how & os.O_DIRECTORY for how in flags if how != of_file)


def test_folders_that_another_process_made_are_flushed_too_and_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(durable, "KEPT", set())
    flushed: list[Path] = []
    monkeypatch.setattr(durable, "_flush_folder", flushed.append)
    durable.make_folder(Path("there/new/deep"))
    assert flushed == [tmp_path, tmp_path / "there", tmp_path / "there/new"]
    assert (tmp_path / "there/new/deep").is_dir()
    durable.make_folder(Path("there/new/deep"))
    assert len(flushed) == 3, "this process knows that they are"
    durable.make_folder(tmp_path.parent)
    assert len(flushed) == 3, "what lies above is not ours"


def test_what_a_dead_writer_left_is_removed_and_so_is_what_can_be_made_again(tmp_path: Path) -> None:
    left, other = tmp_path / f".a.0123{durable.PARTIAL}", tmp_path / "other"
    left.write_bytes(b"half")
    other.write_bytes(b"whole")
    durable.remove_partial(left)
    durable.remove_partial(left)
    assert [one.name for one in tmp_path.iterdir()] == ["other"]
    os.utime(other, (0, 0))
    durable.touch(other)
    assert other.stat().st_mtime > 1e9
    durable.rename(other, tmp_path / "renamed")
    assert [one.name for one in tmp_path.iterdir()] == ["renamed"]
    durable.remove(tmp_path / "renamed")
    durable.remove(tmp_path / "renamed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", durable.NO_FLUSH)
def test_a_file_system_that_flushes_no_folders_is_borne_and_a_broken_one_is_not(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, answers = os.fsync, [number]

    def flushing(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112
            raise OSError(answers[0], os.strerror(answers[0]))
        fsync(handle)

    monkeypatch.setattr(durable.os, "fsync", flushing)
    durable.write(tmp_path / "result.json", b"content")
    assert (tmp_path / "result.json").read_bytes() == b"content"
    answers[0] = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        durable.write(tmp_path / "result.json", b"other")


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable.write(tmp_path / "result.json", b"first")
    for name in ("replace", "fchmod", "write"):
        with monkeypatch.context() as broken:
            broken.setattr(durable.os, name, refusing(errno.EIO))
            with pytest.raises(OSError, match="Input/output"):
                durable.write(tmp_path / "result.json", b"second")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"result.json": b"first"}


def test_a_folder_that_another_makes_at_the_same_moment_is_as_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir

    def beaten(path: Path) -> None:
        make(path)
        make(path)

    monkeypatch.setattr(durable.os, "mkdir", beaten)
    durable.write(tmp_path / "new" / "result.json", b"content")
    assert (tmp_path / "new" / "result.json").read_bytes() == b"content"
