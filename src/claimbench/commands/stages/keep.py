"""Reports that git keeps, with the raw results that they are made of."""

from __future__ import annotations

import argparse
from pathlib import Path

ABOUT = "copy a plan's raw results beside its report, for git; without a plan, render kept reports anew"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", type=Path, help="results/plan/<digest>.json, of the run to keep")
    parser.add_argument("--folders", type=Path, nargs="+", required=True, help="the report's folder; of kept ones: all")


def run(arguments: argparse.Namespace) -> None:
    from claimbench import gallery

    if arguments.plan:
        gallery.keep(arguments.plan, Path(), arguments.folders[0])
        return
    for folder in arguments.folders:
        gallery.render(folder)
        print(folder / "report.md")
