"""DVC remotes for real: S3's protocol against moto's server, ssh against an sshd of our own.

`CLAIMBENCH_DVC` names the `dvc` of an environment that has the extras `s3` and `ssh` and `moto[server]`, where this one
does not; `CLAIMBENCH_SSHD` an sshd that is not on the path.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.pipeline, pytest.mark.remotes]

DVC = os.environ.get("CLAIMBENCH_DVC") or shutil.which("dvc") or "dvc"
MOTO = Path(DVC).with_name("moto_server")
SSHD = os.environ.get("CLAIMBENCH_SSHD") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")

PUT = """
import sys, boto3
address, key = sys.argv[1:]
access = {"aws_access_key_id": "tests", "aws_secret_access_key": "tests", "region_name": "us-east-1"}
client = boto3.client("s3", endpoint_url=address, **access)
client.put_object(Bucket="bucket", Key=key, Body=b"spoiled") if key else client.create_bucket(Bucket="bucket")
"""


def has(module: str) -> bool:
    python = Path(DVC).with_name("python")
    return (
        python.exists()
        and not subprocess.run([python, "-c", f"import {module}"], check=False, capture_output=True).returncode
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the server does not answer")


class Remote:
    """A server, how DVC is told of it, and a way to spoil what it holds."""

    def __init__(self, url: str, settings: dict[str, str], spoil: Any) -> None:
        self.url, self.settings, self.spoil = url, settings, spoil


@pytest.fixture
def s3() -> Iterator[Remote]:
    if not has("dvc_s3") or not MOTO.exists():
        pytest.skip("needs dvc-s3 and moto's server: CLAIMBENCH_DVC names an environment that has them")
    port = free_port()
    server = subprocess.Popen([MOTO, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(port, server)
    address = f"http://127.0.0.1:{port}"

    def put(key: str) -> None:
        """Without a key the bucket alone."""
        command = [Path(DVC).with_name("python"), "-c", PUT, address, key]
        subprocess.run(command, check=True, capture_output=True)

    put("")
    settings = {"endpointurl": address, "access_key_id": "tests", "secret_access_key": "tests", "region": "us-east-1"}
    yield Remote("s3://bucket/store", settings, lambda md5: put(f"store/files/md5/{md5[:2]}/{md5[2:]}"))
    server.kill()
    server.wait()


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[Remote]:
    if not has("dvc_ssh") or SSHD is None:
        pytest.skip("needs dvc-ssh and an sshd: CLAIMBENCH_DVC and CLAIMBENCH_SSHD name them")
    folder, port = tmp_path / "sshd", free_port()
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    lines = [f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {folder / 'host'}", "StrictModes no", "UsePAM no"]
    lines += [f"AuthorizedKeysFile {folder / 'authorized'}", "PidFile none", "Subsystem sftp internal-sftp"]
    (folder / "config").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "config"], stderr=subprocess.DEVNULL)
    wait_for(port, server)
    store = tmp_path / "ssh-store"
    settings = {"keyfile": str(folder / "user"), "user": getpass.getuser(), "port": str(port)}

    def spoil(md5: str) -> None:
        path = store / "files/md5" / md5[:2] / md5[2:]
        path.chmod(0o644)
        path.write_bytes(b"spoiled")

    yield Remote(f"ssh://127.0.0.1{store}", settings, spoil)
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory, project_in):
    folder = tmp_path_factory.mktemp("remotes") / "project"
    folder.mkdir()
    project = project_in(folder)
    project.run("git", "init", "--quiet")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "A project")
    project.run("dvc", "repro")
    return project


@pytest.mark.parametrize("kind", ["s3", "ssh"])
def test_a_push_and_a_pull_elsewhere_measure_nothing_again_and_a_spoiled_object_is_refused(
    reproduced, tmp_path, request, kind
):
    remote = request.getfixturevalue(kind)
    project = reproduced.copy(tmp_path / "project")
    project.run(DVC, "remote", "add", "--quiet", "--default", "store", remote.url)
    project.run(DVC, "remote", "modify", "store", "verify", "true")
    for name, value in remote.settings.items():
        project.run(DVC, "remote", "modify", "store", name, value)
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "Its results")
    assert "pushed" in project.run(DVC, "push")

    project.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = project.at(tmp_path / "clone")
    clone.run(DVC, "pull")
    assert clone.results() == project.results() != {}
    assert clone.measured_by("all") == []
    assert (clone.folder / "reports/report.md").read_bytes() == (project.folder / "reports/report.md").read_bytes()

    lock = yaml.safe_load((project.folder / "dvc.lock").read_text(encoding="utf-8"))
    outs = {out["path"]: out["md5"] for out in lock["stages"]["report"]["outs"]}
    remote.spoil(outs["results/verdicts.json"])
    project.run("git", "clone", "--quiet", ".", str(tmp_path / "second"))
    second = project.at(tmp_path / "second")
    assert "failed to pull" in second.run(DVC, "pull", fails=True).lower()
    assert not (second.folder / "results/verdicts.json").exists()
