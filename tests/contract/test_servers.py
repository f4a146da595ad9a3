"""Real servers, started and asked: the reference's tokens, exact lengths, an honest proof, and no process left.

Transformers' own server is installed wherever Claimbench is. The others run where they are, and say why where not.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.contract.conftest import make_cell, rows_of, save_tiny
from tests.contract.environments import python_of
from tests.contract.models import save

from claimbench import backends
from claimbench.backends import transformers as reference
from claimbench.checkpoints import counting
from claimbench.errors import Refusal, Unavailable
from claimbench.measuring.block_request import BlockRequest
from claimbench.measuring.messages import BlockFacts
from claimbench.measuring.supervisor import supervise
from claimbench.schema.cell import Cell, Checkpoint
from claimbench.serving.session import ServerSession

pytestmark = [pytest.mark.model, pytest.mark.servers]

LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 8192,
}
LETTERS = [chr(code) for code in range(33, 127)]


def save_letters(folder: Path) -> None:
    """A tokenizer in which every token of the tiny model has a text of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*LETTERS, *(a + b for a in LETTERS for b in LETTERS)][:300]
    vocabulary = {word: id for id, word in enumerate(words)}
    merges = [(word[0], word[1]) for word in words if len(word) == 2]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worded")
    save_tiny(folder, 2, hidden=128)  # heads wide enough for every server
    save_letters(folder)
    gc.collect()
    return folder


def cell_of(
    name: str, options: dict[str, Any] | None = None, checkpoint: Checkpoint | None = None, **workload: Any
) -> Cell:
    module: Any = backends.find(name)
    cell = make_cell(**{"prompt": "Once-upon-a-time", "new_tokens": 12, **workload})
    told = module.Options.model_validate(options or {}).model_dump(mode="json")
    wide = cell.checkpoint.model_copy(update={"architecture": "tinyllama-1.1b"})  # planning looks at its heads alone
    return cell.model_copy(update={"backend": name, "options": told, "checkpoint": checkpoint or wide})


def open_session(
    name: str,
    folder: Path,
    options: dict[str, Any] | None = None,
    checkpoint: Checkpoint | None = None,
    **workload: Any,
) -> ServerSession:
    """The backend's session, or a skip with the reason why it cannot run here."""
    cell = cell_of(name, options, checkpoint, **workload)
    reason = backends.find(name).unavailable(cell)
    if reason:
        pytest.skip(reason)
    try:
        session = backends.find(name).load(cell, folder, None)
    except Unavailable as missing:
        pytest.skip(str(missing))
    assert isinstance(session, ServerSession)
    return session


def reference_rows(folder: Path, checkpoint: Checkpoint | None = None, **workload: Any) -> list[list[int]]:
    session = reference.load(cell_of("transformers", None, checkpoint, **workload), folder, None)
    rows = rows_of(session)
    session.close()
    return rows


def generated(session: ServerSession) -> list[list[int]]:
    blocks = list(session.generate())
    return [[token for block in blocks for token in block[row]] for row in range(len(blocks[0]))]


@pytest.mark.parametrize("name", ["llama_server", pytest.param("vllm_server", marks=pytest.mark.vllm)])
def test_a_server_that_tells_ids_gives_the_reference_s_tokens(name, worded):
    session = open_session(name, worded, {"eager": True} if name == "vllm_server" else {}, **ROWS)
    try:
        assert generated(session) == reference_rows(worded, **ROWS)
        proof = session.prove()
        assert proof["token_ids"].startswith("told")
        assert "off" in proof["server"]["prefix_cache"]
        assert proof["server"]["version"]
        assert max(proof["metrics"].values()) >= 3 * 12, "its own counters have seen the tokens"
    finally:
        close_and_check(session)


FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3_text": {"query_pre_attn_scalar": 32},
    "llama": {"rope_parameters": LLAMA3},
    "phi3": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"norm_topk_prob": True},
}
SERVED = [
    *(("llama_server", kind) for kind in FAMILIES),
    *(("transformers_server", kind) for kind in ("gemma3_text", "llama", "qwen3_moe")),
    *(pytest.param("vllm_server", kind, marks=pytest.mark.vllm) for kind in ("gemma3_text", "llama", "qwen3_moe")),
    pytest.param("vllm_offline", "qwen3", marks=pytest.mark.vllm),
]
"""vLLM takes most of a minute to start: it serves every family, and is asked for the least alike of them."""


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), SERVED)
def test_a_model_of_any_family_is_served(name, kind, tmp_path, monkeypatch):
    """The checkpoint as its makers publish it; the reference's tokens, rows of several lengths among them."""
    folder = tmp_path / kind
    save(kind, folder, hidden_size=128, head_dim=32, **FAMILIES[kind])
    save_letters(folder)
    card = counting.count(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    checkpoint = Checkpoint(name="tiny", source="file://tiny", card=card)
    expected = reference_rows(folder, checkpoint, **ROWS)
    told = {"eager": True} if name.startswith("vllm") else {}
    if name == "vllm_offline":
        assert in_vllm(cell_of(name, told, checkpoint, **ROWS), folder, monkeypatch)["tokens"] == expected[0]
        return
    session = open_session(name, folder, told, checkpoint, **ROWS)
    try:
        assert generated(session) == expected
        session.prove()
    finally:
        close_and_check(session)


@pytest.mark.vllm
def test_vllm_without_a_server_gives_the_reference_s_tokens(worded, monkeypatch):
    """A whole block in vLLM's own environment, as the pipeline runs it; nothing stays in shared memory either."""
    before = set(Path("/dev/shm").iterdir())
    facts = in_vllm(cell_of("vllm_offline", {"eager": True}, **ROWS), worded, monkeypatch)
    assert facts["tokens"] == reference_rows(worded, **ROWS)[0]
    assert (facts["proof"]["prefix_cache"], facts["proof"]["dtype"]) == ("off", "float32")
    assert facts["proof"]["generations"] == len(facts["samples"]) + len(facts["warmup"])
    assert [path for path in set(Path("/dev/shm").iterdir()) - before if path.name.startswith("psm_")] == []


def in_vllm(cell: Cell, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> BlockFacts:
    """A whole block in vLLM's own environment, or a skip where there is none."""
    python = python_of("vllm")
    monkeypatch.setenv("PYTHONPATH", str(Path("src").absolute()))
    facts = supervise(BlockRequest(cell=cell, checkpoint=checkpoint), str(python))
    assert facts["outcome"] == "ok", (facts["reason"], facts["detail"])
    return facts


def close_and_check(session: ServerSession) -> None:
    assert session.service.server is not None
    started = session.service.server.descendants()
    assert started
    session.close()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []


ROWS = {"batch": 3, "shortest": 5}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAIMBENCH_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def plain_server(worded: Path) -> Iterator[ServerSession]:
    session = open_session("transformers_server", worded, **ROWS)
    yield session
    close_and_check(session)


def test_transformers_server_gives_the_reference_s_tokens_of_rows_of_several_lengths(worded, plain_server):
    assert generated(plain_server) == reference_rows(worded, **ROWS)
    assert generated(plain_server) == generated(plain_server)
    proof = plain_server.prove()
    assert proof["token_ids"].startswith("by the text")
    assert proof["tokens_without_text"] == 0
    assert proof["server"]["model"] == str(worded.resolve())
    assert "--trust-remote-code" not in proof["started_by"]["command"]
    assert plain_server.memory()["server_rss"] > 100e6


def test_its_continuous_batching_gives_the_same_tokens_and_says_that_it_ran(worded):
    session = open_session("transformers_server", worded, {"continuous_batching": True}, **ROWS)
    try:
        assert generated(session) == reference_rows(worded, **ROWS)
        proof = session.prove()
        assert "--continuous-batching" in proof["started_by"]["command"]
        assert proof["server"]["prefix_cache"] == "holds whole pages, and none is ever full"
    finally:
        close_and_check(session)


def test_a_server_at_an_address_is_asked_and_left_running(worded, plain_server):
    second = open_session("transformers_server", worded, {"url": plain_server.service.address})
    assert generated(second) == reference_rows(worded)
    assert second.prove()["started_by"] == "somebody else, at an address"
    second.close()
    assert generated(plain_server) == reference_rows(worded, **ROWS)


def test_a_server_of_another_model_is_refused(tiny, plain_server):
    cell = cell_of("transformers_server", {"url": plain_server.service.address}, prompt="hello")
    other = backends.find("transformers_server").load(cell, tiny, None)
    with pytest.raises(Refusal, match="the server answered 400: Server is pinned to"):
        next(other.generate())
    other.close()


def test_a_prompt_that_no_text_gives_is_unavailable(tiny):
    """Half of a character is a token, and no text."""
    cell = cell_of("transformers_server", prompt="\u00e9", prompt_tokens=1)
    with pytest.raises(Unavailable, match="no text gives exactly these 1 tokens"):
        backends.find("transformers_server").load(cell, tiny, None)
