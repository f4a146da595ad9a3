"""Figures that others measured with other tools, kept beside the results here and never among them."""

from __future__ import annotations

import argparse
from pathlib import Path

from claimbench.errors import ResultError

ABOUT = "keep figures of llama-bench, vllm bench, GuideLLM, AIPerf or optimum-benchmark, marked as measured by others"
EXAMPLES = (
    "claimbench import llama-bench.json",
    "claimbench import benchmarks.json --all",
    "claimbench import *.json --output /mnt/results/measured_elsewhere",
)
HEADS = ("tool", "model", "hardware", "figure", "statistic", "value", "near to")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="JSON or JSON lines, e.g. benchmarks.json")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/measured_elsewhere"),
        metavar="FOLDER",
        help="to keep them in; default: results/measured_elsewhere",
    )
    parser.add_argument("--all", action="store_true", help="show every figure, not only what is near to a metric")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> int | None:
    from claimbench.commands import output
    from claimbench.exchange import imported
    from claimbench.schema import measured_elsewhere

    rows, status = list[list[str]](), None
    for path in arguments.files:
        try:
            found = imported.read(path)
        except ResultError as error:
            output.note(str(error))
            status = ResultError.exit_status
            continue
        for record in found:
            measured_elsewhere.write(arguments.output / f"{record.source_sha256[:12]}-{record.place}.json", record)
            rows += _rows(record, everything=arguments.all)
    columns = [output.Column(head, is_number=head == "value") for head in HEADS]
    if arguments.json:
        output.as_json(columns, rows)
    elif rows:
        output.table(columns, rows)
        output.say("")
        output.say(f"measured by others: kept in {arguments.output}, in no table of results and in no verdict")
    return status


def _rows(record: object, *, everything: bool) -> list[list[str]]:
    from claimbench.formatting import quantity
    from claimbench.schema.measured_elsewhere import MeasuredElsewhere

    assert isinstance(record, MeasuredElsewhere)
    tool = f"{record.tool} {record.tool_version}" if record.tool_version else record.tool
    return [
        [
            tool,
            record.model or "",
            record.hardware or "",
            one.name,
            one.statistic,
            quantity(one.value, one.unit),
            one.near or "",
        ]
        for one in record.figures
        if everything or one.near
    ]
