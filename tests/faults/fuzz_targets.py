"""What the fuzzer reads: for each kind of file some that are right, what reads it, and how it may refuse.

A target whose files are JSON, or hold JSON, is also changed node by node. What is sealed is sealed again: an edit is
what a seal is for, and behind it lies what a result of another machine or version may hold."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tests.faults.simulated import run as simulated
from tests.faults.test_gguf import array, entry, file_of, tensor, text
from tests.unit.conftest import CPU, HEAD, measured

from claimbench.analysis import aggregate, table_file
from claimbench.backends import llama_server
from claimbench.checkpoints import (
    cards,
    fetch,
    gguf,
    gguf_config,
    local_files,
    manifest,
    model_config,
    safetensors_file,
    tokenizer,
)
from claimbench.deciding import decide
from claimbench.deciding.advised import groups_of_advice
from claimbench.errors import ConfigError, CorruptCheckpoint, ResultError, ServerFailed, SourceError, WrongOutput
from claimbench.judging.judge import judge
from claimbench.planning.paths import labels
from claimbench.planning.plan import make_plan
from claimbench.schema import ceilings, frontier, result, sealed, verdicts
from claimbench.schema import plan as plan_file
from claimbench.schema import round as round_file
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.frontier import Frontier, Trial
from claimbench.schema.params import load_params, load_studies
from claimbench.schema.plan import Plan
from claimbench.schema.round import Arm, Round, Turns
from claimbench.schema.study import Study
from claimbench.schema.validation import parse_yaml, read_yaml, validate
from claimbench.serving import tgi, vllm
from claimbench.serving.client import CompletionRequest, Dialect, Limits, ModelList, OpenAI, ask, message_of, read_as

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tests/unit/data/configs"


class Target(NamedTuple):
    name: str
    corpus: Callable[[], list[bytes]]
    read: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...]
    is_json: bool = False
    unpacked: Callable[[bytes], Any] = json.loads
    packed: Callable[[Any], bytes] = lambda value: json.dumps(value).encode()


def at(path: str, content: bytes) -> Path:
    """The content in a file of that name, in the current folder."""
    found = Path(path)
    found.parent.mkdir(parents=True, exist_ok=True)
    found.write_bytes(content)
    return found


# Configuration.

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
SMALL = {
    "studies": ["study"],
    "checkpoints": {"small": {"source": "random://smollm2-135m?seed=0", "architecture": "smollm2-135m"}},
    "measure": {"blocks": 2, "samples": 2, "budget_minutes": 5},
}
STUDY = (
    HEAD
    + """
experiments:
  pace:
    question: q
    hold: {dtype: float32}
    sweep: {batch: [1, 2, 4]}
    cells: {plain: {}, half: {options: {step_ms: 20}, page_cache: cold}}
  load:
    question: q
    cells: {one: {title: One, optimizations: [static_cache, {prompt_lookup: {tokens: 3}}], backend: transformers}}
claims:
- {id: A, kind: ratio, statement: s, published: 1.5 times, checks: [
    {kind: ratio, metric: decode_tok_s, of: pace/half@batch=1, to: pace/plain@batch=1, expect: {at_least: 1.5}},
    {kind: shape, metric: step_ms, of: pace/plain, over: batch, expect: {about: 1, within: 0.5}}]}
