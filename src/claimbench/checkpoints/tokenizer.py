"""The tokenizer that travels with a checkpoint whose source has none in Transformers' own format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from claimbench.checkpoints import local_files, prompt
from claimbench.errors import SourceError
from claimbench.schema.json_file import write_json

END = "<|endoftext|>"
BYTES = 256
PROBE = "the"
READERS = ("sentencepiece", "tiktoken", "google.protobuf")
"""Libraries that Transformers reads tokenizers with, whose absence it tells as something else."""


def byte_alphabet() -> list[str]:
    """One printable character for each byte, in the order of byte values: the alphabet of byte-level BPE (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spare = iter(range(BYTES, 2 * BYTES))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(BYTES)]


def require_readable(folder: Path, where: str) -> None:
    """Find out now, and not in a block, whether Transformers makes tokens of words by the tokenizer in `folder`.

    Raises:
        SourceError: a library is missing, or it is code of its own, or of no kind that is known; one line.
    """
    names = ", ".join(local_files.vocabularies(folder))
    try:
        ids = prompt.encode(folder, PROBE)
        special = [] if (folder / "tokenizer.json").is_file() else prompt.tokenizer_in(folder).all_special_ids
    except Exception as error:  # the readers are another library's: anything they raise means that they cannot
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        lacking = [name for name in READERS if not _is_installed(name)]
        hint = f" (not installed: {', '.join(lacking)})" if lacking else ""
        raise SourceError(f"{where}: its tokenizer ({names}) cannot be read: {first}{hint}") from error
    if not set(ids) - set(special):
        raise SourceError(f"{where}: its tokenizer ({names}) has no token for the word '{PROBE}': is a file missing?")


def _is_installed(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def write_byte_tokenizer(folder: Path, vocabulary: int, context: int) -> dict[str, int]:
    """A tokenizer with one token for each byte and one that ends a text, for models with random weights.

    Returns:
        The special token ids to put into the config.

    Raises:
        SourceError: the vocabulary is too small for it.
    """
    if vocabulary <= BYTES:
        raise SourceError(f"{folder}: a byte tokenizer needs a vocabulary of {BYTES + 1} at least, got {vocabulary}")
    vocab = {character: byte for byte, character in enumerate(byte_alphabet())} | {END: BYTES}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": BYTES, "content": END, **special}],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": level,
        "decoder": level,
        "model": {"type": "BPE", "unk_token": None, "fuse_unk": False, "vocab": vocab, "merges": []},
    }
    write_json(folder / "tokenizer.json", tokenizer)
    tokens = {"bos_token": END, "eos_token": END, "pad_token": END}
    _write_config(folder, {"model_max_length": context, "clean_up_tokenization_spaces": False, **tokens})
    return {"bos_token_id": BYTES, "eos_token_id": BYTES, "pad_token_id": BYTES}


def write_from_gguf(gguf: Path, folder: Path) -> None:
    """The fast tokenizer that the metadata of the file `gguf` describes, by Transformers' own converter.

    Raises:
        SourceError: the converter does not know this kind of tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    except Exception as error:  # a converter of another library: anything it raises means that it cannot
        raise SourceError(f"{gguf}: its tokenizer cannot be converted ({str(error).splitlines()[0]})") from error
    tokenizer.save_pretrained(folder)
    saved = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only", "backend", "name_or_path"):
        saved.pop(key, None)
    _write_config(folder, saved)


def _write_config(folder: Path, settings: Mapping[str, object]) -> None:
    """`PreTrainedTokenizerFast` is a name that Transformers 4 and 5 both know; 5 alone knows `TokenizersBackend`.

    Without `model_input_names`, version 4 makes token type ids, which decoders refuse.
    """
    common = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    write_json(folder / "tokenizer_config.json", {**settings, **common})
