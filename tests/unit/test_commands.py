"""The command line as a person meets it: help, names that are unknown, places that are wrong, pipes, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.projects import Say, written
from tests.unit.test_cards import SPOILT, write

from claimbench import backends, commands, optimizations
from claimbench.__main__ import main
from claimbench.commands import parser as parsing
from claimbench.commands.people import list as listing
from claimbench.cost_model import cost
from claimbench.schema.metrics import METRICS
from claimbench.schema.params import load_studies, study_files

ROOT = Path(__file__).parents[2]
EVERY = [*commands.PEOPLE, *commands.stage_names()]


def ends(*arguments: str) -> int:
    """The status with which argparse ends the process."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(str(ended.value.code))


def test_every_file_is_a_command_and_every_command_a_file() -> None:
    files = {path.stem.rstrip("_") for path in (ROOT / "src/claimbench/commands/people").glob("[a-z]*.py")}
    assert files == set(commands.PEOPLE)
    assert not set(commands.PEOPLE) & set(commands.stage_names())


def test_the_help_has_peoples_commands_first_and_the_statuses(capsys: Any) -> None:
    assert ends("--help") == 0
    out = capsys.readouterr().out
    lines = [line.split()[0] for line in out.splitlines() if re.match(r"  [a-z]+  ", line)]
    assert lines == EVERY
    assert "exit status:" in out
    assert main([]) == 2, "nothing was asked for"


@pytest.mark.parametrize("name", EVERY)
def test_every_argument_has_a_help_text_and_every_command_for_people_an_example(name: str, capsys: Any) -> None:
    made = parsing.make([name])
    (inner,) = [action for action in made._actions if hasattr(action, "choices") and action.choices]
    for action in inner.choices[name]._actions:  # type: ignore[union-attr, call-overload, index]
        assert action.help, action.option_strings
    assert ends(name, "--help") == 0
    out = capsys.readouterr().out
    if name in commands.PEOPLE:
        assert "examples:" in out


@pytest.mark.parametrize("name", commands.PEOPLE)
def test_every_example_is_one_that_the_parser_takes(name: str) -> None:
    examples: tuple[str, ...] = getattr(commands.find(name), "EXAMPLES", ())
    assert examples
    for example in examples:
        words = shlex.split(re.split(r" (?:>|\|\|) ", example)[0])
        assert words[0] == "claimbench"
        assert parsing.make(words[1:]).parse_args(words[1:]).run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["forcast"], "unknown command 'forcast'. Did you mean 'forecast'?"),
        (["forecast", "--parms", "x"], "unknown argument '--parms'. Did you mean '--params'?"),
        (["run", "smollm2", "--minutes", "0"], "expected a number of minutes above 0, got '0'"),
        (["run", "smollm2", "--minutes", "nan"], "expected a number of minutes above 0, got 'nan'"),
        (["run", "smollm2", "--dtype", "float8"], "--dtype: unknown 'float8'"),
        (["run"], "the following arguments are required: SOURCE"),
        (["measure", "--cell", "@/nowhere"], "cannot read /nowhere"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line_with_the_nearest(arguments: list[str], words: str, capsys: Any) -> None:
    assert ends(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["run", "smolm2"], 2, "unknown model 'smolm2'. Did you mean 'smollm2'"),
        (["run", "http://x"], 3, "unknown kind of source 'http://'"),
        (["run", "https://huggingface.co/a/b"], 3, "Did you mean 'hf://a/b'?"),
        (["run", "https://hf.co/a/b/tree/v1.0/x"], 3, "Did you mean 'hf://a/b@v1.0'?"),
        (["run", "Qwen/Qwen3-8B"], 2, "Did you mean 'hf://Qwen/Qwen3-8B'?"),
        (["run", "./tests"], 2, "Did you mean 'file://./tests'?"),
        (["run", "~/model"], 2, "Did you mean 'file://~/model'?"),
        (["run", "random://smollm2"], 3, "unknown architecture 'smollm2'. Did you mean"),
        (["run", "file://nowhere"], 3, "there is no such file or folder"),
        (["run", "hf://a/b/c/d"], 3, "expected hf://org/name"),
        (["run", "smollm2", "--try", "vllm"], 2, "Did you mean 'vllm_offline' or 'vllm_server'?"),
        (["run", "smollm2", "--try", "quantum"], 2, "`claimbench list techniques backends` names them."),
        (["run", "smollm2", "--try", "sdpa+cache_static"], 2, "no backend can do all of 'sdpa+cache_static'"),
        (["run", "smollm2", "--try", "tgi+vllm_server"], 2, "names two backends"),
        (["run", "smollm2", "--try", "sdpa,,"], 2, "expected names of techniques or backends"),
        (
            ["run", "smollm2", "--try", "assisted"],
            2,
            "by its name or its source: write assisted:draft=NAME",
        ),
        (["run", "smollm2", "--try", "prompt_lookup:tokns=3"], 2, "unknown key 'tokns'. Did you mean 'tokens'?"),
        (["run", "smollm2", "--try", "static_cache+no_cache"], 2, "both change the cache"),
        (["run", "smollm2", "--prompt", "@/nowhere"], 2, "--prompt: cannot read /nowhere"),
        (["run", "smollm2", "--prompt", " "], 2, "--prompt: expected a text"),
        (["run", "smollm2", "--batch", "0"], 2, "--batch: expected at least 1"),
        (["run", "nowhere.yaml"], 2, "nowhere.yaml: cannot be read"),
        (["run", "nowhere.yaml", "--batch", "3"], 2, "--batch: the study nowhere.yaml says that itself"),
        (["run", "smollm2", "--folder", "a{b}"], 2, "braces"),
        (["new", "a/b"], 2, "expected a name of letters"),
        (["new", "mine", "--model", "smol"], 2, "Did you mean 'smollm2'"),
        (["claims", "--verdict", "suported"], 2, "Did you mean 'supported'?"),
        (["compare", "a"], 2, "expected two folders of results or more"),
        (["compare", "a", "b", "--metric", "decode"], 2, "Did you mean 'decode_tok_s'"),
        (["compare", "a", "b"], 4, "there is no folder a"),
    ],
)
def test_an_impossible_request_is_told_in_one_line_and_leaves_nothing(
    arguments: list[str], status: int, words: str, project: Path, say: Say
) -> None:
    before = sorted(project.rglob("*"))
    told = say(*arguments)
    assert (told[0], told[1]) == (status, "")
    assert words in told[2]
    assert told[2].count("\n") == 1
    assert [path for path in sorted(project.rglob("*")) if path not in before and ".claimbench" not in path.parts] == []


