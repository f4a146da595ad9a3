"""Write the pinned locks from the environment that this runs in, for maintainers; see CONTRIBUTING.md.

    python envs/lock.py             core.lock and dev.lock: all that the package's dependencies and extras reach
    python envs/lock.py deepspeed   deepspeed.lock: all that the names in deepspeed.in reach

Local build tags (such as +cpu) are left out, so that a lock means the same release on every machine.
"""

from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
ALWAYS = ("setuptools",)


def closure(requirements: list[str]) -> dict[str, str]:
    """Distribution name -> version of everything that `requirements` reach here."""
    found: dict[str, str] = {}
    pending = [(Requirement(text), "") for text in requirements]
    while pending:
        requirement, extra = pending.pop()
        environment = {**default_environment(), "extra": extra}
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        name = canonicalize_name(requirement.name)
        distribution = metadata.distribution(requirement.name)
        new = name not in found
        found[name] = distribution.version.split("+")[0]
        for extra_name in ("", *requirement.extras) if new else requirement.extras:
            pending += [(Requirement(text), extra_name) for text in distribution.requires or []]
    return found


def write(path: Path, first: str, pins: dict[str, str]) -> None:
    lines = [first, *(f"{name}=={pins[name]}" for name in sorted(pins))]
    path.write_text("\n".join(line for line in lines if line) + "\n", encoding="utf-8")


def write_family(family: str) -> None:
    """The lock of a backend family, from an environment in which its names are installed."""
    lines = (HERE / f"{family}.in").read_text(encoding="utf-8").splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    first = f"# Written by envs/lock.py from envs/{family}.in."
    write(HERE / f"{family}.lock", first, closure(names))


def main() -> None:
    if sys.argv[1:]:
        write_family(sys.argv[1])
        return
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    core = closure([*project["dependencies"], *ALWAYS])
    dev = closure([*extras["test"], *extras["check"], *extras["slurm"]])
    write(HERE / "core.lock", "# Written by envs/lock.py.", core)
    new = {name: version for name, version in dev.items() if name not in core}
    write(HERE / "dev.lock", "# Written by envs/lock.py.\n-r core.lock", new)


if __name__ == "__main__":
    main()
