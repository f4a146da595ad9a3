"""Tokenizers of every kind that checkpoints come with: read through Transformers, or refused before anything runs."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from claimbench.checkpoints import fetch, tokenizer
from claimbench.checkpoints.prompt import encode, tokenizer_in
from claimbench.checkpoints.tokenizer import byte_alphabet, require_readable
from claimbench.errors import SourceError
from claimbench.schema.cell import Checkpoint

WORDS = ["the keeper of the lighthouse opened the map", "hello there world", "read the names again and again"]
TEXT = "the lighthouse"
PIECES = [*(bytes([byte]) for byte in range(256)), b"th", b"the", b" th", b"he"]


def sentencepiece(kind: str) -> bytes:
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 20),
        model_writer=model,
        vocab_size=60,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def tiktoken() -> bytes:
    return b"\n".join(base64.b64encode(piece) + f" {rank}".encode() for rank, piece in enumerate(PIECES))


def tekken() -> bytes:
    config = {
        "pattern": r"[^\s]+|\s+",
        "num_vocab_tokens": len(PIECES),
        "default_vocab_size": len(PIECES) + 5,
        "default_num_special_tokens": 5,
        "version": "v3",
    }
    ranks = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for rank, piece in enumerate(PIECES)
    ]
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    special = [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)]
    return json.dumps({"config": config, "vocab": ranks, "special_tokens": special}).encode()


def pairs() -> dict[str, bytes]:
    vocabulary = {letter: id for id, letter in enumerate([*byte_alphabet(), "th", "the", "<|endoftext|>"])}
    return {"vocab.json": json.dumps(vocabulary).encode(), "merges.txt": b"#version: 0.2\nt h\nth e\n"}


def word_pieces() -> bytes:
    return "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "light", "##house"]).encode()


Files = Callable[[], dict[str, bytes]]
LLAMA = {"tokenizer_class": "LlamaTokenizer"}
KINDS: dict[str, tuple[Files, str, dict[str, Any]]] = {
    "tokenizer.model": (
        lambda: {"tokenizer.model": sentencepiece("bpe")},
        "llama",
        LLAMA,
    ),
    "tokenizer.model alone": (lambda: {"tokenizer.model": sentencepiece("bpe")}, "llama", {}),
    "spiece.model": (lambda: {"spiece.model": sentencepiece("unigram")}, "xlnet", {}),
    "tiktoken.model": (lambda: {"tiktoken.model": tiktoken()}, "llama", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "tiktoken under Llama's name": (
        lambda: {"tokenizer.model": tiktoken()},
        "llama",
        LLAMA,
    ),
    "tekken.json": (lambda: {"tekken.json": tekken()}, "mistral", {}),
    "vocab.json and merges.txt": (pairs, "gpt2", {}),
    "vocab.json of OPT": (pairs, "opt", {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}),
    "vocab.txt": (lambda: {"vocab.txt": word_pieces()}, "bert", {}),
}


def made(folder: Path, files: dict[str, bytes], model_type: str, settings: dict[str, Any]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_of_every_kind_is_read(kind: str, tmp_path: Path) -> None:
    files, model_type, settings = KINDS[kind]
    folder = made(tmp_path / "model", files(), model_type, settings)
    require_readable(folder, "file://model")
    ids = encode(folder, TEXT)
    assert tokenizer_in(folder).decode(ids, skip_special_tokens=True) == TEXT
    assert len(set(ids)) > 1


CODE = {"tokenizer_class": "QWenTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}}


@pytest.mark.parametrize(
    ("files", "model_type", "settings", "why"),
    [
        (lambda: {"qwen.tiktoken": tiktoken()}, "qwen", CODE, r"\(qwen.tiktoken\) cannot be read: .*custom code"),
        (lambda: {"qwen.tiktoken": tiktoken()}, "qwen2", {}, "has no token for the word 'the'"),
        (lambda: {"vocab.json": pairs()["vocab.json"]}, "gpt2", {}, "cannot be read: .*merges"),
        (lambda: {"tokenizer.model": b"nothing"}, "llama", {}, "cannot be read"),
        (lambda: {"tekken.json": b"{}"}, "mistral", {}, "cannot be read"),
        (lambda: {"tokenizer.json": b"{}"}, "llama", {}, "cannot be read"),
        (lambda: {"sentencepiece.bpe.model": sentencepiece("unigram")}, "xglm", {}, "has no token for the word 'the'"),
    ],
)
def test_a_tokenizer_that_no_block_could_read_is_refused_in_one_line(
    files: Files, model_type: str, settings: dict[str, Any], why: str, tmp_path: Path
) -> None:
    folder = made(tmp_path / "model", files(), model_type, settings)
    with pytest.raises(SourceError, match=rf"^hf://org/name: its tokenizer .*{why}") as refused:
        require_readable(folder, "hf://org/name")
    assert "\n" not in str(refused.value)


def test_fetching_a_folder_says_what_its_tokenizer_lacks(tmp_path: Path) -> None:
    folder = made(tmp_path / "model", {"qwen.tiktoken": tiktoken()}, "qwen", CODE)
    (folder / "model.safetensors").write_bytes(b"")
    checkpoint = Checkpoint(name="mine", source=f"file://{folder}")
    with pytest.raises(SourceError, match=r"its tokenizer \(qwen.tiktoken\) cannot be read"):
        fetch.fetch(checkpoint, tmp_path / "fetched")
    assert not (tmp_path / "fetched" / fetch.SOURCE).exists()


@pytest.mark.parametrize(("module", "kind"), [("sentencepiece", "tokenizer.model"), ("tiktoken", "tiktoken.model")])
def test_a_library_that_is_missing_is_named(module: str, kind: str, tmp_path: Path) -> None:
    files, model_type, settings = KINDS[kind]
    folder = made(tmp_path / "model", files(), model_type, settings)
    program = (
        f"import sys; sys.modules['{module}'] = None\n"
        f"from pathlib import Path\nfrom {tokenizer.__name__} import require_readable\n"
        f"require_readable(Path({str(folder)!r}), 'hf://org/name')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert f"not installed: {module})" in ended.stderr.strip().splitlines()[-1]
