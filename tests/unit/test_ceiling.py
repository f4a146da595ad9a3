"""A limit is what the machine can do: the best of all rounds, each rate by itself."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext

import pytest

from claimbench.errors import ResultError
from claimbench.measuring import ceiling
from claimbench.schema import ceilings
from claimbench.schema.ceilings import Ceilings


def test_a_ceiling_is_the_best_of_its_rounds(monkeypatch, tmp_path):
    names = ("read", *ceiling.DTYPES)
    count = ceiling.ROUNDS
    rounds = [{name: 1.0 + (number + at) % count for at, name in enumerate(names)} for number in range(count)]
    monkeypatch.setattr(ceiling, "_rates", lambda *_: rounds.pop())
    monkeypatch.setattr(ceiling, "device_lock", lambda _: nullcontext())
    monkeypatch.setattr(ceiling, "FILE_BYTES", 1 << 20)
    monkeypatch.chdir(tmp_path)
    found = ceiling.measure_ceilings("cpu", "here")
    assert rounds == []
    assert found.read_bytes_per_s == count
    assert found.matmul_flops_per_s == dict.fromkeys(ceiling.DTYPES, float(count))


def test_ceilings_are_read_as_they_were_written_without_what_this_device_has_not(tmp_path):
    path = tmp_path / "ceilings.json"
    rates = {"read_bytes_per_s": 1e10, "matmul_flops_per_s": {"float32": 1e12}}
    files = {"cold": None, "warm": 5e9}
    measured = Ceilings(device="cpu", machine="here", file_read_bytes_per_s=files, **rates)
    ceilings.write(path, measured)
    assert ceilings.read(path, "here", "cpu") == measured
    written = json.loads(path.read_text(encoding="utf-8"))["ceilings"]
    assert written["file_read_bytes_per_s"] == files
    assert written["copy_bytes_per_s"] is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"read_bytes_per_s": "fast"}', '{"bandwidth": 1e10}'])
def test_what_holds_no_ceilings_is_refused_in_a_sentence(tmp_path, text):
    path = tmp_path / "ceilings.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ResultError, match=re.escape(ceilings.ADVICE)) as refused:
        ceilings.read(path, "here", "cpu")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(("machine", "device"), [("there", "cpu"), ("here", "cuda")])
def test_ceilings_of_another_machine_or_device_are_refused(tmp_path, machine, device):
    path = tmp_path / "ceilings.json"
    ceilings.write(path, Ceilings(device="cpu", machine="here", read_bytes_per_s=1e10))
    with pytest.raises(ResultError, match=f"expected the ceilings of {device} on machine {machine}, got those of cpu"):
        ceilings.read(path, machine, device)


def test_ceilings_that_are_not_there_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(ResultError, match=r"none\.json"):
        ceilings.read(tmp_path / "none.json", "here", "cpu")
