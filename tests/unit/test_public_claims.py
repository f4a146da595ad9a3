"""Claims that others published: each names source and setting, can run on a CPU alone, and has a row on their page."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.unit.test_studies import PUBLIC, ROOT, planned, raw_params, studies

from claimbench.errors import ConfigError
from claimbench.planning import plan
from claimbench.schema import params
from claimbench.schema.study import Study
from claimbench.workflow import jobs

PAGE = ROOT / "docs/public-claims.md"
VERSION = re.compile(r"commit [0-9a-f]{7}|build b\d+|arXiv \d{4}\.\d{5}|PyTorch \d\.\d|\d+ [A-Z][a-z]+ 20\d\d")
SECONDS_OF_PATIENCE = 5 * 60


def study_of(name: str) -> Study:
    return studies(name)[name]


@cache
def rows() -> dict[str, list[str]]:
    """Claim -> the cells of its row on the page."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return {cells[0]: cells for cells in lines if re.fullmatch(r"U\d+", cells[0])}


def test_there_are_ten_of_one_claim_each() -> None:
    ids = [claim.id for name in PUBLIC for claim in study_of(name).claims]
    assert sorted(ids, key=lambda id: int(id[1:])) == [f"U{number}" for number in range(1, 11)]
    assert all(len(study_of(name).claims) == 1 for name in PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_each_names_its_source_by_address_and_date_or_version_and_what_was_measured(name: str) -> None:
    document = study_of(name).document
    assert document.url
    assert urlsplit(document.url).scheme == "https"
    assert document.measured
    assert VERSION.search(f"{document.title} {document.measured}"), "neither a date nor a version"
    assert study_of(name).claims[0].published


@pytest.mark.parametrize("name", PUBLIC)
def test_each_declares_its_setting_and_every_row_s_departures_from_it_are_found(name: str) -> None:
    setting = study_of(name).document.setting
    declared = setting.model_dump(exclude_unset=True)
    assert {"hardware", "system", "versions"} & set(declared), "says neither on what it ran nor in what"
    found = [row for rows in planned("cpu", name).studies[name].rows.values() for row in rows.values()]
    assert found
    for row in found:
        of = {each.of for each in row.deviations}
        wanted = {"hardware": "device", "model": "model", "versions": "versions"}
        assert {departs for key, departs in wanted.items() if key in declared} <= of, row.title


@pytest.mark.parametrize("name", PUBLIC)
def test_each_can_run_on_a_cpu_in_a_few_minutes(name: str) -> None:
    made = planned("cpu", name)
    for rows_of_experiment in made.studies[name].rows.values():
        for row in rows_of_experiment.values():
            assert row.cell, row.unavailable
    assert 0 < made.budget_minutes * 60 <= SECONDS_OF_PATIENCE


def test_the_name_of_their_folder_stands_for_all_of_them_and_each_can_be_asked_for_alone() -> None:
    assert tuple(params.load_studies(("public",), ROOT / "studies")) == PUBLIC
    for name in PUBLIC:
        for asked in (name, f"public/{name}"):
            assert tuple(params.load_studies((asked,), ROOT / "studies")) == (name,)
    both = params.load_studies(("kv_cache", "public", "quickstart"), ROOT / "studies")
    assert sorted(both) == sorted((*PUBLIC, "quickstart")), "none is there twice"


def test_a_plan_names_the_studies_of_a_folder_and_deals_the_budget_out_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    value = {**raw_params(), "studies": ["public"], "device": "cpu"}
    made = jobs.plan_for({**value, "measure": {**value["measure"], "budget_minutes": 20.0}}, Path("studies"))
    assert made.params.studies == PUBLIC
    assert made.budget_minutes == pytest.approx(20)
    own = sum(study_of(name).measure.budget_minutes or 0 for name in PUBLIC)
    assert jobs.plan_for(value, Path("studies")).budget_minutes == pytest.approx(own)


def test_an_unknown_name_is_told_the_nearest_study_or_folder(tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "public/kv_cache.yaml").write_text("title: x\n")
    for asked, nearest in (("publik", "public"), ("kv_cach", "kv_cache")):
        with pytest.raises(ConfigError, match=rf"Did you mean '{nearest}'\?"):
            params.load_studies((asked,), tmp_path)


def test_a_study_that_lies_nearer_counts_before_one_of_its_name_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    for place in (tmp_path / "kv_cache.yaml", tmp_path / "public/kv_cache.yaml"):
        place.write_text("title: x\n")
    assert params.study_files(tmp_path) == {"kv_cache": tmp_path / "kv_cache.yaml"}


@pytest.mark.parametrize("name", PUBLIC)
def test_each_has_a_row_on_the_page_that_says_what_its_study_does(name: str) -> None:
    study = study_of(name)
    claim = study.claims[0]
    _, link, source, statement, published, setting, verdict = rows()[claim.id]
    assert link == f"[`{name}`](../studies/public/{name}.yaml)"
    assert source == f"[{study.document.title}]({study.document.url})"
    assert (statement, published) == (claim.statement, claim.published)
    assert setting
    assert verdict


def test_the_page_has_no_other_rows() -> None:
    assert len(rows()) == len(PUBLIC)


def test_the_page_says_the_budget_of_all_of_them() -> None:
    made = plan.make_plan(params.load_params(raw_params()), studies(*PUBLIC), {"key": "here"}, "cpu")
    assert f"{made.budget_minutes:g} minutes" in PAGE.read_text(encoding="utf-8")


def test_two_studies_of_one_name_are_never_one_without_a_word(tmp_path: Path) -> None:
    """And what an editor keeps in a hidden folder is no study."""
    whole = params.study_files(ROOT / "studies")["kv_cache"].read_text(encoding="utf-8")
    for name in ("mine/kv_cache", "public/kv_cache", ".copies/kv_cache-copy"):
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir()
        path.write_text(whole, encoding="utf-8")
    for one in ("mine/kv_cache", "public/kv_cache", "mine"):
        assert list(params.load_studies((one,), tmp_path)) == ["kv_cache"]
    with pytest.raises(ConfigError, match=r"mine/kv_cache\.yaml and .*public/kv_cache\.yaml have one name"):
        params.load_studies(("mine", "public"), tmp_path)
    assert list(params.study_files(tmp_path)) == ["kv_cache"]
