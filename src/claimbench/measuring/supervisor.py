"""Starts a block's worker, watches the clock, and turns whatever happens to it into an outcome."""

from __future__ import annotations

import getpass
import json
import os
import re
import signal
import subprocess
import threading
from contextlib import closing
from pathlib import Path
from typing import IO, cast

from claimbench.measuring.block_request import BlockRequest
from claimbench.measuring.messages import BlockFacts, Message
from claimbench.schema.cell import Cell
from claimbench.schema.outcome import Outcome
from claimbench.schema.result import Sample
from claimbench.system import control_groups, machine, scratch
from claimbench.system.cache import cache_folder
from claimbench.system.processes import end_group, last_lines

GRACE_S = 5.0


def supervise(request: BlockRequest, python: str) -> BlockFacts:
    """Fields of a result: what the worker said until it ended or its time was up, and how it ended.

    `python` is the interpreter that runs it.
    """
    with closing(scratch.Scratch(scratch.temporary())) as own:
        environment = environment_of(request.cell, own.folder)
        return _supervise_in(request, [python, "-m", "claimbench.measuring.worker"], environment)


def environment_of(cell: Cell, temporary: Path) -> dict[str, str]:
    """`temporary` is for whatever libraries leave behind: torchrun, for one, a folder of logs for each start."""
    threads = str(cell.protocol.threads or machine.usable_cores())
    _keep_compiled_headers(temporary)
    return {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # else the first question whether there is a GPU forbids to fork
        "TRANSFORMERS_VERBOSITY": "error",
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("inductor"))),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(temporary),
    }


def _keep_compiled_headers(temporary: Path) -> None:
    """torch precompiles C++ headers under TMPDIR, wherever its cache is told to be: ten seconds for each process."""
    kept = cache_folder("inductor-headers")
    kept.mkdir(parents=True, exist_ok=True)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid_{os.getuid()}"
    user = re.sub(r'[\\/:*?"<>|]', "_", user)  # as torch names it
    (temporary / f"torchinductor_{user}").symlink_to(kept)


def _supervise_in(request: BlockRequest, command: list[str], environment: dict[str, str]) -> BlockFacts:
    timeout_s = request.cell.protocol.timeout_s
    oom_kills = kernel_oom_kills()
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    messages: list[Message] = []
    lines = last_lines()
    readers = [
        threading.Thread(target=_collect_messages, args=(process.stdout, messages), daemon=True),
        threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True),
    ]
    for reader in readers:
        reader.start()
    timed_out = False
    try:
        try:
            process.stdin.write(request.model_dump_json())
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        end_group(process, GRACE_S)  # compilers among it
    for reader in readers:
        reader.join(timeout=GRACE_S)
    facts = facts_in(messages)
    facts |= _ending(process.returncode, messages, timed_out, timeout_s, kernel_oom_kills() - oom_kills)
    if facts["outcome"] != Outcome.OK:
        of_its_rank = messages[-1].get("detail") if messages else None
        facts["detail"] = (of_its_rank or "".join(lines))[-4000:] or None
    return facts


def _collect_messages(stream: IO[str], messages: list[Message]) -> None:
    for line in stream:
        try:
            message = json.loads(line)
        except ValueError:  # cut short by the death of the worker, or no message: all is read, or the worker would wait
            continue
        if isinstance(message, dict) and "event" in message:
            messages.append(cast("Message", message))


def facts_in(messages: list[Message]) -> BlockFacts:
    """What the worker said, as fields of a result."""
    facts: BlockFacts = {"warmup": [], "samples": [], "flags": []}
    for message in messages:
        match message["event"]:
            case "warmup":
                facts["warmup"].append(message["sample"])
            case "sample":
                facts["samples"].append(message["sample"])
            case "flag":
                facts["flags"].append(message["flag"])
            case "conditions":
                facts["conditions"] = message["conditions"]
                facts["telemetry"] = {"unread": message["unread"]}
            case "checkpoint":
                facts |= {"checkpoint_sha256": message["sha256"], "card": message["card"]}
            case "loaded":
                fed = message["prompt_ids"]
                facts |= {"load_ns": message["load_ns"], "prompt_tokens": len(fed), "prompt_ids": fed}
            case "memory":
                facts |= {"memory": message["memory"], "ranks": message.get("ranks", [])}
            case "proof":
                facts["proof"] = message["proof"]
            case "fidelity":
                facts["fidelity"] = message["fidelity"]
            case "energy":
                facts["energy_mj"] = message["energy_mj"]
            case "tokens":
                facts["tokens"] = message["tokens"]
    if facts["warmup"]:
        facts["first_call_ns"] = Sample.model_validate(facts["warmup"][0]).wall_ns
    return facts


def _ending(status: int | None, messages: list[Message], timed_out: bool, limit_s: float, oom_kills: int) -> BlockFacts:
    phase = next((m["name"] for m in reversed(messages) if m["event"] == "phase"), "start")
    last: Message = messages[-1] if messages else {"event": "none"}
    if last["event"] == "done":
        hashes = {m["sample"]["tokens_sha256"] for m in messages if m["event"] in ("warmup", "sample")}
        if len(hashes) > 1:
            return {
                "outcome": Outcome.WRONG,
                "reason": "generations of one block, warm-up included, differ in their tokens",
            }
        return {"outcome": Outcome.OK}
    if last["event"] == "refused":
        if last.get("signal") == "SIGKILL" and oom_kills > 0:
            return {"outcome": Outcome.OOM, "reason": f"{last['reason']} (by the kernel, for memory)"}
        return {"outcome": last["outcome"], "reason": last["reason"], "passing": last.get("passing", False)}
    if timed_out:
        return {"outcome": Outcome.TIMEOUT, "reason": f"over {limit_s:g} s, during: {phase}"}
    if status == -signal.SIGKILL and oom_kills > 0:
        return {"outcome": Outcome.OOM, "reason": f"killed by the kernel for memory, during: {phase}"}
    how = f"killed by {signal.Signals(-status).name}" if status and status < 0 else f"ended with status {status}"
    return {"outcome": Outcome.ERROR, "reason": f"the worker was {how}, during: {phase}", "passing": True}


def kernel_oom_kills() -> int:
    """Processes that the kernel has killed for memory, in this control group and on this machine."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    counts = (line.removeprefix("oom_kill ").strip() for line in lines if line.startswith("oom_kill "))
    return control_groups.oom_kills() + sum(int(count) for count in counts if count.isdecimal())
