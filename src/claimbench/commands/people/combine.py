"""Results of several machines as one report, a column a machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from claimbench.errors import ConfigError, ResultError
from claimbench.planning.nearest import nearest

ABOUT = "results of several machines as one report, with a column per machine"
EXAMPLES = (
    "claimbench combine results /mnt/h100/results /mnt/a10g/results --output reports/machines.md",
    "claimbench combine runs/* --metric decode_tok_s prefill_ms peak_bytes",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="of results, a column each, e.g. runs/a runs/b"
    )
    parser.add_argument(
        "--metric",
        nargs="+",
        default=["decode_tok_s", "peak_bytes"],
        metavar="M",
        help="to show of each cell (`claimbench list metrics`); default: decode_tok_s peak_bytes",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("reports/machines.md"), help="the file; default: reports/machines.md"
    )


def run(arguments: argparse.Namespace) -> int | None:
    from claimbench.commands import output
    from claimbench.exchange import folder, machines_report
    from claimbench.exchange.compare import Side
    from claimbench.schema import measured_elsewhere
    from claimbench.schema.metrics import METRICS

    for name in arguments.metric:
        if name not in METRICS:
            hint = nearest(name, METRICS, "`claimbench list metrics` names them.")
            raise ConfigError(f"--metric: unknown metric '{name}'.{hint}")
    sides = [Side(folder.find(path)) for path in arguments.folders]
    imported, status = [], None
    for path in sorted({path for side in sides for path in (side.folder.path / "measured_elsewhere").glob("*.json")}):
        try:
            imported.append(measured_elsewhere.read(path))
        except ResultError as error:
            output.note(f"left out: {error}")
            status = ResultError.exit_status
    text = machines_report.render(sides, tuple(arguments.metric), imported)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text, encoding="utf-8")
    output.say(f"the report: {arguments.output}")
    return status
