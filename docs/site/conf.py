"""The documentation site: README is its home, and its other pages are the Markdown files that are read elsewhere too.

    make site        strictly, so that a link that leads nowhere is an error; the pages come to build/site

Sphinx with MyST and Furo: all three are well kept, and what they write asks a network for nothing, fonts and search
included. The whole repository is the source folder, since links of the pages lead into it: other pages become links
between pages, and files (source code, raw results) are copied beside them.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent)]

project = "Claimbench"
copyright = "Claimbench contributors, Apache-2.0"
extensions = ["myst_parser", "pages"]

root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "reports/*.md", "reports/*/report.md"]
include_patterns += ["tests/unit/data/configs/SOURCES.md"]
exclude_patterns = [
    *(path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("docs", "reports", "tests")),
    "reports/report.md",  # a run's own
]

myst_enable_extensions = ["html_image"]
myst_heading_anchors = 4
nitpicky = True

html_theme = "furo"
html_title = "Claimbench"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
