"""Plan, table, verdicts and ceilings -> report.md, report.html, their figures, and DVC's metrics and plots.

Needs no model, no GPU and no torch. The same inputs give the same bytes: nothing here asks for the time or the machine.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from claimbench.formatting import count, number, percent, slug
from claimbench.reporting import dvc_files, markup, page, recommendations
from claimbench.reporting.report_data import ReportData
from claimbench.reporting.template_environment import environment_of
from claimbench.reporting.view import View, view_of
from claimbench.schema import durable
from claimbench.schema.ceilings import Ceilings
from claimbench.schema.plan import Plan
from claimbench.schema.rendering import Origin
from claimbench.schema.round import Rounds
from claimbench.schema.verdicts import Verdicts

if TYPE_CHECKING:
    import jinja2
    import pandas as pd


def render(
    plan: Plan,
    table: pd.DataFrame,
    verdicts: Verdicts,
    ceilings: Ceilings,
    folder: Path,
    rounds: Rounds | None = None,
    *,
    origin: Origin | None = None,
    root: str = "../",
) -> None:
    """Write `report.md`, `report.html`, `figures/*.svg`, `metrics.json` and `plots/*.csv` into `folder`.

    `root` leads from `folder` to the folder that holds `results`, for links.
    """
    data = ReportData(plan, table, verdicts, ceilings)
    view = view_of(data, rounds, origin)
    _write(folder, "report.md", _markdown(view, root))
    _write(folder, "report.html", page.html(view, data, root))
    _write_folder(folder / "figures", {illustration.file: illustration.svg for illustration in view.figures})
    _write_folder(folder / "plots", dvc_files.csv_files(data))
    metrics = dvc_files.metrics_json(data, rounds)
    _write(folder, "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")


def _markdown(view: View, root: str) -> str:
    text = _template("report.md.j2").render(view._asdict(), root=root)
    return re.sub(r"\n{3,}", "\n\n", text)


def _write(folder: Path, name: str, text: str) -> None:
    durable.write(folder / name, text.encode())


def _write_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Exactly `files`: what an earlier render left is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, text in files.items():
        _write(folder, name, text)


def _template(name: str) -> jinja2.Template:
    environment = environment_of("claimbench.reporting", is_html=False)
    environment.filters |= {"percent": percent, "number": number, "slug": slug, "links": links, "cell": markup.literal}
    environment.filters["html"] = markup.xml
    environment.filters |= {name: getattr(markup, name) for name in ("alternative", "code", "fenced", "link", "prose")}
    environment.globals |= {"count": count, "advice_note": recommendations.NOTE}
    return environment.get_template(name)


def links(paths: Sequence[str], root: str) -> str:
    """Links to raw results, from the report's folder: `block 0, block 1` of one cell, or `cell/0, ...` of several."""
    several = len({PurePosixPath(path).parent for path in paths}) > 1
    texts = [markup.alternative(_link_text(PurePosixPath(path), several)) for path in paths]
    return ", ".join(f"[{text}]({root}{markup.file_address(path)})" for text, path in zip(texts, paths, strict=True))


def _link_text(path: PurePosixPath, several: bool) -> str:
    of_rounds = path.parent.name == "rounds"
    return f"{path.parent.parent.name}/{path.stem}" if several and not of_rounds else markup.file_label(str(path))
