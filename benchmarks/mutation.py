"""Which small errors would no test notice? A sample of a module's mutants, each run against the module's tests.

    make mutants MODULE=analysis/paired                         thirty of its mutants, and those that no test noticed
    make mutants MODULE="analysis/paired schema/durable" SAMPLE=100 SEED=2
    make mutants MODULE=by-hand                                 the lines of broken_lines.yaml, each broken as it says

mutmut makes the mutants (an operator, a number, an argument, a text changed) and runs the tests that call the changed
function in a fork of one pytest. It leaves decorated functions and what stands outside of functions as they are, and
removes no statement: those breaks are a list. Here is what it lacks: a sample with a seed, Wilson's interval, and a
copy of the tree, in which all of it happens.
docs/mutation.md is what came of it.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "src/claimbench"
BROKEN_LINES = Path(__file__).with_name("broken_lines.yaml")
NOTICED = ("killed", "timeout", "segfault")
LEFT_OUT = "not model and not pipeline and not long and not wide and not slow and not servers and not network"
TOGETHER = "unit/test_judge.py::test_a_claim_takes_the_verdicts_of_its_checks_together"
JUDGING = ("unit/test_checks.py", "unit/test_fitness.py", TOGETHER)
CHECKPOINTS = ("unit/test_manifest.py", "faults/test_weight_files.py", "unit/test_shard.py")
SIMULATOR = "faults/test_simulator.py"
POWER_CUT = "test_what_was_written_is_there_after_a_power_cut_and_what_was_not_changes_nothing"
NO_OTHER = "test_a_new_file_never_takes_the_place_of_another"
TESTS = {
    "analysis/aggregate": ("unit/test_aggregate.py",),
    "analysis/comparing": ("unit/test_comparing.py",),
    "analysis/paired": ("unit/test_paired.py",),
    "analysis/stats": ("unit/test_stats.py",),
    "analysis/validity": ("unit/test_validity.py", "unit/test_side_by_side.py"),
    "checkpoints/manifest": CHECKPOINTS,
    "checkpoints/safetensors_file": CHECKPOINTS,
    "checkpoints/stored": ("unit/test_stored.py",),
    "checkpoints/weight_files": CHECKPOINTS,
    "judging/checks/*": JUDGING,
    "judging/evidence": JUDGING,
    "judging/expectations": JUDGING,
    "judging/fitness": JUDGING,
    "judging/judge": JUDGING,
    "measuring/clock": ("unit/test_clock.py",),
    "measuring/supervisor": ("unit/test_supervisor.py",),
    "planning/result_key": ("unit/test_result_key.py",),
    "schema/durable": ("faults/test_durable.py", f"{SIMULATOR}::{POWER_CUT}", f"{SIMULATOR}::{NO_OTHER}"),
    "schema/result": ("unit/test_round.py",),
    "schema/round": ("unit/test_round.py",),
    "schema/sealed": ("unit/test_sealed.py",),
}


def copy_tree(folder: Path) -> None:
    """All that git knows of, and files that it would be told of."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    shutil.rmtree(folder, ignore_errors=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def configure(folder: Path, modules: list[str], tests: list[str]) -> None:
    """mutmut reads pyproject.toml and nothing else."""
    beside = sorted(path.name for path in folder.iterdir() if path.name not in ("src", "tests", "pyproject.toml"))
    settings = {
        "source_paths": ["src"],
        "only_mutate": [f"{PACKAGE}/{module}.py" for module in modules],
        "also_copy": beside,
        "pytest_add_cli_args_test_selection": [f"tests/{name}" for name in tests],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "--hypothesis-profile=ci", "-m", LEFT_OUT],
    }
    lines = [f"{name} = {value!r}".replace("'", '"') for name, value in settings.items()]
    with (folder / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("\n[tool.mutmut]\nuse_git_change_detection = false\n" + "\n".join(lines) + "\n")


def mutants_of(path: Path) -> list[str]:
    """Names of all mutants of a file, as mutmut gives them."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    made = mutate_file_contents(str(path), path.read_text(encoding="utf-8"))
    return [get_mutant_name(path, name) for name in made.mutant_names]


def wilson(noticed: int, sampled: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    low, high = binomtest(noticed, sampled).proportion_ci(method="wilson")
    return float(low), float(high)


def broken_lines() -> list[dict[str, str]]:
    found: list[dict[str, str]] = yaml.safe_load(BROKEN_LINES.read_text(encoding="utf-8"))
    return found


def break_by_hand(folder: Path) -> int:
    """Break each line of the list in turn; the number of breaks that their test did not notice.

    Raises:
        SystemExit: a test fails with every line whole, so its failure would say nothing.
    """
    entries, passed = broken_lines(), 0
    if pytest_in(folder, *dict.fromkeys(entry["test"] for entry in entries)) != 0:
        sys.exit("not all of the tests that are named pass while every line is whole")
    for entry in entries:
        path = folder / PACKAGE / entry["file"]
        whole = path.read_text(encoding="utf-8")
        path.write_text(whole.replace(entry["line"], entry["instead"]), encoding="utf-8")
        noticed = pytest_in(folder, entry["test"]) == 1
        path.write_text(whole, encoding="utf-8")
        passed += not noticed
        print(f"{'noticed' if noticed else 'NOT NOTICED'}: {entry['file']}: {entry['what']}", flush=True)
    return passed


def pytest_in(folder: Path, *tests: str) -> int:
    """pytest's exit status: 0 where all pass, 1 where one fails."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder / "src"), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode


def mutmut(*arguments: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run mutmut in the copy, which is the working directory: its processes import the mutated package."""
    mutated = Path("mutants/src").resolve()
    mutated.mkdir(parents=True, exist_ok=True)  # else the interpreter remembers that it is not there
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != ROOT / "src"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(mutated), *known])}
    command = [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", *arguments]
    return subprocess.run(command, env=environment, capture_output=capture, text=True, check=False)


def draw(modules: list[str], most: int, seed: int) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Names of mutants by module, and how many there are in all."""
    drawn, totals = dict[str, list[str]](), dict[str, int]()
    for module in modules:
        names = [name for path in sorted(Path(PACKAGE).glob(f"{module}.py")) for name in mutants_of(path)]
        count = min(most or len(names), len(names))
        drawn[module] = sorted(random.Random(f"{seed} {module}").sample(names, count))  # noqa: S311
        totals[module] = len(names)
        print(f"{module}: {count} of {len(names)} mutants, seed {seed}", flush=True)
    return {module: names for module, names in drawn.items() if names}, totals


def tell(drawn: dict[str, list[str]], totals: dict[str, int]) -> None:
    """Print each mutant that no test noticed, and a table."""
    results = mutmut("results", "--all", "true", capture=True).stdout
    ended = dict(re.findall(r"^ *(\S+): (.+)$", results, flags=re.MULTILINE))
    for name in (name for names in drawn.values() for name in names if ended[name] not in NOTICED):
        print(mutmut("show", name, capture=True).stdout)
    print("| module | mutants | sampled | noticed | share (95 %) | ended |\n|---|---|---|---|---|---|")
    for module, names in drawn.items():
        noticed = sum(ended[name] in NOTICED for name in names)
        low, high = wilson(noticed, len(names))
        ends = ", ".join(f"{end} {count}" for end, count in sorted(Counter(ended[name] for name in names).items()))
        share = f"{noticed / len(names):.0%} ({low:.0%} to {high:.0%})"
        print(f"| {module} | {totals[module]} | {len(names)} | {noticed} | {share} | {ends} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", help=f"of {', '.join(TESTS)}; or by-hand")
    parser.add_argument("--sample", type=int, default=30, help="mutants of each module (30); 0 for all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tests", nargs="*", help="files under tests/, instead of those that the table here names")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mutation", help="of the copy; is emptied")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    if asked.modules == ["by-hand"]:
        copy_tree(folder)
        return 1 if break_by_hand(folder) else 0
    unknown = [module for module in asked.modules if module not in TESTS and not asked.tests]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}. Name the files of tests (--tests), or one of {', '.join(TESTS)}")
    copy_tree(folder)
    tests = asked.tests or [name for module in asked.modules for name in TESTS[module]]
    configure(folder, asked.modules, [*dict.fromkeys(tests)])
    os.chdir(folder)
    drawn, totals = draw(asked.modules, asked.sample, asked.seed)
    ran = mutmut("run", "--max-children", "1", *(name for names in drawn.values() for name in names))
    if ran.returncode == 0:
        tell(drawn, totals)
    return ran.returncode


if __name__ == "__main__":
    sys.exit(main())
