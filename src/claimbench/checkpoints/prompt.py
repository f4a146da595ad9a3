"""A workload's prompt as token ids: one row, exactly as long as asked for, and how much of it each row has."""

from __future__ import annotations

import json
from pathlib import Path

from claimbench.checkpoints.counting import decoder_in
from claimbench.checkpoints.local_files import CONFIG, VOCABULARY_FILES, has_tokenizer
from claimbench.errors import SourceError
from claimbench.schema.cell import Cell, Workload

SETTINGS_BESIDE = frozenset({"add_bos_token", "add_eos_token", "add_prefix_space"})
"""Keys of tokenizer_config.json by which Transformers changes what tokenizer.json does."""


def prompt_ids(cell: Cell, checkpoint: Path, vocabulary: int) -> list[int]:
    """Token ids of one row of the prompt, repeated or cut to `workload.prompt_tokens` where that is set.

    Random weights have no tokenizer: their prompt is its own UTF-8 bytes, since any ids cost the same time.

    Raises:
        SourceError: the folder has no tokenizer, or one that does not fit the weights.
    """
    workload = cell.workload
    if has_tokenizer(checkpoint):
        ids = (workload.chat and _chat(checkpoint, workload)) or _encode(checkpoint, workload.prompt)
    elif cell.checkpoint.source.startswith("random://"):
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


def require_room(cell: Cell, checkpoint: Path | None) -> None:
    """Raises SourceError where prompt and new tokens are more than the model's positions: before it is loaded."""
    if checkpoint is None or not (checkpoint / CONFIG).is_file():
        return
    model = decoder_in(checkpoint, cell.checkpoint)
    if model.context is None:
        return
    prompt = len(prompt_ids(cell, checkpoint, model.vocabulary))
    length = prompt + cell.workload.new_tokens
    if length > model.context:
        raise SourceError(
            f"{cell.checkpoint.name}: the prompt has {prompt} tokens and {cell.workload.new_tokens} are to follow, but "
            f"the model has {model.context} positions: ask for fewer"
        )


def _chat(checkpoint: Path, workload: Workload) -> list[int] | None:
    """The prompt that the checkpoint's own template makes of a message; None where it is no chat model.

    Transformers renders the template in a sandbox: it comes with the weights, and is code.

    Raises:
        SourceError: the template refuses it.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    if not tokenizer.chat_template:
        return None
    system = [] if workload.system is None else [{"role": "system", "content": workload.system}]
    messages = [*system, {"role": "user", "content": workload.prompt}]
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # whatever a template raises, of jinja's kinds or its own
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"the chat template in {checkpoint} makes no prompt of the message: {first}") from error
    return [int(token) for token in tokenizer(text, add_special_tokens=False).input_ids]


def _encode(checkpoint: Path, text: str) -> list[int]:
    """As `AutoTokenizer` encodes, without it where tokenizer.json says all: importing Transformers takes seconds."""
    path, config = checkpoint / "tokenizer.json", checkpoint / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    if path.is_file() and not SETTINGS_BESIDE & settings.keys():
        from tokenizers import Tokenizer

        plain = Tokenizer.from_file(str(path))
        plain.no_truncation()
        plain.no_padding()
        return [int(token) for token in plain.encode(text).ids]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    return [int(token) for token in tokenizer(text).input_ids]
