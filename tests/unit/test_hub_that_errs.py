"""A hub that refuses, lies or breaks off: one sentence that says what and where, and nothing half-written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.fake_hub import COMMIT, Hub
from tests.unit.projects import SOURCE, Say, fetched, flow_of, plan_of, written

from claimbench.checkpoints import fetch
from claimbench.checkpoints import hub as hub_module

WEIGHTS = "model-00001-of-00002.safetensors"
Err = Callable[[Hub], None]


def _set(name: str, value: Any) -> Err:
    return lambda hub: setattr(hub, name, value)


IN_FETCH: dict[str, tuple[Err, str]] = {
    "a cut": (_set("cut", {WEIGHTS}), f"{WEIGHTS} could not be fetched"),
    "an error": (_set("failing", {WEIGHTS}), f"{WEIGHTS} could not be fetched: Server error '500"),
    "a page of a proxy": (_set("html", {WEIGHTS}), f"{WEIGHTS}: expected content"),
    "another content": (_set("etags", {WEIGHTS: f'"{"0" * 64}"'}), f"{WEIGHTS}: expected content {'0' * 64}"),
    "a path": (
        _set("etags", {WEIGHTS: '"../../../outside"'}),
        f"{WEIGHTS}: expected an ETag that can be a file's name",
    ),
    "an absolute path": (_set("etags", {WEIGHTS: '"/tmp/outside"'}), f"{WEIGHTS}: expected an ETag"),
    "another commit": (_set("claims", "f" * 40), f"expected it at commit {COMMIT}, the hub answered for {'f' * 40}"),
    "a commit that is a path": (_set("claims", "../../../outside"), "the hub answered for ../../../outside"),
    "more than the disk has": (_set("sizes", {WEIGHTS: 10**18}), "of free space"),
}


@pytest.mark.parametrize("case", IN_FETCH)
def test_a_fetch_that_fails_is_one_sentence(case: str, online: Hub, say: Say, tmp_path: Path) -> None:
    err, words = IN_FETCH[case]
    flow = flow_of()
    before = set(tmp_path.rglob("*"))
    err(online)
    folder, said = fetched(flow, say)
    assert words in said
    assert said.count("\n") == 1
    assert not (folder / "source.json").exists()
    new = set(tmp_path.rglob("*")) - before - {fetch.lock_of(folder.resolve())}
    there = [path for path in new if path.is_file()]
    assert all(
        path.is_relative_to(tmp_path / "hf") or path.is_relative_to(folder.resolve()) for path in there if path.exists()
    )
    assert not Path("/tmp/outside").exists()


@pytest.mark.parametrize("case", IN_FETCH)
def test_a_fetch_that_failed_is_whole_when_the_hub_is_well(case: str, online: Hub, say: Say) -> None:
    flow = flow_of()
    IN_FETCH[case][0](online)
    fetched(flow, say)
    for name, well in (("cut", set()), ("failing", set()), ("html", set()), ("etags", {}), ("sizes", {})):
        setattr(online, name, well)
    online.claims = None
    folder, said = fetched(flow, say)
    assert not said
    assert (folder / WEIGHTS).read_bytes() == online.files[WEIGHTS]


REFUSED: dict[str, tuple[Err, str]] = {
    "gated": (
        _set("token", "hf_right"),
        "the hub refused it (401): it is gated, private or misspelled",
    ),
    "a config that is a page": (_set("html", {"config.json"}), "config.json: expected content"),
    "a config that is huge": (_set("sizes", {"config.json": 10**12}), "config.json: expected at most 10000000 bytes"),
    "a config that fails": (_set("failing", {"config.json"}), "config.json could not be fetched: Server error '500"),
    "another commit": (_set("claims", "f" * 40), f"config.json: expected it at commit {COMMIT}"),
}


@pytest.mark.parametrize("stage", ["plan", "forecast"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_the_hub_refuses_ends_the_plan(case: str, stage: str, online: Hub, say: Say) -> None:
    err, words = REFUSED[case]
    err(online)
    written(SOURCE)
    if stage == "forecast":
        status, _, said = say("forecast")
    else:
        studies, params = str(Path("studies").resolve()), json.dumps(written(SOURCE))
        status, _, said = say(
            "plan", "--params", params, "--studies", studies, "--digest", "x", "--output", "plan.json"
        )
    assert status == 3
    assert words in said
    assert said.count("\n") == 1
    assert not Path("plan.json").exists()


def test_a_token_opens_a_gated_repository_and_is_never_said(online: Hub, say: Say, monkeypatch: Any) -> None:
    online.token = "hf_right"  # noqa: S105 - of this hub alone
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    written(SOURCE)
    status, out, said = say("forecast")
    assert status == 3
    assert "hf_wrong" not in out + said
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert not fetched(flow_of(), say)[1]


SILENT: dict[str, Err] = {
    "fails": _set("failing", {"api"}),
    "is a page of a proxy": _set("html", {"api"}),
    "hangs": _set("hang_s", 60),
}


@pytest.mark.parametrize("case", SILENT)
def test_a_plan_goes_on_where_the_hub(case: str, online: Hub, monkeypatch: Any) -> None:
    monkeypatch.setattr(hub_module, "TIMEOUT_S", 0.5)
    SILENT[case](online)
    begun = time.monotonic()
    (planned,) = plan_of().cells.values()
    assert planned.cell.checkpoint.content is None
    assert time.monotonic() - begun < 30, "half as long as it hangs"
    assert not list(Path(".claimbench/cards").glob("*.tmp"))


def test_a_hub_that_hangs_is_waited_for_once(online: Hub, monkeypatch: Any) -> None:
    monkeypatch.setattr(hub_module, "TIMEOUT_S", 0.5)
    online.hang_s = 1.5
    plan_of()
    online.requests.clear()
    plan_of(f"{SOURCE}@other")
    assert online.requests == []
