"""FlashAttention-2 from a package or from the hub: what is taken, what is said where neither can be, and which ran."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from claimbench.errors import Unavailable
from claimbench.hf.setup import GenerationSetup
from claimbench.optimizations.transformers import flash_attention_2 as flash
from claimbench.schema.cell import Cell, Checkpoint, Workload

CELL = Cell(
    checkpoint=Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama"),
    backend="transformers",
    workload=Workload(prompt="Hello", new_tokens=4),
    device="cuda",
    dtype="float16",
)


def have(
    monkeypatch: pytest.MonkeyPatch, *packages: str, kernels: str = "0.17.2", wanted: str = "<0.18,>=0.17.2"
) -> None:
    """Packages that are found here, and the releases of kernels that Transformers names."""
    monkeypatch.setattr(flash, "find_spec", lambda name: object() if name in packages else None)
    versions = {"kernels": kernels, "transformers": "5.22.2", "flash-attn": "2.8.3"}
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    lines = ["numpy>=1", f'kernels{wanted}; extra == "kernels"', f'kernels{wanted}; extra == "all"']
    monkeypatch.setattr(metadata, "requires", lambda _: lines)


@pytest.mark.parametrize(
    ("packages", "kernels", "reason"),
    [
        ((), "0.17.2", "flash-attn is not installed, nor is kernels, which needs no compiler"),
        (("kernels",), "0.17.2", None),
        (("kernels",), "0.18.2", "Transformers 5.22.2 takes kernels <0.18,>=0.17.2, and 0.18.2 is installed"),
        (("flash_attn",), "0.18.2", None),
        (("flash_attn", "kernels"), "0.18.2", None),
    ],
)
def test_a_gpu_needs_a_package_or_kernels_that_transformers_takes(
    packages: tuple[str, ...], kernels: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, *packages, kernels=kernels)
    said = flash.unavailable(CELL, flash.Settings())
    assert said == reason if reason is None else str(said).startswith(reason)


def test_the_package_is_taken_where_there_is_one_and_else_the_compiled_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []
    monkeypatch.setattr(flash, "fetch", lambda: fetched.append(1))
    for packages, expected in (
        (("flash_attn", "kernels"), "flash_attention_2"),
        (("kernels",), "kernels-community/flash-attn2"),
    ):
        have(monkeypatch, *packages)
        setup = GenerationSetup(dtype="float16")
        flash.apply(setup, flash.Settings())
        assert setup.load["attn_implementation"] == expected
    assert fetched == [1]


@pytest.mark.model
def test_a_hub_without_it_is_unavailable_and_no_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import hub_kernels

    for error in (ValueError("no build for this torch\nmore"), ImportError("no kernels"), OSError("no network")):

        def refuse(name: str, error: Exception = error) -> None:
            assert name == flash.COMPILED
            raise error

        monkeypatch.setattr(hub_kernels, "load_and_register_attn_kernel", refuse)
        first = str(error).splitlines()[0]
        with pytest.raises(Unavailable, match=f"kernels-community/flash-attn2 cannot be had: {first}$"):
            flash.fetch()


def test_the_proof_names_the_package_or_the_commit_that_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, "flash_attn")
    monkeypatch.delenv("LOCAL_KERNELS", raising=False)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    assert flash.origin() == "unknown"
    loaded = ModuleType("flash_attn2_cuda_588b404")
    cache = Path("/cache/hub/kernels--kernels-community--flash-attn2/snapshots")
    loaded.__file__ = str(cache / "81fb77c1/build/torch-stable-abi-cu130/__init__.py")
    monkeypatch.setitem(sys.modules, "flash_attn2_cuda_588b404", loaded)
    assert flash.origin() == "kernels-community/flash-attn2 at 81fb77c1, torch-stable-abi-cu130"
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    assert flash.origin() == "flash-attn 2.8.3"
