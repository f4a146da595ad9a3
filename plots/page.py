"""Writes page.html, the page of `dvc plots`, with Vega inside: DVC's own page asks a network for it.

python plots/page.py             needs npm; run it to raise a version
"""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from pathlib import Path

LIBRARIES = {"vega": "5.33.1", "vega-lite": "5.23.0", "vega-embed": "6.29.0"}
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Claimbench: plots</title>
{refresh_tag}
<!-- Written by page.py. Vega (BSD-3-Clause), with its licence:

%s
-->
%s
<style>body { font-family: system-ui, sans-serif; margin: 1.5rem } .vega-embed { margin: 0 0 2rem }</style>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def packed(name: str, folder: Path) -> tarfile.TarFile:
    command = ["npm", "pack", "--silent", f"{name}@{LIBRARIES[name]}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return tarfile.open(folder / f"{name}-{LIBRARIES[name]}.tgz")


def read(package: tarfile.TarFile, path: str) -> str:
    member = package.extractfile(f"package/{path}")
    if member is None:
        raise FileNotFoundError(path)
    return member.read().decode()


def main() -> None:
    scripts, licence = [], ""
    with tempfile.TemporaryDirectory() as name:
        for library in LIBRARIES:
            with packed(library, Path(name)) as package:
                licence = read(package, "LICENSE") if library == "vega-lite" else licence  # vega's lies in no package
                text = read(package, f"build/{library}.min.js").partition("\n//# sourceMappingURL")[0]
            if "</script" in text or "<!--" in text:
                raise ValueError(f"{library} cannot stand inside a page as it is")
            scripts.append(f"<script>{text}</script>")
    page = PAGE % (licence.strip().replace("--", "- -"), "\n".join(scripts))
    Path(__file__).with_name("page.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
