"""A limit is what the machine can do: the best of all rounds, each rate by itself."""

from __future__ import annotations

from contextlib import nullcontext

from claimbench.measuring import ceiling


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
    assert found["read_bytes_per_s"] == count
    assert found["matmul_flops_per_s"] == dict.fromkeys(ceiling.DTYPES, float(count))
