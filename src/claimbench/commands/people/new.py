"""A study to begin with."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from claimbench.errors import ConfigError

ABOUT = "write a study with a comment on every part, to be edited"
EXAMPLES = ("claimbench new mine", "claimbench new mine --model smollm2 --output -", "claimbench run studies/mine.yaml")
SKELETON = """\
# A study: experiments, and claims about them. `claimbench run {path}` measures it, and so does `snakemake` in a clone
# whose params.yaml names it under `studies`.
title: What is this study about?
document:                       # where the claims come from
  title: My own question
  # url: https://...
  # measured: the hardware, model and lengths that it measured

prompts:                        # by name: text to go on with, or {{user: ..., base: ...}} for a chat model
  question:
    user: Explain in three sentences why the sky is blue.
    base: The sky is blue because

defaults:                       # of every cell; an experiment's `hold` and a cell itself come before them
  checkpoint: {model}
  prompt: question
  new_tokens: 32                # each generation has exactly so many
  dtype: float32                # or bfloat16, float16
  # prompt_tokens: 512          # cut or repeat the prompt to so many
  # batch: 1

measure:
  budget_minutes: 5             # or fewer, as soon as every claim and every advice has its interval

experiments:
  attention:                    # what is compared: cells that differ in one thing
    question: What does fused attention do for a short prompt?
    cells:                      # `claimbench list techniques backends` names what a cell can have
      plain: {{title: Plain Transformers}}
      sdpa: {{title: Fused attention, optimizations: [sdpa]}}
      # lookup: {{title: Prompt lookup, optimizations: [{{prompt_lookup: {{tokens: 10}}}}]}}
      # engine: {{title: "Claimbench's engine", backend: engine}}
    # sweep: {{batch: [1, 4, 16]}}  # every cell at each of these values, addressed as attention/plain@batch=4

claims:
  - id: M1
    kind: ratio                 # for a reader: ratio, shape, identity, size or absolute
    statement: Fused attention decodes faster
    checks:                     # the claim is supported where all of them are
      - kind: ratio             # metric(of) / metric(to); `claimbench list metrics` names metrics
        metric: decode_tok_s
        of: attention/sdpa
        to: attention/plain
        expect: above           # or below, same, {{at_least: 2}}, {{about: 1, within: 0.1}}
  - id: M2
    kind: identity
    statement: Fused attention changes no token
    checks:
      - {{kind: identity, of: attention/sdpa, to: attention/plain}}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of the study, e.g. mine")
    parser.add_argument("--model", default="smollm2", help="a checkpoint of params.yaml; default: smollm2")
    parser.add_argument("--output", metavar="FILE", help="default: studies/<name>.yaml here; - for standard output")


def run(arguments: argparse.Namespace) -> None:
    from claimbench.commands import output
    from claimbench.commands.people.run import known_params
    from claimbench.planning.nearest import nearest

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", arguments.name):
        raise ConfigError(f"expected a name of letters, digits, dashes and underscores, got {arguments.name!r}")
    known = known_params()["checkpoints"]
    if arguments.model not in known:
        hint = nearest(arguments.model, known, "`claimbench list models` names them.")
        raise ConfigError(f"--model: unknown model '{arguments.model}'.{hint}")
    path = Path(arguments.output or f"studies/{arguments.name}.yaml")
    text = SKELETON.format(path=path if arguments.output != "-" else "FILE", model=arguments.model)
    if arguments.output == "-":
        sys.stdout.write(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path} is there already: name another, or delete it") from None
    output.say(f"{path}: edit it, then `claimbench run {path}`")
