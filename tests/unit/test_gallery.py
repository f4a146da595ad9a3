"""Kept reports: each is what its raw results come to, and a run's can be kept."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from claimbench import gallery
from claimbench.__main__ import main
from claimbench.schema import plan as plan_file
from claimbench.schema import sealed, verdicts

ROOT = Path(__file__).parents[2]
KEPT = gallery.kept(ROOT / "reports")
NOT_KEPT = "Its raw results were not kept"


def test_every_study_report_has_its_raw_results_or_says_that_they_are_gone() -> None:
    assert KEPT
    for page in (ROOT / "reports").glob("*/report.md"):
        assert (page.parent in KEPT) != (NOT_KEPT in page.read_text(encoding="utf-8")), page


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_a_kept_report_is_what_its_raw_results_come_to_byte_for_byte(folder: Path) -> None:
    assert gallery.differences(folder) == [], "render it anew: make reports"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(KEPT[0], tmp_path / "kept"))


def test_an_edited_report_a_foreign_figure_and_a_missing_one_are_differences(copy: Path) -> None:
    page = copy / "report.md"
    page.write_text(page.read_text(encoding="utf-8").replace("supported", "refuted", 1), encoding="utf-8")
    first, *_ = figures = sorted((copy / "figures").glob("*.svg"))
    shutil.copy(figures[-1], copy / "figures/another.svg")
    first.unlink()
    assert gallery.differences(copy) == sorted(["figures/another.svg", f"figures/{first.name}", "report.md"])


def test_an_edited_raw_result_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sorted((copy / "results/rounds").glob("*.json"))[0]
    path.write_text(
        re.sub(r'"wall_ns":(\d)', r'"wall_ns":9\1', path.read_text(encoding="utf-8"), count=1), encoding="utf-8"
    )
    assert main(["keep", "--folders", str(copy)]) == 4
    assert "edited after it was measured" in capsys.readouterr().err


def test_raw_results_of_an_earlier_version_are_read_though_a_field_has_come_since(copy: Path) -> None:
    """A plan's name is the hash of what was written then, and a field that is there now has its default."""
    (path,) = (copy / "results/plan").glob("*.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["budget_minutes"]
    older = path.with_name(f"{plan_file._seal(content)[:12]}.json")
    older.write_text(json.dumps(content), encoding="utf-8")
    read = plan_file.read(older)
    assert read.budget_minutes == 0.0
    assert read.seal == plan_file._seal(content)
    assert read.seal != plan_file._seal(read.model_dump(mode="json"))


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_kept_verdicts_say_what_they_were_made_of(folder: Path) -> None:
    made_of = verdicts.read(folder / "results/verdicts.json").made_of
    for part, (path,) in {
        name: [*(folder / "results" / where).glob("*.json")]
        for name, where in (("plan", "plan"), ("rounds", "decided"), ("ceilings", "ceilings"))
    }.items():
        own = plan_file.read(path).seal if part == "plan" else sealed.seal_at(path)
        assert made_of[part] == own
        assert part == "ceilings" or made_of["plan"].startswith(path.stem)
    blocks = (folder / "results/measure").glob("*/*/[0-9]*.json")
    seals = {str(path.relative_to(folder)): sealed.seal_at(path) for path in blocks}
    assert made_of["results"] == sealed.seal_of(seals)


def test_a_run_is_kept_whole_and_renders_to_the_same_page(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy)
    (tmp_path / "kept/results/rounds/of-another-plan.json").write_text("{}", encoding="utf-8")
    (path,) = Path("results/plan").glob("*.json")
    assert main(["keep", "--plan", str(path), "--folders", str(tmp_path / "reports/mine")]) == 0
    assert gallery.differences(tmp_path / "reports/mine") == []
    for name in ("report.md", "results/plan"):
        assert (tmp_path / "reports/mine" / name).exists()
    assert (tmp_path / "reports/mine/report.md").read_bytes() == (KEPT[0] / "report.md").read_bytes()
    assert not (tmp_path / "reports/mine/results/rounds/of-another-plan.json").exists()
    assert main(["keep", "--plan", str(path), "--folders", str(tmp_path / "reports/mine")]) == 4
    assert "is there already" in capsys.readouterr().err
    next(Path("results/ceilings").glob("*")).unlink()
    assert main(["keep", "--plan", str(path), "--folders", str(tmp_path / "other")]) == 4
    assert "is missing: `snakemake --cores all` measures" in capsys.readouterr().err