- {id: B, kind: identity, statement: s, checks: [{kind: identity, of: pace/half@batch=1, to: pace/plain@batch=1}]}
- {id: C, kind: outcome, statement: s, checks: [{kind: outcome, of: load/one, expect: ok}]}
"""
)


def read_study(content: bytes) -> None:
    study = validate(Study, read_yaml(at("studies/study.yaml", content)), "studies/study.yaml")
    make_plan(load_params(SMALL), {"study": study}, CPU, "cpu")


def read_params(content: bytes) -> None:
    params = load_params(read_yaml(at("params.yaml", content)))
    make_plan(params, load_studies(params.studies, ROOT / "studies"), CPU, "cpu")


def small_params() -> list[bytes]:
    return [yaml.safe_dump({**PARAMS, "studies": ["quickstart"]}).encode(), yaml.safe_dump(SMALL).encode()]


def studies() -> list[bytes]:
    return [words.encode() for words in (STUDY, simulated.HEAD + simulated.MIXED)]


def from_yaml(content: bytes) -> Any:
    return parse_yaml(content.decode(), "corpus")


# Checkpoints.


def read_safetensors(content: bytes) -> None:
    path = at("model.safetensors", content)
    for each in safetensors_file.read(path):
        if each.dtype in safetensors_file.DTYPE_BYTES:
            assert sum(len(part) for part in each.chunks()) == each.bytes
    safetensors_file.read_sizes(path)


def safetensors_of(header: Any) -> bytes:
    said = json.dumps(header).encode()
    return struct.pack("<Q", len(said)) + said + bytes(40)


def safetensors() -> list[bytes]:
    tensors = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b.weight": {"dtype": "BF16", "shape": [8], "data_offsets": [24, 40]},
    }
    return [safetensors_of(tensors)]


def header_of(content: bytes) -> Any:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def read_index(content: bytes) -> None:
    path = at("folder/model.safetensors.index.json", content)
    names = {
        "config.json",
        "tokenizer.json",
        path.name,
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    local_files.select(names, lambda _: at("folder/x", content).read_text(encoding="utf-8"), "folder")


def index() -> list[bytes]:
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    return [json.dumps({"metadata": {"total_size": 40}, "weight_map": files}).encode()]


def ggufs() -> list[bytes]:
    u32 = struct.Struct("<I").pack
    words = entry("tokenizer.ggml.tokens", 9, array(8, 3, text("a"), text("b"), text("c")))
    numbers = {"block_count": 1, "context_length": 64, "embedding_length": 32, "feed_forward_length": 64}
    numbers |= {"attention.head_count": 2, "attention.head_count_kv": 2, "vocab_size": 3}
    keys = [entry(f"llama.{name}", 4, u32(value)) for name, value in numbers.items()]
    keys += [entry("general.architecture", 8, text("llama")), words, entry("general.alignment", 4, u32(32))]
    keys += [entry("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5))]
    tensors = [tensor("token_embd.weight", 32, 3), tensor("blk.0.attn_q.weight", 32, kind=8, offset=384)]
    small = file_of(entry("a", 9, array(4, 2, u32(1), u32(2))), tensor("t", 4), tensors=1, entries=1)
    return [file_of(*keys, *tensors, tensors=2, entries=len(keys)), small]


def read_gguf(content: bytes) -> None:
    path = at("model.gguf", content)
    header = gguf.read(path)
    for each in header.tensors[:20]:
        gguf.dequantized(path, each)


def read_gguf_config(content: bytes) -> None:
    gguf_config.of(gguf.read(at("model.gguf", content)))


def configs() -> list[bytes]:
    return [path.read_bytes() for path in sorted(CONFIGS.glob("*.json"))] + [
        path.read_bytes() for path in sorted((ROOT / "src/claimbench/cost_model/architectures").glob("*.json"))[:12]
    ]


def read_config(content: bytes) -> None:
    """As far as a process of its own is not needed."""
    config = cards.read_config(at("config.json", content))
    model_config.method_of(config)
    model_config.with_layers(config, 2)
    model_config.parse(model_config.normalise(config, "config.json"), "config.json")


def read_card(content: bytes) -> None:
    """With counting, which takes seconds."""
    cards.card_of(cards.read_config(at("config.json", content)), "config.json")


def tokenizers() -> list[bytes]:
    folder = Path("right")
    folder.mkdir(exist_ok=True)
    tokenizer.write_byte_tokenizer(folder, 300, 64)
    named = {
        name: json.loads((folder / name).read_text("utf-8")) for name in ("tokenizer.json", "tokenizer_config.json")
    }
    return [json.dumps(named).encode()]


def read_tokenizer(content: bytes) -> None:
    shutil.rmtree("tokenizer", ignore_errors=True)
    try:
        named = json.loads(content)
        files = {name: json.dumps(named[name]).encode() for name in ("tokenizer.json", "tokenizer_config.json")}
    except (ValueError, KeyError, TypeError, RecursionError):
        files = {"tokenizer.json": content}
    for name, each in files.items():
        at(f"tokenizer/{name}", each)
    tokenizer.require_readable(Path("tokenizer"), "it")


def manifests() -> list[bytes]:
    tensors = {"a": {"dtype": "F32", "shape": [2, 3]}}
    files = [
        {"name": "model-00001-of-00001.safetensors", "bytes": 64, "sha256": "0" * 64, "tensors": tensors},
        {"name": "config.json", "bytes": 2, "sha256": "1" * 64, "tensors": {}},
    ]
    found = {"checkpoint": "tiny", "source": "file:///tiny", "parameters": 6, "files": files}
    assert manifest.Manifest.model_validate(found)
    return [json.dumps(found).encode()]


def read_manifest(content: bytes) -> None:
    found = manifest.read(at("checkpoint/manifest.json", content).parent)
    assert len(found.sha256) == 64
    assert found.weight_bytes >= 0
    manifest.problems(Path("checkpoint"), found.files)


def sources() -> list[bytes]:
    files = [{"name": "config.json", "bytes": 2, "sha256": "1" * 64, "tensors": {}}]
    return [json.dumps({"source": "hf://a/b", "revision": "c" * 40, "files": files}).encode()]


def read_source(content: bytes) -> None:
    fetch.read(at("fetched/source.json", content).parent)


# Servers.


def events() -> list[bytes]:
    def lines(*several: Any) -> bytes:
        return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in several) + b"data: [DONE]\n\n"

    choice = {"text": "a", "token_ids": [1]}
    usage = {"prompt_tokens": 4, "completion_tokens": 2}
    completions = [{"choices": [choice]}, {"choices": [{**choice, "finish_reason": "length"}]}, {"usage": usage}]
    token = {"token": {"id": 1, "text": "a"}}
    details = {"finish_reason": "length", "generated_tokens": 2, "input_length": 4}
    return [
        lines(*completions),
        lines(token, {**token, "details": details, "generated_text": "aa"}),
        b": alive\n\nevent: error\ndata: {}\n\n",
        lines({"error": {"message": "m"}}),
    ]


DIALECTS: tuple[Dialect, ...] = (OpenAI("m", {}, "token_ids"), OpenAI("m", {}), tgi.Generate(True), tgi.Generate(False))


def read_events(content: bytes) -> None:
    """As the body of an answer, which every dialect must bear; it counts as refused where none takes it."""
    refusals: list[Exception] = []
    for dialect in DIALECTS:
        try:
            asyncio.run(_answered(dialect, content))
        except (ServerFailed, WrongOutput) as error:
            refusals.append(error)
    if len(refusals) == len(DIALECTS):
        raise refusals[0]


async def _answered(dialect: Dialect, content: bytes) -> None:
    import httpx2

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=content)

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer), base_url="http://server") as client:
        await ask(client, dialect, CompletionRequest("p", 2), Limits(5, 5))


def in_events(content: bytes) -> Any:
    found = []
    for line in content.splitlines():
        if line.startswith(b"data: {"):
            found.append(json.loads(line[6:]))
    return found


def as_events(value: Any) -> bytes:
    several = value if isinstance(value, list) else [value]
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in several)


def answers() -> list[bytes]:
    info = {"model_id": "m", "max_input_tokens": 64, "max_total_tokens": 128}
    listed = {"data": [{"id": "m", "root": "/m"}], "object": "list"}
    return [
        json.dumps(each).encode() for each in (info, listed, {"error": {"message": "no"}}, {"detail": [{"msg": "m"}]})
    ]


def read_answer(content: bytes) -> None:
    words = content.decode("utf-8", "replace")
    message_of(words)
    try:
        value = json.loads(words)
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict):
        if "data" in value:
            read_as(ModelList, value, "not a list of models")
        if "model_id" in value:
            tgi.check_info(value, ("m",), {"max_input_tokens": 64})


def metric_pages() -> list[bytes]:
    return [
        b'# HELP x\ntgi_request_count{method="a"} 3\ntgi_request_success 2\ntgi_batch_next_size_count 7\n',
        b'vllm:request_success_total{finished_reason="stop",model_name="m"} 3.0\nvllm:num_preemptions_total 0.0\n',
        b"llamacpp:prompt_tokens_total 12\nllamacpp:tokens_predicted_total 40\n",
    ]


def read_metrics(content: bytes) -> None:
    words = content.decode("utf-8", "replace")
    tgi.counters(words)
    vllm.counters(words)
    llama_server.counters(words)


# Records.


@cache
def blocks_plan() -> Plan:
    return simulated.plan_of("blocks")


@cache
def rounds_plan() -> Plan:
    return simulated.plan_of("clear")


def sealed_as(kind: str) -> dict[str, Callable[..., Any]]:
    def packed(value: Any) -> bytes:
        try:
            seal = sealed.seal_of(value)
        except (ValueError, RecursionError):
            seal = "0" * 64
        return json.dumps({"seal": seal, kind: value}).encode()

    return {"unpacked": lambda content: json.loads(content)[kind], "packed": packed}


def sealed_ones(kind: str, records: list[Any]) -> list[bytes]:
    return [sealed_as(kind)["packed"](each.model_dump(mode="json")) for each in records]


def results() -> list[bytes]:
    planned = list(blocks_plan().cells.values())
    return sealed_ones("result", [measured(each, block) for each in planned for block in range(2)])


def read_result(content: bytes) -> None:
    """In place of a result of a plan, up to verdicts."""
    plan, found = blocks_plan(), result.read(at("0.json", content))
    places = {path: (planned, block) for planned in plan.cells.values() for block, path in enumerate(planned.paths())}
    for path in places:
        if not Path(path).exists():
            at(path, b"")

    def read(path: Path) -> Any:
        planned, block = places[str(path)]
        return found if (planned.cell.id, block) == (found.cell.id, found.block) else measured(planned, block)

    table = aggregate.aggregate(plan, Ceilings(), read=read)
    judge(plan, table)


def rounds() -> list[bytes]:
    plan = rounds_plan()
    found = []
    for number in range(2):
        arms = []
        for id, planned in plan.cells.items():
            record = measured(planned, number, prompt_ids=(1, 2))
            turns = tuple(Turns(number=at, places=(0,), begun_ns=0, ended_ns=1, samples=1) for at in range(2))
            arms.append(Arm(name=id, result=record.model_copy(update={"samples": record.samples[:2]}), turns=turns))
        conditions = {"foreign_cpu": 0.01, "slept_s": 0.0}
        rates = ({"read": 1e10, "float32": 1e12},)
        more = {"conditions": conditions, "rates": rates}
        found.append(Round(started_at="t", duration_s=60, seed=number, passes=2, arms=tuple(arms), **more))
    return sealed_ones("round", found)


def read_round(content: bytes) -> None:
    """Beside a round that is right, up to what is measured next."""
    folder = Path("rounds")
    shutil.rmtree(folder, ignore_errors=True)
    at("rounds/20260101T000000.000000Z.json", rounds()[0])
    at("rounds/20260101T000001.000000Z.json", content)
    round_file.read(folder / "20260101T000001.000000Z.json")
    plan = rounds_plan()
    decider = decide.Decider(plan, folder, lambda _: None)
    progress = decider.progress(is_over=True)
    decider.choose(progress, math.inf)
    for group in (*plan.groups, *groups_of_advice(plan, decider.is_worth_more)):
        decider.lacking(group, 2)
        decider.that_fits_in_time(group)
        decider.turns(group.cells, progress)
        decider.expected_s(group.cells, 2)


def summaries() -> list[bytes]:
    return sealed_ones(
        "rounds",
        [
            round_file.Rounds(budget_minutes=5, seals=seals, seconds=60, timed_seconds=30)
            for seals in ({}, {"rounds/1.json": "0" * 64})
        ],
    )


def read_summary(content: bytes) -> None:
    round_file.read_all(at("decided.json", content))


def plans() -> list[bytes]:
    return [json.dumps(plan.model_dump(mode="json")).encode() for plan in (blocks_plan(), rounds_plan())]


def read_plan(content: bytes) -> None:
    """Under the name that its content has, where it has one."""
    try:
        name = Plan.model_validate(json.loads(content)).seal[:12]
    except (ValueError, RecursionError):
        name = "000000000000"
    found = plan_file.read(at(f"{name}.json", content))
    Path(f"{name}.json").unlink()
    labels(found)


def all_ceilings() -> list[bytes]:
    limits = Ceilings(device="cpu", machine="m", read_bytes_per_s=1e10, matmul_flops_per_s={"float32": 1e12}, threads=2)
    return sealed_ones("ceilings", [limits])


def read_ceilings(content: bytes) -> None:
    ceilings.best_of([ceilings.read(at("ceilings.json", content), "m", "cpu")])


def frontiers() -> list[bytes]:
    trials = (
        Trial(batch=1, outcome="ok", reason=None, swept=True),
        Trial(batch=8, outcome="oom", reason="r", swept=True),
    )
    return sealed_ones("search", [Frontier(fits=1, fails=8, trials=trials, reason="r")])


def read_frontier(content: bytes) -> None:
    frontier.describe(frontier.read(at("frontier.json", content)))


@cache
def table() -> Any:
    plan = blocks_plan()
    for planned in plan.cells.values():
        for path in planned.paths():
            at(path, b"")
    made = {path: measured(each, number) for each in plan.cells.values() for number, path in enumerate(each.paths())}
    return aggregate.aggregate(plan, Ceilings(), read=lambda path: made[str(path)])


def all_verdicts() -> list[bytes]:
    return sealed_ones("verdicts", [judge(blocks_plan(), table())])


def read_verdicts(content: bytes) -> None:
    verdicts.read(at("verdicts.json", content))


def tables() -> list[bytes]:
    table_file.write(table(), Path("table.parquet"), Path("table.csv"), {"plan": "p"})
    return [Path("table.parquet").read_bytes()]


def read_table(content: bytes) -> None:
    table_file.read(at("table.parquet", content), {"plan": "p"})


SEALED = (ResultError,)
ALL = (
    Target("study", studies, read_study, (ConfigError,), True, from_yaml),
    Target("params", small_params, read_params, (ConfigError, SourceError), True, from_yaml),
    Target("manifest", manifests, read_manifest, (CorruptCheckpoint,), True),
    Target("source", sources, read_source, (SourceError,), True),
    Target("gguf", ggufs, read_gguf, (SourceError,)),
    Target("safetensors", safetensors, read_safetensors, (CorruptCheckpoint,), True, header_of, safetensors_of),
    Target("index", index, read_index, (SourceError,), True),
    Target("config", configs, read_config, (SourceError,), True),
    Target("tokenizer", tokenizers, read_tokenizer, (SourceError,), True),
    Target("events", events, read_events, (ServerFailed, WrongOutput), True, in_events, as_events),
    Target("answers", answers, read_answer, (ServerFailed, WrongOutput), True),
    Target("metrics", metric_pages, read_metrics, (ServerFailed,)),
    Target("result", results, read_result, SEALED, True, **sealed_as("result")),
    Target("round", rounds, read_round, SEALED, True, **sealed_as("round")),
    Target("rounds", summaries, read_summary, SEALED, True, **sealed_as("rounds")),
    Target("plan", plans, read_plan, SEALED, True),
    Target("ceilings", all_ceilings, read_ceilings, SEALED, True, **sealed_as("ceilings")),
    Target("frontier", frontiers, read_frontier, SEALED, True, **sealed_as("search")),
    Target("verdicts", all_verdicts, read_verdicts, SEALED, True, **sealed_as("verdicts")),
    Target("table", tables, read_table, SEALED),
)
BY_HAND = (
    Target("card", configs, read_card, (SourceError,), True),
    Target("gguf_config", ggufs, read_gguf_config, (SourceError,)),
)
"""With other libraries that take seconds: not part of `all`."""
TARGETS = {target.name: target for target in ALL}
