"""A shell's completion of commands, arguments and names."""

from __future__ import annotations

import argparse

ABOUT = "print a script with which a shell completes commands and their arguments"
EXAMPLES = (
    "claimbench completion bash > ~/.local/share/bash-completion/completions/claimbench",
    "claimbench completion zsh > ~/.zfunc/_claimbench",
)
SHELLS = ("bash", "zsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell, e.g. bash")


def run(arguments: argparse.Namespace) -> None:
    import shtab

    from claimbench.commands.parser import make

    whole = make([])
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            action.help = "a command"  # what is left out of the help is left out of completion, too
    print(shtab.complete(whole, arguments.shell))
