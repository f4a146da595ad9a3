"""How text-generation-inference speaks and is started: its native API, its launcher, its container.

The API is that of its last release, 3.3.7: `/generate_stream` sends one event a token, and with `details` a last one
that counts; `/info` says what it serves. The launcher's flags are the same inside and outside of a container. Older
releases call some of them otherwise or lack them, document A's 1.3.3 among them: the launcher's own help is asked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from claimbench.errors import ServerFailed, Unavailable, WrongOutput
from claimbench.proof import Findings
from claimbench.serving.client import (
    CompletionRequest,
    JsonObject,
    RequestFailed,
    ServerAnswer,
    StreamEvent,
    Usage,
    number,
    read_as,
)
from claimbench.serving.process import Launch
from claimbench.system.processes import LOOPBACK, free_port

Engine = Literal["launcher", "docker", "podman", "apptainer"]

LAUNCHER = "text-generation-launcher"
CONTAINERS: tuple[Engine, ...] = ("docker", "podman", "apptainer")
IMAGE_VARIABLE = "CLAIMBENCH_TGI_IMAGE"
INSIDE = "/model"
FORMERLY = {"--max-input-tokens": "--max-input-length"}
"""Flags and fields of `/info` that were renamed, in April 2024."""
COUNTERS = ("tgi_request_count", "tgi_request_success", "tgi_request_failure", "tgi_batch_next_size")


class Token(ServerAnswer):
    id: int
    text: str | None = None


class Details(ServerAnswer):
    finish_reason: str
    generated_tokens: int
    input_length: int | None = None


class TokenEvent(ServerAnswer):
    token: Token
    details: Details | None = None
    generated_text: str | None = None


@dataclass(frozen=True)
class Generate:
    """The native API. It cannot run past an end of sequence: an answer that meets one is too short, and refused."""

    details: bool
    path: str = "/generate_stream"

    @property
    def counts(self) -> bool:
        return self.details

    def body(self, ask: CompletionRequest) -> JsonObject:
        parameters = {"max_new_tokens": ask.new_tokens, "do_sample": False, "details": self.details}
        return {"inputs": ask.prompt, "parameters": parameters}

    def read(self, event: JsonObject) -> StreamEvent:
        if "error" in event:
            raise RequestFailed("failed", f"the server broke off with {event.get('error_type')}: {event['error']}")
        answer = read_as(TokenEvent, event, "an event without a token, or with other details")
        details = answer.details
        finish = details.finish_reason if details else ("done" if answer.generated_text is not None else None)
        usage = Usage(details.input_length, details.generated_tokens) if details else None
        return StreamEvent(answer.token.text or "", (answer.token.id,), finish, usage)


@dataclass(frozen=True)
class Launcher:
    """What starts it here, and the flags that its help names: none where that could not be read.

    Then it is started with the last release's, and what it says to them is the reason of its failure.
    """

    engine: Engine
    flags: frozenset[str] = frozenset()

    def knows(self, flag: str) -> bool:
        return not self.flags or flag in self.flags

    def spoken(self, flags: Iterable[str]) -> list[str]:
        """`flags` by the names that this release has for them."""
        return [FORMERLY[flag] if flag in FORMERLY and not self.knows(flag) else flag for flag in flags]

    def graphs(self, wanted: bool | None) -> tuple[list[str], str]:
        """The flags that switch CUDA graphs on or off, or leave them as the release has them, and how they are then.

        The last release has them unless it is told otherwise, late ones of 1.4 on demand, and earlier ones not at all.

        Raises:
            Unavailable: they are wanted, and this release has none.
        """
        if self.knows("--cuda-graphs"):
            return (["--cuda-graphs", "0"], "off") if wanted is False else ([], "on")
        if self.knows("--enable-cuda-graphs"):
            return (["--enable-cuda-graphs"], "on") if wanted else ([], "off")
        if wanted:
            raise Unavailable("this release of text-generation-inference has no CUDA graphs")
        return [], "off: this release has none"


@dataclass(frozen=True)
class Asked:
    """What the launcher is asked for, as its flags."""

    flags: tuple[str, ...]
    environment: dict[str, str]


def engine_here() -> Engine | None:
    """The first of what can start it: its launcher, else a container engine."""
    if shutil.which(LAUNCHER):
        return "launcher"
    return next((engine for engine in CONTAINERS if shutil.which(engine)), None)


def missing(image: str | None) -> str | None:
    """Why nothing here can start it; None where something can."""
    engine, named = engine_here(), image or os.environ.get(IMAGE_VARIABLE)
    if engine is None:
        return f"not installed: {', '.join((LAUNCHER, *CONTAINERS))}"
    if engine == "launcher":
        return None
    if named is None:
        return f"{engine} is there, and no image is named: set {IMAGE_VARIABLE} to one with its digest"
    return None if "@sha256:" in named else f"the image {named} is not pinned: expected name@sha256:digest"


def launcher(image: str | None, limit_s: float) -> Launcher:
    """What starts it here, with the flags that it knows.

    Raises:
        Unavailable: nothing here can start it.
        ServerFailed: it does not answer within `limit_s`, in which an image may have to be fetched.
    """
    engine, reason = engine_here(), missing(image)
    if engine is None or reason:
        raise Unavailable(str(reason))
    name = f"claimbench-tgi-help-{os.getpid()}"
    run = {
        "launcher": [LAUNCHER],
        "apptainer": ["apptainer", "run", f"docker://{_named(image)}"],
    }.get(engine) or [engine, "run", "--rm", "--name", name, _named(image)]
    try:
        said = subprocess.run(
            [*run, "--help"], stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        if engine in ("docker", "podman"):
            subprocess.run([engine, "rm", "--force", name], capture_output=True, check=False)
        raise ServerFailed(f"`{' '.join(run)} --help` did not answer within {limit_s:g} s") from None
    text = said.stdout.decode("utf-8", errors="replace") if said.returncode == 0 else ""
    return Launcher(engine, frozenset(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)))


def _named(image: str | None) -> str:
    return image or os.environ.get(IMAGE_VARIABLE, "")


def launch(
    starts: Launcher, image: str | None, checkpoint: Path, asked: Asked, port: int, cuda: bool, healthy_s: float
) -> Launch:
    """The command that serves `checkpoint` at `port`."""
    engine, flags = starts.engine, starts.spoken(asked.flags)
    if engine == "launcher":
        sockets = Path(tempfile.mkdtemp(prefix="claimbench-tgi-")) / "server"
        own = ["--hostname", LOOPBACK, "--port", str(port)]
        own += ["--prometheus-port", str(free_port())] if starts.knows("--prometheus-port") else []
        own += ["--master-port", str(free_port()), "--shard-uds-path", str(sockets)]
        command = [LAUNCHER, "--model-id", str(checkpoint.resolve()), *own, *flags]
        return Launch(
            tuple(command), port, asked.environment, after=("rm", "-rf", str(sockets.parent)), healthy_s=healthy_s
        )
    image = _named(image)
    mount = f"{checkpoint.resolve()}:{INSIDE}:ro"
    if engine == "apptainer":
        command = ["apptainer", "run", *(["--nv"] if cuda else []), "--bind", mount]
        command += [f"--env={name}={value}" for name, value in asked.environment.items()]
        command += [f"docker://{image}", "--model-id", INSIDE, "--hostname", LOOPBACK, "--port", str(port), *flags]
        return Launch(tuple(command), port, {}, healthy_s=healthy_s)
    name = f"claimbench-tgi-{os.getpid()}-{port}"
    command = [engine, "run", "--rm", "--name", name, "--shm-size", "1g", "--publish", f"{LOOPBACK}:{port}:80"]
    command += (["--gpus", "all"] if engine == "docker" else ["--device", "nvidia.com/gpu=all"]) if cuda else []
    command += ["--volume", mount]
    for variable, value in asked.environment.items():
        command += ["--env", f"{variable}={value}"]
    command += [image, "--model-id", INSIDE, "--port", "80", *flags]
    return Launch(tuple(command), port, {}, after=(engine, "rm", "--force", name), healthy_s=healthy_s)


def check_info(info: JsonObject, models: tuple[str, ...], limits: dict[str, int]) -> Findings:
    """What `/info` says, if it is what was asked for.

    Raises:
        WrongOutput: another model, or other limits of tokens.
    """
    if info.get("model_id") not in models:
        raise WrongOutput(f"asked for the model {' or '.join(models)}, the server has {info.get('model_id')}")
    formerly = {new[2:].replace("-", "_"): old[2:].replace("-", "_") for new, old in FORMERLY.items()}
    info = {name: info[formerly[name]] for name in formerly if formerly[name] in info} | info
    other = {name: info.get(name) for name, asked in limits.items() if info.get(name) != asked}
    if other:
        differences = ", ".join(f"{name} {value} instead of {limits[name]}" for name, value in other.items())
        raise WrongOutput(f"the server was started with other limits: {differences}")
    kept = ("model_id", "model_sha", "version", "sha", "docker_label", "router", *limits)
    return {name: info.get(name) for name in kept}


def counters(text: str) -> dict[str, float]:
    """Counters of the metrics page, labels summed up."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        plain = name.partition("{")[0]
        if plain in COUNTERS or plain.endswith("_count"):
            found[plain] = found.get(plain, 0.0) + number((rest.split() or [""])[-1])
    return found
