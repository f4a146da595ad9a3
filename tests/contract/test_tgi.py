"""What is sent to text-generation-inference and read from it follows the description of its last release's API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.contract.conftest import make_cell

from claimbench.backends import tgi as backend
from claimbench.errors import Refusal, Unavailable
from claimbench.schema.cell import Cell
from claimbench.serving import tgi
from claimbench.serving.session import ServerSession

pytestmark = pytest.mark.model


def cell_of(dtype: str = "bfloat16", **options: Any) -> Cell:
    told = backend.Options.model_validate({"healthy_s": 30, "stall_s": 20, **options}).model_dump(mode="json")
    cell = make_cell(prompt="hello", new_tokens=4)
    return cell.model_copy(update={"backend": "tgi", "options": told, "dtype": dtype})


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def rows(session: ServerSession) -> list[int]:
    return [block[0][0] for block in session.generate()]


@pytest.mark.parametrize("details", [True, False])
def test_tokens_come_as_the_server_tells_them(launcher, tiny, details):
    session = backend.load(cell_of(details=details), tiny, None)
    try:
        assert rows(session) == [5, 6, 7, 8]
        sent = json.loads(launcher.read_text(encoding="utf-8"))
        assert sent["path"] == "/generate_stream"
        assert sent["body"] == {
            "inputs": "hello",
            "parameters": {"max_new_tokens": 4, "do_sample": False, "details": details},
        }
        proof = session.prove()
        assert proof["server"]["version"] == "3.3.7"
        assert proof["server"]["model"] == str(tiny.resolve())
        assert proof["server"]["custom_kernels_switch"] == "not read by its code for llama"
        assert proof["metrics"]["tgi_request_count"] == 1
    finally:
        session.close()


def test_what_was_asked_for_is_what_the_launcher_is_told(launcher, tiny):
    asked = {"disable_custom_kernels": True, "cuda_graphs": False, "quantize": "bitsandbytes-nf4"}
    session = backend.load(cell_of(**asked), tiny, None)
    try:
        rows(session)
        sent = json.loads(launcher.read_text(encoding="utf-8"))
        flags = sent["flags"]
        assert flags["--num-shard"] == "1"
        assert flags["--cuda-graphs"] == "0"
        assert flags["--quantize"] == "bitsandbytes-nf4"
        assert "--disable-custom-kernels" in flags
        limits = [flags[f"--max-{name}-tokens"] for name in ("input", "batch-prefill", "total", "batch-total")]
        assert limits == ["1000", "2100", "2100", "4000"], "document A's"
        assert sent["prefix_caching"] == "0"
        assert session.prove()["server"]["custom_kernels"] == "off"
    finally:
        session.close()


RELEASES = {
    ("3.3.7", None): ({"--max-input-tokens": "1000"}, "on"),
    ("1.4.3", None): ({"--max-input-length": "1000"}, "off"),
    ("1.3.3", None): ({"--max-input-length": "1000"}, "off: this release has none"),
    ("3.3.7", True): ({"--max-input-tokens": "1000"}, "on"),
    ("3.3.7", False): ({"--max-input-tokens": "1000", "--cuda-graphs": "0"}, "off"),
    ("1.4.3", True): ({"--max-input-length": "1000", "--enable-cuda-graphs": ""}, "on"),
    ("1.4.3", False): ({"--max-input-length": "1000"}, "off"),
    ("1.3.3", False): ({"--max-input-length": "1000"}, "off: this release has none"),
}


@pytest.mark.parametrize(("release", "graphs"), RELEASES)
def test_older_releases_are_told_by_the_flags_that_their_help_names(launcher, tiny, monkeypatch, release, graphs):
    monkeypatch.setenv("FAKE_TGI_RELEASE", release)
    expected, said = RELEASES[release, graphs]
    session = backend.load(cell_of(cuda_graphs=graphs), tiny, None)
    try:
        assert rows(session) == [5, 6, 7, 8]
        flags = json.loads(launcher.read_text(encoding="utf-8"))["flags"]
        assert {name: value for name, value in flags.items() if "input" in name or "graphs" in name} == expected
        assert ("--prometheus-port" in flags) == (release == "3.3.7")
        server = session.prove()["server"]
        assert (server["version"], server["cuda_graphs"]) == (release, said)
        assert server["info"]["max_input_tokens"] == 1000
        other = {"max_input_tokens": 999, "url": session.service.address}
        backend.load(cell_of(**other), tiny, None).close()  # somebody else's limits are not held to ours
    finally:
        session.close()


def test_graphs_that_a_release_lacks_are_unavailable_and_not_left_out(launcher, tiny, monkeypatch):
    monkeypatch.setenv("FAKE_TGI_RELEASE", "1.3.3")
    with pytest.raises(Unavailable, match="has no CUDA graphs"):
        backend.load(cell_of(cuda_graphs=True), tiny, None)


def test_a_launcher_that_does_not_answer_is_left_after_its_time(nothing_installed, tiny, monkeypatch):
    docker = nothing_installed / "docker"
    docker.write_text(f"#!/bin/sh\necho $1 >> {nothing_installed}/said\n[ $1 = rm ] || exec /bin/sleep 60\n")
    docker.chmod(0o755)
    monkeypatch.setenv(tgi.IMAGE_VARIABLE, IMAGE)
    with pytest.raises(Refusal, match="--help` did not answer within 1 s"):
        backend.load(cell_of(healthy_s=1), tiny, None)
    assert (nothing_installed / "said").read_text(encoding="utf-8").split() == ["run", "rm"]


@pytest.mark.parametrize(
    ("fails", "outcome", "reason"),
    [
        ("validation", "error", "answered 422: asked for validation"),
        ("generation", "error", "answered 424: asked for generation"),
        ("overloaded", "error", "answered 429: asked for overloaded"),
        ("incomplete_generation", "error", "answered 500: asked for incomplete_generation"),
        ("event", "error", "broke off with generation: asked for generation"),
        ("eos", "error", "expected 4 new tokens, the server counts 3"),
        ("model", "wrong", "the server has another/model"),
    ],
)
def test_each_error_of_the_api_is_a_refusal(launcher, tiny, monkeypatch, fails, outcome, reason):
    monkeypatch.setenv("FAKE_TGI_FAILS", fails)
    with pytest.raises(Refusal) as caught:
        generate_once(tiny)
    assert caught.value.outcome == outcome
    assert reason in str(caught.value)


def generate_once(checkpoint: Path) -> None:
    session = backend.load(cell_of(), checkpoint, None)
    try:
        rows(session)
    finally:
        session.close()


def test_a_server_at_an_address_must_serve_the_model_asked_for(launcher, tiny):
    first = backend.load(cell_of(), tiny, None)
    try:
        second = backend.load(cell_of(url=first.service.address), tiny, None)
        assert rows(second) == [5, 6, 7, 8]
        assert "unknown" in second.prove()["server"]["prefix_cache"]
        second.close()
    finally:
        first.close()


def test_without_a_launcher_a_container_engine_or_an_address_it_is_unavailable(nothing_installed, monkeypatch):
    reason = backend.unavailable(cell_of()) or ""
    assert reason.startswith("not installed: text-generation-launcher, docker, podman, apptainer")
    monkeypatch.setenv(backend.ADDRESS_VARIABLE, "http://127.0.0.1:1")
    assert backend.unavailable(cell_of()) is None


def test_more_shards_than_gpus_and_float32_are_unavailable_with_the_reason(launcher):
    assert "1000 shards need as many GPUs" in (backend.unavailable(cell_of(num_shard=1000)) or "")
    assert "not in float32" in (backend.unavailable(cell_of(dtype="float32")) or "")


IMAGE = "ghcr.io/huggingface/text-generation-inference:3.3.7@sha256:" + "0" * 64


@pytest.mark.parametrize("engine", ["docker", "podman", "apptainer"])
def test_a_container_is_pinned_listens_on_the_loopback_address_and_reads_the_checkpoint_alone(engine, tiny):
    asked = tgi.Asked(("--num-shard", "2"), {"PREFIX_CACHING": "0"})
    launch = tgi.launch(tgi.Launcher(engine), IMAGE, tiny, asked, 12345, cuda=True, healthy_s=30)
    assert launch.healthy_s == 30
    words = " ".join(launch.command)
    assert IMAGE in words
    assert "127.0.0.1" in words
    assert f"{tiny.resolve()}:/model:ro" in words
    assert "PREFIX_CACHING=0" in words
    assert "--model-id /model" in words
    assert words.endswith("--num-shard 2")
    if engine != "apptainer":
        name = launch.command[launch.command.index("--name") + 1]
        assert launch.after == (engine, "rm", "--force", name)


@pytest.mark.parametrize(("image", "reason"), [(None, "no image is named"), ("tgi:latest", "is not pinned")])
def test_an_image_that_is_not_pinned_is_refused(image, reason, nothing_installed, monkeypatch):
    docker = nothing_installed / "docker"
    docker.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    docker.chmod(0o755)
    monkeypatch.delenv(tgi.IMAGE_VARIABLE, raising=False)
    assert reason in (backend.unavailable(cell_of(image=image)) or "")
    monkeypatch.setenv(tgi.IMAGE_VARIABLE, IMAGE)
    assert (backend.unavailable(cell_of(image=image)) is None) == (image is None)


def test_a_container_engine_that_does_not_work_is_told_in_its_own_words(nothing_installed, tiny, monkeypatch):
    docker = nothing_installed / "docker"
    docker.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 125\n", encoding="utf-8")
    docker.chmod(0o755)
    monkeypatch.setenv(tgi.IMAGE_VARIABLE, IMAGE)
    with pytest.raises(Refusal, match="ended with status 125: Cannot connect to the Docker daemon"):
        backend.load(cell_of(), tiny, None)