@pytest.mark.parametrize("source", ["hf://org/name", "random://hf://org/name?seed=0"])
def test_a_hub_that_does_not_answer_ends_a_run_before_it_begins(
    source: str, project: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    status, out, err = say("run", source)
    assert (status, out) == (3, "")
    assert "the hub did not answer when the plan was made" in err
    assert not (project / "runs").exists()
    assert say("run", source, "--dry-run")[0] == 0


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("command", ["run", "forecast"])
def test_a_model_that_cannot_be_read_is_told_in_one_line_and_leaves_nothing(
    how: str, command: str, project: Path, say: Say
) -> None:
    source = write(project / "mine", cost.config("tiny-llama"))
    spoil, words = SPOILT[how]
    spoil(project / "mine")
    written(source)
    before = sorted(project.rglob("*"))
    status, out, err = say(*{"run": ["run", source], "forecast": ["forecast"]}[command])
    assert (status, out, err.count("\n")) == (3, "", 1)
    assert words in err
    assert [path for path in sorted(project.rglob("*")) if path not in before and ".claimbench" not in path.parts] == []


def test_the_list_has_every_name_of_every_kind(project: Path, say: Say) -> None:
    status, out, _ = say("list", "--json")
    assert status == 0
    found = {kind: [one["name"] for one in json.loads(out) if one["kind"] == kind] for kind in listing.KINDS}
    assert found["techniques"] == list(optimizations.names())
    assert found["backends"] == list(backends.names())
    assert found["metrics"] == list(METRICS)
    paths = sorted(study_files(ROOT / "studies").values())
    studies = [path.relative_to(ROOT / "studies").with_suffix("").as_posix() for path in paths]
    assert sorted(found["studies"]) == sorted(studies), "those that come with the package, since there are none here"
    claims = load_studies(tuple(studies), ROOT / "studies")
    assert len(found["claims"]) == sum(len(study.claims) for study in claims.values())
    assert all(one["what it is"] for one in json.loads(out))


def test_a_list_is_filtered_by_kinds_and_words(say: Say, project: Path) -> None:
    _, out, _ = say("list", "techniques", "cache", "COPIES")
    assert "static_cache" in out
    assert "sdpa" not in out
    status, out, err = say("list", "metrics", "no-such-word")
    assert (status, out) == (0, "")
    assert "nothing of metrics has no-such-word in it" in err


def test_a_bad_study_is_named_and_the_others_are_listed(project: Path, say: Say) -> None:
    Path("studies/bad.yaml").write_text("titel: x\n", encoding="utf-8")
    status, out, _ = say("list", "studies")
    assert status == 2
    assert "bad" in out
    assert "damaged: studies/bad.yaml: " in out
    assert "quickstart" in out


def test_the_skeleton_of_a_study_can_be_run_as_it_is(project: Path, say: Say) -> None:
    assert say("new", "mine", "--model", "smollm2")[0] == 0
    status, out, err = say("run", "studies/mine.yaml", "--dry-run", "--minutes", "3")
    assert status == 0, err
    assert "at most 3 minutes" in out
    assert yaml.safe_load(Path("runs/mine/params.yaml").read_text(encoding="utf-8"))["studies"] == ["mine"]
    before = Path("studies/mine.yaml").read_bytes()
    assert say("new", "mine")[0] == 2
    assert Path("studies/mine.yaml").read_bytes() == before
    assert say("new", "mine", "--output", "-")[1].startswith("# A study")


def test_a_dry_run_writes_a_study_that_a_person_can_read_and_says_what_it_takes(project: Path, say: Say) -> None:
    asked = ["run", "random://tiny-llama?seed=0", "--try", "sdpa,cpp_block,prompt_lookup:tokens=4", "--dry-run"]
    status, out, err = say(*asked)
    assert status == 0, err
    assert "rounds: at most 5 min" in out
    study = yaml.safe_load(Path("runs/tiny-llama/studies/tiny-llama.yaml").read_text(encoding="utf-8"))
    cells = study["experiments"]["decode"]["cells"]
    assert [cells[name].get("optimizations") for name in cells] == [
        None,
        ["sdpa"],
        ["cpp_block", "cache_static"],
        [{"prompt_lookup": {"tokens": 4}}],
    ]
    assert cells["cpp_block"]["backend"] == "engine"
    assert [claim["id"] for claim in study["claims"]][:2] == ["T1.1", "T1.1.same"]
    assert Path("runs/tiny-llama/resources").resolve() == (project / "resources")
    assert "runs/tiny-llama/studies" in say(*asked)[1], "the same question goes on in the same folder"
    assert "runs/tiny-llama-2/studies" in say(*asked, "--new-tokens", "5")[1]


def test_a_folder_with_another_study_is_left_as_it_is(project: Path, say: Say) -> None:
    Path("kept/studies").mkdir(parents=True)
    Path("kept/params.yaml").write_text("mine: 1\n", encoding="utf-8")
    status, _, err = say("run", "random://tiny-llama", "--folder", "kept", "--dry-run")
    assert status == 2
    assert "kept holds another study already" in err
    assert Path("kept/params.yaml").read_text(encoding="utf-8") == "mine: 1\n"
    Path("file").write_text("x", encoding="utf-8")
    assert say("run", "random://tiny-llama", "--folder", "file", "--dry-run")[0] == 2


def test_the_registry_has_every_claim_and_the_verdicts_that_are_there(lab: Any, say: Say) -> None:
    from tests.unit.handed_over import results_in

    status, out, _ = say("claims", "--json")
    assert status == 0
    known = json.loads(out)
    assert {one["verdict"] for one in known} == {"not judged"}
    results_in(lab, Path("runs/mine"))
    shown = json.loads(say("claims", "--json")[1])
    assert len(shown) == len(known) + 1
    (mine,) = [one for one in shown if one["where"]]
    assert (mine["id"], mine["verdict"], mine["where"]) == ("P1", "supported", "runs/mine on CPU cpu0")
    assert say("claims", "--verdict", "supported")[1].count("P1") == 1
    assert "P1" not in say("claims", "--verdict", "refuted")[1]
    Path("runs/mine/results/verdicts.json").write_text("{}", encoding="utf-8")
    status, out, err = say("claims")
    assert status == 4
    assert "left out: not verdicts of this version" in err
    assert "Q16" in out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_command(shell: str, say: Say) -> None:
    status, out, _ = say("completion", shell)
    assert status == 0
    assert all(name in out for name in EVERY)
    assert "--minutes" in out


def test_the_script_for_bash_is_one(say: Say, tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(say("completion", "bash")[1], encoding="utf-8")
    script = (
        "set -e; source completion; COMP_WORDS=(claimbench com); COMP_CWORD=1; _shtab_claimbench; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == {"combine", "compare", "completion"}, done.stderr


def command(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **settings.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "claimbench", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        **settings,
    )


def test_the_help_comes_without_the_heavy_libraries() -> None:
    heavy = ["torch", "transformers", "pandas", "numpy", "snakemake", "rich", "pydantic", "matplotlib", "yaml"]
    code = (
        "import sys; from claimbench.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`claimbench list | head -1`."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "claimbench", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        said = running.stderr.read()
    assert running.returncode == 141
    assert said == b""


def test_no_colour_goes_into_a_pipe_and_none_where_it_is_not_wanted() -> None:
    assert "\x1b" not in command("list", "studies").stdout
    import pty

    for variables, is_coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        leader, follower = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TERM": "xterm-256color", **variables}
        code = "from claimbench.commands import output; output.table([output.Column('x')], [['supported']])"
        with subprocess.Popen([sys.executable, "-c", code], stdout=follower, env=environment):
            os.close(follower)
            told = b""
            while True:
                try:
                    piece = os.read(leader, 4096)
                except OSError:
                    break
                if not piece:
                    break
                told += piece
        os.close(leader)
        assert b"supported" in told
        assert (b"\x1b[32m" in told) == is_coloured


def test_what_goes_into_a_pipe_is_one_line_a_row() -> None:
    lines = command("list", "techniques").stdout.splitlines()
    assert len(lines) == 1 + len(optimizations.names())
    assert max(map(len, lines)) > 100
    assert all(line == line.rstrip() for line in lines)


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "studies").write_text("a file", encoding="utf-8")
    done = command("new", "mine", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "studies" in done.stderr
    if os.getuid() == 0:  # whom no mode of a folder keeps out
        locked = Path("/sys")
    else:
        (locked := tmp_path / "locked").mkdir(mode=0o555)
    done = command("new", "mine", cwd=locked)
    assert done.returncode == 1
    assert done.stderr.startswith("claimbench: cannot write (studies): ")
    assert done.stderr.count("\n") == 1


READ = (["run", "smollm2", "--prompt", "@{}"], ["check", "{}"], ["compare", "{}", "{}"], ["forecast", "--params", "{}"])
NAMED = (["run", "file:///{}"], ["run", "hf://a/{}"], ["run", "a/{}"], ["new", "{}"], ["new", "a", "--output", "{}"])


@pytest.mark.parametrize(
    ("arguments", "is_loop"), [*((one, False) for one in (*READ, *NAMED)), *((one, True) for one in READ)]
)
def test_a_name_that_no_file_can_have_is_told_in_one_line(
    arguments: list[str], is_loop: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "loop" if is_loop else "x" * 5000
    if is_loop:
        Path(name).symlink_to(name)
    assert main([one.format(name) for one in arguments]) in (1, 2, 3, 4)
    assert capsys.readouterr().err.splitlines()[-1].startswith("claimbench: ")


def test_a_workflow_that_failed_is_status_1_and_says_where_its_logs_are(tmp_path: Path) -> None:
    from claimbench.workflow import run_folder

    (tmp_path / "Snakefile").write_text("rule all:\n    shell: 'exit 3'\n", encoding="utf-8")
    said: list[str] = []
    with pytest.raises(run_folder.Failed, match=f"its logs are in {tmp_path}/logs") as told:
        run_folder.snakemake(tmp_path, said.append)
    assert told.value.exit_status == 1
    assert any("exit 3" in line for line in said)


def test_the_page_of_commands_names_each_of_them_and_every_status() -> None:
    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `claimbench ([a-z]+)", page, flags=re.MULTILINE) == list(commands.PEOPLE)
    statuses = re.findall(r"^  (\d+)  ", parsing.EXIT_STATUSES, flags=re.MULTILINE)
    assert re.findall(r"^\| (\d+) \|", page, flags=re.MULTILINE) == statuses
