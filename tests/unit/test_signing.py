"""Results that somebody signed: whose they are, and that nothing was changed, removed or added since."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.unit.handed_over import results_in

from claimbench.__main__ import main
from claimbench.exchange import folder as folders
from claimbench.exchange import signing
from claimbench.exchange.checking import Finding, State, check

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs OpenSSH's client")


def key(where: Path, name: str) -> Path:
    made = where / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(made)], check=True)
    return made


def signers(where: Path, **keys: Path) -> Path:
    lines = [f"{name}@example.org {path.with_suffix('.pub').read_text()}" for name, path in keys.items()]
    (where / "signers").write_text("".join(lines))
    return where / "signers"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return key(tmp_path, "mine")


@pytest.fixture
def signed(lab: Any, tmp_path: Path, mine: Path) -> Path:
    results_in(lab, tmp_path / "run")
    assert main(["sign", str(tmp_path / "run"), "--key", str(mine)]) == 0
    return tmp_path / "run"


def found(run: Path, signers: Path | None = None) -> Finding:
    (one,) = [finding for finding in check(folders.find(run), signers) if finding.what == "signature"]
    return one


def test_one_of_the_signers_is_named(signed: Path, mine: Path, tmp_path: Path) -> None:
    team = signers(tmp_path, other=key(tmp_path, "other"), me=mine)
    assert found(signed, team).state == State.OK
    assert found(signed, team).detail.startswith("of me@example.org, ED25519 key SHA256:")
    assert main(["check", str(signed), "--signers", str(team)]) == 0


def test_without_signers_only_the_key_is_told(signed: Path) -> None:
    one = found(signed)
    assert one.state == State.NOTE
    assert "by ED25519 key SHA256:" in one.detail


def test_a_stranger_is_refused(signed: Path, tmp_path: Path) -> None:
    one = found(signed, signers(tmp_path, other=key(tmp_path, "other")))
    assert one.state == State.BAD
    assert "signed by nobody of" in one.detail


def test_where_a_signature_is_demanded_there_must_be_one(signed: Path, mine: Path, tmp_path: Path) -> None:
    (signed / "results" / signing.SIGNATURE).unlink()
    assert found(signed, signers(tmp_path, me=mine)).state == State.BAD
    assert main(["check", str(signed), "--signers", str(signers(tmp_path, me=mine))]) == 4
    assert main(["check", str(signed)]) == 0


def edited(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize("kind", ["measure/*/*/0.json", "plan/*.json", "ceilings/*.json"])
@pytest.mark.parametrize("change", [edited, Path.unlink])
def test_a_raw_file_that_was_changed_or_removed_is_named(signed: Path, kind: str, change: Any) -> None:
    results = folders.find(signed)
    results.plan, results.decided  # noqa: B018 - read while they are whole
    path = sorted((signed / "results").glob(kind))[0]
    change(path)
    (wrong,) = signing.differing(results)
    assert str(path.relative_to(signed / "results")) in wrong


def test_a_result_that_was_added_is_named(signed: Path) -> None:
    listed = signed / "results" / signing.LIST
    first, *others = listed.read_text().splitlines(keepends=True)
    listed.write_text("".join(others))
    assert signing.differing(folders.find(signed)) == [f"{first.split()[1]} was not signed"]
    assert found(signed).state == State.BAD, "and the list is not what was signed"


def test_another_list_under_the_same_signature_is_refused(signed: Path) -> None:
    """Whoever edits a result can make a list that fits it, and no signature of it."""
    path = sorted((signed / "results").glob("measure/*/*/0.json"))[0]
    listed = signed / "results" / signing.LIST
    before = signing.sha256_of(path)
    edited(path)
    listed.write_text(listed.read_text().replace(before, signing.sha256_of(path)))
    assert signing.differing(folders.find(signed)) == []
    one = found(signed)
    assert one.state == State.BAD
    assert "is not a signature of" in one.detail


def test_a_signature_for_another_purpose_is_refused(signed: Path, mine: Path) -> None:
    listed, signature = signed / "results" / signing.LIST, signed / "results" / signing.SIGNATURE
    signature.unlink()
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", str(mine), "-n", "file", str(listed)], check=True)
    assert found(signed).state == State.BAD


@pytest.mark.parametrize("line", ["", "abc  x", f"{'0' * 64}  /etc/passwd", f"{'0' * 64}  ../../x", f"{'0' * 64} x"])
def test_a_list_that_leads_elsewhere_or_is_none_is_refused(signed: Path, mine: Path, line: str) -> None:
    listed, signature = signed / "results" / signing.LIST, signed / "results" / signing.SIGNATURE
    listed.write_text(f"{line}\n")
    signature.unlink()
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(mine), "-n", signing.NAMESPACE, str(listed)]
    subprocess.run(command, check=True)
    one = found(signed)
    assert one.state == State.BAD
    assert "expected a sha256" in one.detail


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"\xff")])
def test_a_list_that_cannot_be_read_is_said(signed: Path, mine: Path, tmp_path: Path, spoil: Any) -> None:
    spoil(signed / "results" / signing.LIST)
    for team in (None, signers(tmp_path, me=mine)):
        one = found(signed, team)
        assert one.state == State.BAD
        assert "raw.sha256 cannot be read" in one.detail


def test_results_that_lack_something_are_not_signed(signed: Path, mine: Path, capsys: Any) -> None:
    path = sorted((signed / "results").glob("measure/*/*/0.json"))[0]
    path.unlink()
    assert main(["sign", str(signed), "--key", str(mine)]) == 4
    assert f"{path.relative_to(signed / 'results')} is missing" in capsys.readouterr().err


def test_a_key_that_is_none_says_so(signed: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["sign", str(signed), "--key", str(tmp_path / "nothing")]) == 4
    assert "ssh-keygen did not sign" in capsys.readouterr().err
    assert not (signed / "results" / signing.SIGNATURE).exists()


def test_other_programs_read_both(signed: Path, mine: Path, tmp_path: Path) -> None:
    team = signers(tmp_path, me=mine)
    subprocess.run(["sha256sum", "--check", "--quiet", signing.LIST], cwd=signed / "results", check=True)
    verify = f"ssh-keygen -Y verify -f {team} -I me@example.org -n claimbench -s raw.sha256.sig < raw.sha256"
    subprocess.run(verify, shell=True, cwd=signed / "results", check=True)  # noqa: S602
