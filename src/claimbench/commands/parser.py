"""The parser of the command line, made of the command files: people's commands first, the workflow's stages below."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from claimbench import __version__, commands
from claimbench.errors import did_you_mean

DESCRIPTION = "Claims about the speed of language models, measured on this machine."

EXIT_STATUSES = """\
exit status:
  0  done
  1  something here is in the way: no permission, a full disk
  2  an argument, params.yaml or a study says something impossible
  3  a checkpoint cannot be had, or is not what was asked for
  4  a result cannot be trusted, or there is none
  5  `compare`: a cell is worse or a verdict flipped; `check`: not everything that was planned is there
  130  stopped by Ctrl-C
  141  the reader of the output went away, as `| head` does"""


class Parser(argparse.ArgumentParser):
    """Names the nearest command or argument where one is unknown, in one sentence and without the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {_with_hint(message, self)}\n")


def _with_hint(message: str, parser: argparse.ArgumentParser) -> str:
    unknown = re.match(r"argument (\S+): invalid choice: '([^']*)' \(choose from (.*)\)", message)
    if unknown and unknown[1] == "COMMAND":
        return f"unknown command '{unknown[2]}'.{did_you_mean(unknown[2], [*commands.PEOPLE, *commands.stage_names()])}"
    if unknown:
        choices = [word.strip("' ") for word in unknown[3].split(",")]
        return f"{unknown[1]}: unknown '{unknown[2]}'.{did_you_mean(unknown[2], choices)}"
    flag = re.match(r"unrecognized arguments: (-[^\s=]*)", message)
    if flag:
        known = {word for action in _all_actions(parser) for word in action.option_strings if word.startswith("--")}
        return f"unknown argument '{flag[1]}'.{did_you_mean(flag[1], known)}"
    return f"{message}. `{parser.prog} --help` says more."


def _all_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [
        *parser._actions,
        *(found for action in inner for each in action.choices.values() for found in each._actions),
    ]


def make(arguments: Sequence[str]) -> Parser:
    """The parser; where `arguments` begin with a command's name it knows no other, since a file a command is read."""
    asked = arguments[0] if arguments and arguments[0] in [*commands.PEOPLE, *commands.stage_names()] else None
    parser = Parser(
        prog="claimbench",
        usage="claimbench COMMAND ...\n       claimbench COMMAND --help",
        description=DESCRIPTION,
        epilog=None if asked else _epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"claimbench {__version__}")
    added = parser.add_subparsers(required=True, metavar="COMMAND", prog="claimbench", help=argparse.SUPPRESS)
    for name in [asked] if asked else [*commands.PEOPLE, *commands.stage_names()]:
        _add(added, name)
    return parser


def _add(added: argparse._SubParsersAction[Parser], name: str) -> None:
    module = commands.find(name)
    examples: tuple[str, ...] = getattr(module, "EXAMPLES", ())
    shown = "".join(f"\n  {example}" for example in examples)
    parser = added.add_parser(
        name,
        help=module.ABOUT,
        description=module.ABOUT[0].upper() + module.ABOUT[1:] + ".",
        epilog=f"examples:{shown}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)


def _epilog() -> str:
    wide = max(map(len, [*commands.PEOPLE, *commands.stage_names()])) + 2

    def lines(names: Sequence[str]) -> str:
        return "\n".join(f"  {name:{wide}}{commands.find(name).ABOUT}" for name in names)

    return (
        f"commands:\n{lines(commands.PEOPLE)}\n\n"
        f"stages, which the workflow's rules call:\n{lines(commands.stage_names())}\n\n{EXIT_STATUSES}"
    )
