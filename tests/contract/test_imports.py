"""What `load` needs is imported before its clock starts: a load is timed without Python's own start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from claimbench import backends
from claimbench.schema.cell import Cell, Checkpoint, Workload

LOADING = """
import sys
from claimbench import backends
backends.import_model_classes({name!r}, None)
missing = [module for module in backends.find({name!r}).IMPORTS if module not in sys.modules]
assert not missing, missing
"""


@pytest.mark.model
@pytest.mark.parametrize("name", [name for name in backends.names() if hasattr(backends.find(name), "IMPORTS")])
def test_the_modules_that_a_backend_names_are_there_before_it_loads(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADING.format(name=name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_module_that_is_not_installed_is_left_to_the_backend_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.find("null_model"), "IMPORTS", ("no_such_module_anywhere",), raising=False)
    backends.import_model_classes("null_model", None)
    assert backends.find("null_model").load is not None


CLASSES = """
import sys, threading
from pathlib import Path
from claimbench import backends
backends.import_model_classes({name!r}, Path(sys.argv[1]))
assert "transformers.models.llama.modeling_llama" in sys.modules
assert threading.active_count() == 1
import torch
assert not torch.cuda.is_initialized()
before = set(sys.modules)
from claimbench.schema.cell import Cell
backends.find({name!r}).load(Cell.model_validate_json(sys.argv[2]), Path(sys.argv[1]), None).close()
late = [name for name in set(sys.modules) - before if name.startswith(("transformers.models", "transformers.model"))]
assert not late, late
"""


@pytest.mark.model
def test_the_classes_of_a_model_are_there_before_it_loads_without_a_thread_or_a_device(tiny: Path) -> None:
    """What `load` would import inside its clock: seconds, in which no weight is read. Rounds fork after it."""
    checkpoint = Checkpoint(name="tiny", source="random://tiny-llama?seed=0", architecture="tiny-llama")
    work = Workload(prompt="Hello", new_tokens=4)
    cell = Cell(checkpoint=checkpoint, backend="transformers", workload=work, device="cpu")
    done = subprocess.run(
        [sys.executable, "-c", CLASSES.format(name="transformers"), str(tiny), cell.model_dump_json()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_without_a_config_is_left_to_the_load_to_tell(tmp_path: Path) -> None:
    backends.import_model_classes("transformers", tmp_path)
