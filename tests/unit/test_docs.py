"""What a stranger reads is true: commands and parameters exist, examples run, the tables name all techniques."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from claimbench import __version__, backends, commands, optimizations
from claimbench.commands import parser
from claimbench.planning import plan
from claimbench.schema import params, result, validation
from claimbench.schema.cell import Cell, Checkpoint, Device, OptimizationUse, Workload
from claimbench.schema.plan import Plan
from claimbench.schema.study import Study

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
DOCUMENTS = {"README.md": README, "CONTRIBUTING.md": CONTRIBUTING} | {f"docs/{name}.md": PAGES[name] for name in PAGES}
FILES = params.study_files(ROOT / "studies")
STUDIES = sorted(FILES)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def section(text: str, title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found, f"no section '{title}'"
    return found[1]


def raw_params() -> dict[str, Any]:
    value: dict[str, Any] = validation.read_yaml(ROOT / "params.yaml")
    return value


def make_plan(device: Device, **studies: Any) -> Plan:
    read = {name: validation.validate(Study, value, f"studies/{name}.yaml") for name, value in studies.items()}
    return plan.make_plan(params.load_params(raw_params()), read, {"key": "here"}, device)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_make_target_that_is_named_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", DOCUMENTS[name], flags=re.MULTILINE))
    assert named or name not in ("README.md", "CONTRIBUTING.md")
    assert named <= targets


def test_every_make_target_is_explained_and_no_other() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY:(.*)$", makefile, flags=re.MULTILINE)[0].split()) - {"help"}
    assert set(re.findall(r'@echo "make ([a-z-]+) ', makefile)) == phony


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_subcommand_that_is_named_exists(name: str) -> None:
    assert "python -m claimbench" not in DOCUMENTS[name], "the short form is what a reader types"
    named = set(re.findall(r"(?<![\w/.])claimbench\s+([a-z]+)", DOCUMENTS[name]))
    assert named or name not in ("README.md", "CONTRIBUTING.md")
    assert named <= {*commands.PEOPLE, *commands.stage_names()}
    for block in blocks(DOCUMENTS[name], "sh") + blocks(DOCUMENTS[name], "console"):
        for line in re.findall(r"^(?:\$ )?claimbench (.*?)(?: +#.*)?$", block, flags=re.MULTILINE):
            assert parser.make(shlex.split(line)).parse_args(shlex.split(line)).run


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_parameter_that_is_named_exists(name: str) -> None:
    """`measure.blocks=5`, `limits.batch`, ... in commands and in text."""
    named = re.findall(
        r"(?<![\w/.])(measure|limits|shard)\.([a-z_]+)\b(?!\.py)", DOCUMENTS[name].replace("`measure.py`", "")
    )
    models = {"measure": params.Measure, "limits": params.Limits, "shard": params.Shard}
    assert named or name != "docs/workflow.md"
    assert [(group, key) for group, key in named if key not in models[group].model_fields] == []


def test_the_tables_of_what_runs_where_name_every_technique_and_every_system() -> None:
    systems = section(PAGES["techniques"], "Systems")
    of_transformers = section(PAGES["techniques"], "Techniques of Transformers")
    of_engine = section(PAGES["techniques"], "Techniques of the engine")
    assert sorted(rows(systems)) == sorted(backends.names())
    assert sorted(rows(of_transformers) + rows(of_engine)) == sorted(optimizations.names())
    assert {optimizations.find(name).__name__.split(".")[-2] for name in rows(of_engine)} == {"engine"}
    assert {optimizations.find(name).__name__.split(".")[-2] for name in rows(of_transformers)} == {"transformers"}
    planned = re.search(r"^\| ([\w, ]+) \|.*\| no: ", systems, flags=re.MULTILINE)
    wanted = {
        name
        for study in params.load_studies(tuple(STUDIES), ROOT / "studies").values()
        for name in study.planned.backends
    }
    assert set(planned[1].split(", ") if planned else ()) == wanted


def rows(text: str) -> list[str]:
    """Names that tables begin their rows with."""
    return re.findall(r"^\| `(\w+)`", text, flags=re.MULTILINE)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_tables_of_what_runs_where_agree_with_the_code(device: Device) -> None:
    """A technique that refuses a device is not said to run there, and the other way round."""
    for name in optimizations.names():
        found = re.search(rf"^\| `{name}` \|[^|]*\|([^|]*)\|([^|]*)\|", PAGES["techniques"], flags=re.MULTILINE)
        assert found, name
        said = found[1 if device == "cpu" else 2].strip()
        assert said.startswith("no") == refuses(name, device), f"{name} on {device}: the page says '{said}'"


def refuses(name: str, device: Device) -> bool:
    """Whether the device itself is what the technique refuses: the best case, with every package installed."""
    module: Any = optimizations.find(name)
    required = {"draft": "draft", "layers": 2}
    settings = {key: required[key] for key, field in module.Settings.model_fields.items() if field.is_required()}
    cells = [
        example_cell("transformers", device, "bfloat16", architecture, draft=True, **work).model_copy(
            update={"optimizations": company}
        )
        for architecture in ("llama-2-7b", "santacoder")
        for work in ({}, {"new_tokens": 64}, {"batch": 2, "shortest": 2})
        for company in ((), (OptimizationUse(name="cache_static"),))
    ]
    reasons = [module.unavailable(cell, module.Settings(**settings)) for cell in cells]
    return all(reason and "not installed" not in reason for reason in reasons)


def example_cell(backend: str, device: Device, dtype: str, architecture: str, draft: bool = False, **work: Any) -> Cell:
    checkpoint = Checkpoint(name="tiny", source=f"random://{architecture}?seed=0", architecture=architecture)
    return Cell.model_validate(
        {
            "checkpoint": checkpoint,
            "draft": checkpoint if draft else None,
            "backend": backend,
            "dtype": dtype,
            "device": device,
            "workload": Workload(**({"prompt": "a b c", "new_tokens": 4} | work)),
        }
    )


def test_params_survive_how_dvc_writes_them(tmp_path: Path) -> None:
    """`dvc exp run -S` writes params.yaml anew and drops quotes; what it leaves must still be readable."""
    from dvc.utils.serialize import modify_yaml

    assert "dvc exp run -S measure.budget_minutes=30" in PAGES["workflow"]
    copy = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", copy)
    with modify_yaml(str(copy)) as written:
        written["measure"]["budget_minutes"] = 30
    expected = raw_params()
    expected["measure"]["budget_minutes"] = 30
    assert validation.read_yaml(copy) == expected


def test_the_page_of_studies_names_each_of_them() -> None:
    """Those of a folder by its name, which stands for all of them."""
    named = {name if path.parent == ROOT / "studies" else path.parent.name for name, path in FILES.items()}
    assert sorted(rows(section(PAGES["studies"], "Those that are here"))) == sorted(named)


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(README.splitlines()) <= 150
    assert [name for name in PAGES if f"](docs/{name}.md" not in README] == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_study_of_the_readme_plans(device: Device) -> None:
    (text,) = blocks(section(README, "Ask your own question"), "yaml")
    made = make_plan(device, mine=yaml.safe_load(text))
    rows = [row for experiment in made.studies["mine"].rows.values() for row in experiment.values()]
    assert len(rows) > 1
    assert all(row.cell for row in rows)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_experiment_of_the_page_of_studies_fits_into_the_quickstart(device: Device) -> None:
    (text,) = blocks(section(PAGES["studies"], "One of your own"), "yaml")
    added = yaml.safe_load(text)
    study = validation.read_yaml(ROOT / "studies/quickstart.yaml")
    study["experiments"] |= added["experiments"]
    study["claims"] += added["claims"]
    made = make_plan(device, quickstart=study)
    (experiment,) = added["experiments"]
    rows = made.studies["quickstart"].rows[experiment]
    assert set(rows) == set(added["experiments"][experiment]["cells"])
    assert all(row.cell for row in rows.values())


def copy_with(folder: Path, kind: str, name: str) -> Path:
    """A copy of the package and of its contract tests, with the example of `kind` as a file."""
    (text,) = blocks(section(CONTRIBUTING, f"An {kind}" if kind == "optimization" else f"A {kind}"), "python")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignored)
    shutil.copytree(ROOT / "tests/contract", folder / "tests/contract", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    place = {"optimization": "optimizations/transformers", "backend": "backends"}[kind]
    file = folder / f"src/claimbench/{place}/{name}.py"
    file.write_text(text, encoding="utf-8")
    return file


def run_contract(folder: Path, name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not network", "tests/contract", "-k", name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.model
@pytest.mark.slow
def test_the_optimization_of_contributing_keeps_the_contract(tmp_path: Path) -> None:
    copy_with(tmp_path, "optimization", "chunked_prefill")
    passed = re.search(r"(\d+) passed", run_contract(tmp_path, "chunked_prefill"))
    assert passed
    assert int(passed[1]) > 10, "alone, and with every technique that it fits"


@pytest.mark.model
def test_the_backend_of_contributing_keeps_the_contract_and_is_measured(tmp_path: Path) -> None:
    copy_with(tmp_path, "backend", "congruence")
    assert "2 passed" in run_contract(tmp_path, "congruence")
    program = (
        "import sys; from pathlib import Path; from claimbench.schema.cell import Cell\n"
        "from claimbench.measuring.measure import measure; from claimbench.planning.result_key import key_of\n"
        "key = key_of(Cell.model_validate_json(sys.argv[1]), 'm')\n"
        "measure(Cell.model_validate_json(sys.argv[1]), 0, key, Path(sys.argv[2]), checkpoint=None)\n"
    )
    cell = example_cell("congruence", "cpu", "float32", "tiny-llama", batch=2)
    output = tmp_path / "0.json"
    subprocess.run(
        [sys.executable, "-c", program, cell.model_dump_json(), str(output)],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    record = result.read(output)
    assert record.outcome == "ok", record.reason
    assert record.tokens == (16, 81, 150, 239)  # from 3 words, by 5 x + 1 modulo 256
    assert record.proof == {"tokens": 4}


def test_the_changelog_and_the_citation_know_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(__version__)}\]", changelog, flags=re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"


def test_the_licence_is_the_whole_apache_licence() -> None:
    lines = (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()
    assert lines[0].strip() == "Apache License"
    assert [line.strip().split(".")[0] for line in lines if re.match(r"   \d\. ", line)] == [*"123456789"]
    assert "END OF TERMS AND CONDITIONS" in "\n".join(lines)
