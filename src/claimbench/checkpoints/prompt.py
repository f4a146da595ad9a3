"""A workload's prompt as token ids: one row, exactly as long as asked for, and how much of it each row has."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from claimbench.checkpoints import chat
from claimbench.checkpoints.loaded_model import decoder_in
from claimbench.checkpoints.local_files import CONFIG, VOCABULARY_FILES, has_tokenizer
from claimbench.errors import SourceError
from claimbench.schema.cell import Cell, Workload, row_lengths

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
SETTINGS_BESIDE = frozenset({"add_bos_token", "add_eos_token", "add_prefix_space"})
"""Keys of tokenizer_config.json by which Transformers changes what tokenizer.json does."""


def prompt_ids(cell: Cell, checkpoint: Path, vocabulary: int) -> list[int]:
    """Token ids of one row of the prompt, repeated or cut to `workload.prompt_tokens` where that is set.

    Random weights have no words and no template: their prompt is its own UTF-8 bytes, since any ids cost the same time.

    Raises:
        SourceError: the folder has no tokenizer, or one that does not fit the weights, or its template fails.
        Unavailable: the prompt is a message alone, and the checkpoint is of no chat model.
    """
    workload, is_random = cell.workload, cell.checkpoint.source.startswith("random://")
    if has_tokenizer(checkpoint):
        ids = list(_encoded(checkpoint, workload, workload.chat and not is_random))
    elif is_random:
        ids = [byte % vocabulary for byte in workload.prompt.encode()]
    else:
        raise SourceError(
            f"no tokenizer in {checkpoint}: expected one of {', '.join(VOCABULARY_FILES)}. Fetch the checkpoint again"
        )
    if not ids:
        raise SourceError(f"the prompt {workload.prompt!r} has no tokens: give it some text")
    if max(ids) >= vocabulary:
        raise SourceError(
            f"the tokenizer in {checkpoint} gives token {max(ids)}, but the model knows {vocabulary} tokens only: "
            f"the folder mixes two checkpoints"
        )
    length = workload.prompt_tokens or len(ids)
    return (ids * -(-length // len(ids)))[:length]


def prompt_rows(cell: Cell, checkpoint: Path, vocabulary: int) -> list[list[int]]:
    """Token ids of each row, of its own length: of one prompt, or of several in turn. Raises as `prompt_ids` does."""
    workload = cell.workload
    if not workload.others:
        row = prompt_ids(cell, checkpoint, vocabulary)
        return [row[len(row) - length :] for length in row_lengths(workload, len(row))]
    texts = (workload.prompt, *workload.others)
    several = [
        prompt_ids(
            cell.model_copy(update={"workload": workload.model_copy(update={"prompt": text})}), checkpoint, vocabulary
        )
        for text in texts[: workload.batch]
    ]
    return [several[number % len(several)] for number in range(workload.batch)]


def require_room(cell: Cell, checkpoint: Path | None) -> None:
    """Raises SourceError where prompt and new tokens are more than the model's positions: before it is loaded."""
    if checkpoint is None or not (checkpoint / CONFIG).is_file():
        return
    model = decoder_in(checkpoint, cell.checkpoint)
    if model.context is None:
        return
    prompt = max(map(len, prompt_rows(cell, checkpoint, model.vocabulary)))
    length = prompt + cell.workload.new_tokens
    if length > model.context:
        raise SourceError(
            f"{cell.checkpoint.name}: the prompt has {prompt} tokens and {cell.workload.new_tokens} are to follow, but "
            f"the model has {model.context} positions: ask for fewer"
        )


@cache
def _encoded(checkpoint: Path, workload: Workload, is_chat: bool) -> tuple[int, ...]:
    """Once for each process: reading a large vocabulary takes seconds."""
    return tuple(_chat(checkpoint, workload) if is_chat else encode(checkpoint, workload.prompt))


def _chat(checkpoint: Path, workload: Workload) -> list[int]:
    """A template writes every special token itself, so that encoding adds none."""
    if workload.base is not None and not has_template(checkpoint):
        return encode(checkpoint, workload.base)
    tokenizer = tokenizer_in(checkpoint)
    text = chat.rendered(tokenizer, workload, checkpoint)
    return [int(token) for token in tokenizer(text, add_special_tokens=False).input_ids]


def has_template(checkpoint: Path) -> bool:
    """Whether Transformers would find a chat template, without reading the vocabulary."""
    if any((checkpoint / name).exists() for name in TEMPLATE_FILES):
        return True
    return bool(_settings(checkpoint).get("chat_template"))


def encode(checkpoint: Path, text: str) -> list[int]:
    """As `AutoTokenizer` encodes, without it where tokenizer.json says all: importing Transformers takes seconds."""
    if _says_all(checkpoint):
        from tokenizers import Tokenizer

        plain = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        plain.no_truncation()
        plain.no_padding()
        return [int(token) for token in plain.encode(text).ids]
    return [int(token) for token in tokenizer_in(checkpoint)(text).input_ids]


def tokenizer_in(checkpoint: Path) -> PreTrainedTokenizerBase:
    """As Transformers reads it, without the network and without code of the checkpoint's own.

    Finding out a tokenizer's class imports the model's, and torch with it: where tokenizer.json says all, any will do.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    reader = PreTrainedTokenizerFast if _says_all(checkpoint) else AutoTokenizer
    found: PreTrainedTokenizerBase = reader.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    return found


def _says_all(checkpoint: Path) -> bool:
    """Whether its tokenizer.json is the whole tokenizer."""
    return (checkpoint / "tokenizer.json").is_file() and not SETTINGS_BESIDE & _settings(checkpoint).keys()


def _settings(checkpoint: Path) -> dict[str, object]:
    path = checkpoint / "tokenizer_config.json"
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
