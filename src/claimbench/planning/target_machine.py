"""The machine that a plan is for: this one, or a node of a cluster that was described before the plan was made.

SLURM's jobs run elsewhere than Snakemake, and a result's key names the machine that measured. So the description is
made on such a node, CLAIMBENCH_MACHINE says where it lies (sbatch hands the variable on to every job), and whoever
measures looks again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from claimbench.errors import ConfigError
from claimbench.schema.json_file import digest
from claimbench.schema.machine import MachineIdentity
from claimbench.system import machine

VARIABLE = "CLAIMBENCH_MACHINE"
NOT_IN_KEY = ("key", "system")


def planned_for() -> MachineIdentity:
    """What `machine.identify` says here, or said where the file was written that CLAIMBENCH_MACHINE names.

    Raises:
        ConfigError: the file is not such a description.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return machine.identify()
    try:
        described: MachineIdentity = json.loads(Path(path).read_text(encoding="utf-8"))
        facts = {name: value for name, value in described.items() if name not in NOT_IN_KEY}
        whole = described["key"] == digest(facts) and {"cpu", "gpus"} <= facts.keys()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{VARIABLE}={path}: cannot be read ({error}). {_MAKE}") from error
    if not whole:
        raise ConfigError(f"{VARIABLE}={path}: it was edited, or an older version wrote it. {_MAKE}")
    return described


_MAKE = "Write it anew, on a node as the jobs will get it: `python -m claimbench machine --output FILE`"


def expect_here(key: str) -> None:
    """Refuse to measure under the name of another machine.

    Raises:
        ConfigError: this machine is not the one that the plan is for.
    """
    here = machine.identify()
    if here["key"] != key:
        cpu = here["cpu"]
        has = f"{cpu['cores']} cores of {cpu['model']}, {here['memory_gb']} GB, {len(here['gpus'])} GPUs"
        raise ConfigError(f"the plan is for machine {key}, and this is {here['key']} ({has}): plan for it. {_MAKE}")
