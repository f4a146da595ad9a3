"""GGUF files that claim what cannot be, or say what the model made of them could not: one sentence, soon."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_gguf_models import CASES, made, said, write

from claimbench.checkpoints import gguf, gguf_weights
from claimbench.errors import SourceError

HUGE = 1 << 62
TEXT, ARRAY, UINT8, UINT32 = 8, 9, 0, 4


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, length: int, *items: bytes) -> bytes:
    return struct.pack("<IQ", kind, length) + b"".join(items)


def tensor(name: str, *sides: int, kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, offset)


def file_of(*parts: bytes, tensors: int = 0, entries: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + b"".join(parts) + bytes(1000)


CLAIMS: dict[str, tuple[bytes, str]] = {
    "entries": (file_of(entries=HUGE), f"{HUGE} things claimed"),
    "tensors": (file_of(tensors=HUGE), f"{HUGE} things claimed"),
    "a key's length": (file_of(struct.pack("<Q", HUGE), entries=1), f"{HUGE} things claimed"),
    "bytes": (file_of(entry("a", ARRAY, array(UINT8, HUGE)), entries=1), f"{HUGE} things claimed"),
    "words": (file_of(entry("a", ARRAY, array(TEXT, HUGE)), entries=1), f"{HUGE} things claimed"),
    "a word's length": (
        file_of(entry("a", ARRAY, array(TEXT, 1, struct.pack("<Q", HUGE))), entries=1),
        f"{HUGE} things claimed",
    ),
    "arrays in arrays": (file_of(entry("a", ARRAY, array(ARRAY, 1)), entries=1), "an array of values of kind 9"),
    "a kind of value": (file_of(entry("a", 77, b""), entries=1), "a value of kind 77"),
    "a key twice": (file_of(2 * entry("a", UINT8, b"\1"), entries=2), "the key a comes twice"),
    "sides": (file_of(text("t") + struct.pack("<I", 1 << 31), tensors=1), "t has 2147483648 sides"),
    "a side": (file_of(tensor("t", HUGE), tensors=1), "t ends at"),
    "sides whose product is past 64 bits": (file_of(tensor("t", 1 << 40, 1 << 40), tensors=1), "t ends at"),
    "no values": (file_of(tensor("t", 0), tensors=1), "has sides [0]"),
    "half a block": (file_of(tensor("t", 33, kind=8), tensors=1), "t of Q8_0 has sides [33]"),
    "an offset": (file_of(tensor("t", 4, offset=HUGE), tensors=1), "t ends at"),
    "a kind of tensor": (file_of(tensor("t", 4, kind=999), tensors=1), "999 is not a valid"),
    "a tensor twice": (file_of(2 * tensor("t", 4), tensors=2), "the tensor t comes twice"),
    "an alignment": (
        file_of(entry("general.alignment", UINT32, struct.pack("<I", 3)), entries=1),
        "an alignment of 3",
    ),
    "a version": (file_of(version=1), "version 1"),
    "the other order of bytes": (file_of(version=3 << 24), "version 50331648"),
    "words that are none": (file_of(struct.pack("<Q", 2) + b"\xff\xff", entries=1), "can't decode"),
}


def refusal(path: Path) -> str:
    """What reading the file at `path` says, which must be soon and in little memory."""
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(SourceError) as refused:
            gguf.read(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert time.process_time() - begin < 5
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_that_cannot_be_is_refused_before_anything_is_made(claim: str, tmp_path: Path) -> None:
    content, words = CLAIMS[claim]
    path = tmp_path / "claims.gguf"
    path.write_bytes(content)
    said = refusal(path)
    assert said.startswith(f"{path}: not a whole GGUF file (")
    assert words in said


def test_millions_of_empty_words_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.gguf"
    many = gguf.MOST_VALUES + 1
    with path.open("wb") as file:
        file.write(file_of(entry("a", ARRAY, array(TEXT, many)), entries=1))
        file.truncate(8 * many + 2000)
    assert f"over {gguf.MOST_VALUES} values in arrays" in refusal(path)


def test_a_header_with_any_byte_changed_is_read_or_refused(tmp_path: Path) -> None:
    keys = entry("a", ARRAY, array(TEXT, 2, text("x"), text("y"))) + entry("b", UINT32, struct.pack("<I", 7))
    whole = file_of(keys, tensor("t", 4, 2), tensor("u", 32, kind=8), tensors=2, entries=2)
    path = tmp_path / "changed.gguf"
    path.write_bytes(whole)
    assert [one.name for one in gguf.read(path).tensors] == ["t", "u"]
    generator = random.Random(0)  # noqa: S311 - not for secrets
    refused: list[str] = []
    for at in range(len(whole) - 1000):
        changed = bytearray(whole)
        changed[at] ^= generator.randrange(1, 256)
        path.write_bytes(changed)
        try:
            gguf.read(path)
        except SourceError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert not [words for words in refused if "\n" in words]


@pytest.mark.parametrize("length", [0, 3, 4, 23, 24, 60])
def test_a_file_that_is_cut_anywhere_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(file_of(entry("a", UINT32, struct.pack("<I", 7)), tensor("t", 4), tensors=1, entries=1)[:length])
    assert "not a whole GGUF file" in refusal(path)


def read_all(path: Path) -> None:
    for one in gguf_weights.read(path)[1]:
        list(one.chunks())


UNKNOWN: dict[str, tuple[str, dict[str, Any], str]] = {
    "part of a head": ("llama", {"rope.dimension_count": 8}, r"llama\.rope\.dimension_count = 8"),
    "more layers than tensors": (
        "llama",
        {"block_count": 2**31},
        r"block_count: expected a whole number from 1 to \d+, got 2147483648",
    ),
    "a layer too many": ("llama", {"block_count": 5}, r"the tensor model\.layers\.4\.\S+ of the model is missing"),
    "a layer too few": ("llama", {"block_count": 3}, r"blk\.3\.\S+ has no place in the model"),
    "experts": ("llama", {"expert_count": 8}, r"llama\.expert_count = 8 has no place"),
    "a scale of scores": ("llama", {"attention.scale": 0.5}, r"llama\.attention\.scale = 0\.5 has no place"),
    "a soft cap": ("llama", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping = 50\.0 has no place"),
    "values of another width": ("llama", {"attention.value_length": 8}, "value_length = 8 is not that of keys"),
    "heads of another width": (
        "llama",
        {"attention.key_length": 8, "rope.dimension_count": 8, "attention.value_length": 8},
        r"blk\.0\.attn_q\.weight",
    ),
    "an unknown scaling": (
        *("llama", {"rope.scaling.type": "spiral", "rope.scaling.factor": 2.0}),
        "rotary positions scaled by 'spiral' with a factor alone are not known",
    ),
    "yarn with a rule of its own": (
        "llama",
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_log_multiplier": 0.1},
        "scaled by 'yarn' with yarn_log_multiplier",
    ),
    "falcon's other order of rows": ("falcon", {"attention.head_count_kv": 2}, "falcon with 2 heads of keys"),
    "an architecture that is not read": ("unheard-of", {}, "Transformers does not read it"),
}


@pytest.mark.model
@pytest.mark.parametrize("what", UNKNOWN)
def test_what_the_model_would_not_compute_is_refused_by_name(what: str, tmp_path: Path) -> None:
    name, keys, words = UNKNOWN[what]
    path = tmp_path / "tiny.gguf"
    if name in CASES:
        made(name, path, **keys)
    else:
        path.write_bytes(
            file_of(
                entry("general.architecture", TEXT, text(name)),
                entry(f"{name}.block_count", UINT32, struct.pack("<I", 1)),
                tensor("token_embd.weight", 4, 2),
                tensors=1,
                entries=2,
            )
        )
    with pytest.raises(SourceError, match=words) as refused:
        read_all(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.model
def test_factors_that_no_rule_of_llama_3_gives_are_refused(tmp_path: Path) -> None:

    path = tmp_path / "tiny.gguf"
    model = made("llama", path)
    write(
        path,
        model,
        "llama",
        said(model.config, "llama") | CASES["llama"][3],
        {"rope_freqs.weight": [1.0, 1, 1, 1, 2, 3, 4, 8]},
    )
    with pytest.raises(SourceError, match=r"rope_freqs\.weight are not those of Llama 3's rule"):
        gguf_weights.read(path)


@pytest.mark.model
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("split.count", 3, "got one of 3: join them with"),
        ("general.type", "adapter", "expected 'model', got 'adapter'"),
    ],
)
def test_what_is_no_whole_model_is_refused(key: str, value: object, words: str, tmp_path: Path) -> None:
    kind = TEXT if isinstance(value, str) else UINT32
    content = text(value) if isinstance(value, str) else struct.pack("<I", value)  # type: ignore[arg-type]
    path = tmp_path / "part.gguf"
    path.write_bytes(file_of(entry(key, kind, content), tensor("token_embd.weight", 4, 2), tensors=1, entries=1))
    with pytest.raises(SourceError, match=words):
        gguf_weights.read(path)
