"""A message -> the prompt that a checkpoint's own chat template makes of it.

A template is code that comes with the weights. Transformers renders it in jinja's sandbox, where it reaches no file,
process or attribute; the time and the memory that a sandbox leaves open are limited by a process of its own, which is
forked: importing Transformers anew would take longer than many a model takes to load.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from claimbench.errors import SourceError, Unavailable
from claimbench.schema.cell import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RENDER_S = 10.0
SPARE_BYTES = 1 << 30
"""Of address space that a template may take beyond what the process has already."""
MOST_CHARACTERS = 1 << 18
"""Of a prompt."""
TODAY = {"%Y": "2024", "%m": "07", "%d": "26", "%B": "July", "%b": "Jul", "%A": "Friday", "%a": "Fri"}
"""What a template that asks for the date is told, or tokens would differ by day; the day is Llama 3.1's own default."""
DATE = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{code}', '{said}')" for code, said in TODAY.items())
    + " }}{% endmacro %}\n"
)
"""Hides the function of this name that Transformers gives to templates."""


def rendered(tokenizer: PreTrainedTokenizerBase, workload: Workload, checkpoint: Path) -> str:
    """The workload's message as text, up to where the model's answer begins.

    Raises:
        SourceError: the template refuses the message, or does not end.
        Unavailable: there is no template.
    """
    if not tokenizer.chat_template:
        raise Unavailable(
            f"the prompt is a message, and the tokenizer in {checkpoint} has no chat template: "
            "give the prompt a `base` text, or use a chat model"
        )
    system = [] if workload.system is None else [{"role": "system", "content": workload.system}]
    messages = [*system, {"role": "user", "content": workload.prompt}]

    def render() -> str:
        template = DATE + tokenizer.get_chat_template()
        return str(
            tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=False)
        )

    try:
        return _in_limits(render)
    except ValueError as error:
        raise SourceError(f"the chat template in {checkpoint} makes no prompt of the message: {error}") from None


def _in_limits(make: Callable[[], str]) -> str:
    """What `make` returns in a forked process.

    Raises:
        ValueError: it raised, ran over its time or memory, or made too much; one line.
    """
    context = multiprocessing.get_context("fork")
    reading, writing = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(make, writing), daemon=True)
    child.start()
    writing.close()
    try:
        if not reading.poll(RENDER_S):
            raise ValueError(f"it did not end within {RENDER_S:.0f} s")
        answer: dict[str, str] = json.loads(reading.recv_bytes())
    except EOFError:
        raise ValueError("it ended its process") from None
    finally:
        child.kill()
        child.join()
        reading.close()
    if "refused" in answer:
        raise ValueError(answer["refused"])
    return answer["text"]


def _answer(make: Callable[[], str], writing: Connection) -> None:
    try:
        _limit()
        text = make()
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"it made {len(text)} characters, which are more than {MOST_CHARACTERS}")
        answer = {"text": text}
    except BaseException as error:  # whatever a template raises, of jinja's kinds or its own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        answer = {"refused": first[:500]}
    writing.send_bytes(json.dumps(answer).encode())


def _limit() -> None:
    """Its own time and memory, so that it ends where the process that waits for it was killed."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    wanted = pages * os.sysconf("SC_PAGE_SIZE") + SPARE_BYTES
    for kind, most in ((resource.RLIMIT_AS, wanted), (resource.RLIMIT_CPU, int(RENDER_S) + 1)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
