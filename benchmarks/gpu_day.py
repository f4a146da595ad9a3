"""What half an hour of a GPU is to find out: are all paths right, how fast are they, and does the product run there?

    make gpu-day-pack                                          here: wheels and a checkpoint, in build/gpu-day
    python benchmarks/gpu_day.py right --pack build/gpu-day --out FOLDER       there: nine minutes
    python benchmarks/gpu_day.py fast --pack build/gpu-day --out FOLDER        there: nine minutes
    python benchmarks/gpu_day.py product --pack build/gpu-day --out FOLDER     there: nine minutes
    python benchmarks/gpu_day.py render FOLDER                 here: a page beside reports/

There needs no network: torch, Transformers and the usual scientific packages are installed, what they lack is in the
pack. A stage that was ended goes on when it is called again with the same folder. `--device cpu --tiny` tries a stage
on any machine. Of the checkpoint, each part may travel with another stage: `product` finds them all in `--bundle`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STAGES = ("right", "fast", "product")
DEADLINE_S = 530.0


def use(folders: list[Path]) -> None:
    """Import from `folders` first, here and in every process that is started."""
    names = [str(folder) for folder in folders]
    sys.path[:0] = names
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*names, *([known] if known else [])])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, "pack", "render"))
    parser.add_argument("folder", type=Path, nargs="?", help="of results, for render; to write, for pack")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shapes that a CPU runs in seconds")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-day-out"), help="where results stay")
    parser.add_argument("--pack", type=Path, help="the folder that pack wrote")
    parser.add_argument("--bundle", type=Path, help="a folder with the checkpoint's parts; else the pack's")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-day-work", help="of the stage product")
    parser.add_argument("--deadline", type=float, default=DEADLINE_S, help="seconds for the stage")
    parser.add_argument("--minutes", type=float, default=3.0, help="for the rounds of the stage product")
    parser.add_argument("--again", action="store_true", help="run what failed before once more")
    parser.add_argument("--only", default="", metavar="PATTERN", help="of names of checks; the others stay as they are")
    parser.add_argument("--name", default="", help="of the machine, in the name of the page that render writes")
    return parser.parse_args()


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:  # by the stage's own runner, which prepared the environment
        from gpu_day import stage

        stage.serve(sys.argv[2], json.loads(sys.stdin.read()))
        return 0
    arguments = parsed()
    if arguments.stage == "pack":
        from gpu_day import pack

        print("\n".join(pack.pack(ROOT, arguments.folder or ROOT / "build" / "gpu-day")))
        return 0
    if arguments.stage == "render":
        from gpu_day import render

        print(render.render(arguments.folder or arguments.out, ROOT / "reports", arguments.name))
        return 0
    with tempfile.TemporaryDirectory(prefix="gpu-day-") as folder:
        folders = [ROOT / "src", HERE]
        if arguments.pack:
            from gpu_day import pack

            folders.append(pack.unpack(arguments.pack, Path(folder) / "site"))
        use(folders)
        from gpu_day import record, stage

        bundle = arguments.bundle or (arguments.pack / "checkpoint" if arguments.pack else None)
        context = stage.Context(
            device=arguments.device,
            tiny=arguments.tiny,
            scratch=Path(folder),
            out=arguments.out.resolve(),
            work=arguments.work.resolve(),
            bundle=bundle.resolve() if bundle else None,
            minutes=arguments.minutes,
        )
        found = stage.run_stage(arguments.stage, context, arguments.deadline, arguments.again, arguments.only)
        print("\n".join(record.table_of(found)))
    return 1 if any(row["verdict"] == record.FAIL for row in found.rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
