"""What the site adds to the Markdown pages: navigation, anchors of reports, and references made of the code itself."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import references
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

ORDER = ("studies", "techniques", "commands", "workflow", "machines", "checkpoints", "models", "failures", "glossary")
"""Of pages about use; others of docs/ come behind those about results."""
RESULTS = ("verdicts", "gallery", "statistics", "fidelity", "ceilings", "decode-forecast")


def toctree(caption: str, entries: list[str]) -> str:
    return "\n```{toctree}\n:hidden:\n" + f":caption: {caption}\n\n" + "\n".join(entries) + "\n```\n"


def navigation(root: Path) -> str:
    others = sorted({path.stem for path in (root / "docs").glob("*.md")} - {*ORDER, *RESULTS})
    return (
        toctree("Use", [f"docs/{name}" for name in ORDER])
        + toctree("Results", [f"docs/{name}" for name in (*RESULTS, *others)])
        + toctree("Project", ["CONTRIBUTING", "CHANGELOG"])
    )


def titles(root: Path) -> dict[str, str]:
    """Report -> the name that the gallery gives it."""
    page = (root / "docs/gallery.md").read_text(encoding="utf-8")
    return {path: title for title, path in re.findall(r"\[([^]]+)\]\(\.\./(reports/[^)]+)\.md\)", page)}


def reports(root: Path) -> str:
    return toctree("Reports", [f"/{path}" for path in titles(root)])


def sources(root: Path) -> str:
    return toctree("Sources", ["/tests/unit/data/configs/SOURCES"])


ADDED: dict[str, Callable[[Path], str]] = {
    "README": navigation,
    "docs/ceilings": sources,
    "docs/gallery": reports,
    "docs/commands": references.commands,
    "docs/studies": references.studies,
}
"""Page -> what is written behind it, of the root of the repository."""


def add(app: Sphinx, page: str, source: list[str]) -> None:
    root = Path(app.srcdir)
    if page in ADDED:
        source[0] += ADDED[page](root)
    title = titles(root).get(page) if page.startswith("reports/") else None
    if title:  # a search and the sidebar could not tell reports apart by their own titles
        source[0] = re.sub(r"\A# .*", f"# {title}", source[0])


class Anchors(SphinxTransform):
    """`<a id="x"></a>`, as a report marks its claims, becomes a target that links are checked against."""

    default_priority = 300

    def apply(self) -> None:
        for raw in list(self.document.findall(nodes.raw)):
            found = re.fullmatch(r'<a id="([\w-]+)">', raw.astext())
            if found:
                target = nodes.target("", "", ids=[found[1]], names=[found[1]])
                self.document.note_explicit_target(target)
                raw.replace_self(target)


def write_index(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        shutil.copyfile(app.outdir / "README.html", app.outdir / "index.html")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", add)
    app.add_transform(Anchors)
    app.connect("build-finished", write_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
