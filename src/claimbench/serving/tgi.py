"""How text-generation-inference speaks and is started: its native API, its launcher, its container.

The API is that of its last release, 3.3.7: `/generate_stream` sends one event a token, and with `details` a last one
that counts; `/info` says what it serves. The launcher's flags are the same inside and outside of a container.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from claimbench.errors import WrongOutput
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


def launch(
    engine: Engine, image: str | None, checkpoint: Path, asked: Asked, port: int, cuda: bool, healthy_s: float
) -> Launch:
    """The command that serves `checkpoint` at `port`."""
    flags = list(asked.flags)
    if engine == "launcher":
        sockets = Path(tempfile.mkdtemp(prefix="claimbench-tgi-")) / "server"
        own = ["--hostname", LOOPBACK, "--port", str(port), "--prometheus-port", str(free_port())]
        own += ["--master-port", str(free_port()), "--shard-uds-path", str(sockets)]
        command = [LAUNCHER, "--model-id", str(checkpoint.resolve()), *own, *flags]
        return Launch(
            tuple(command), port, asked.environment, after=("rm", "-rf", str(sockets.parent)), healthy_s=healthy_s
        )
    image = image or os.environ[IMAGE_VARIABLE]
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
