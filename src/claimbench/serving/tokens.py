"""Prompts as a server takes them, and token ids of an answer that came as text.

A server that tells no ids sends each token's text in an event of its own. Where a text belongs to exactly one token of
the vocabulary, that is the token: no guess, unlike encoding the joined text, which need not give back what was drawn.
An event that holds several tokens (bytes of a character held back until it is whole) is encoded. Tokens that have no
text, such as an end of sequence that was ignored, are counted by the server alone: their ids are unknown.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path

from claimbench.checkpoints.loaded_model import decoder_in
from claimbench.checkpoints.local_files import has_tokenizer
from claimbench.checkpoints.prompt import prompt_ids, tokenizer_in
from claimbench.errors import Unavailable
from claimbench.schema.cell import Cell, row_lengths

UNKNOWN = -1
"""The id of a token that the server counted and did not show."""


def prompt_rows(cell: Cell, checkpoint: Path) -> list[list[int]]:
    """Token ids of each row of the workload: row 0 the whole prompt, the others its ends where they are shorter."""
    row = prompt_ids(cell, checkpoint, decoder_in(checkpoint, cell.checkpoint).vocabulary)
    return [row[len(row) - length :] for length in row_lengths(cell.workload, len(row))]


class Tokenizer:
    """The checkpoint's own tokenizer."""

    def __init__(self, checkpoint: Path) -> None:
        """Raises Unavailable where there is none: random weights have no words."""
        if not has_tokenizer(checkpoint):
            raise Unavailable("this server takes text, and the checkpoint has no tokenizer")
        self._tokenizer = tokenizer_in(checkpoint)

    def text_of(self, row: list[int]) -> str:
        """A text that the server's tokenizer turns into exactly `row`.

        Raises:
            Unavailable: there is none, so that the server would be given another prompt.
        """
        added = list(self._tokenizer("").input_ids)  # a beginning that the server will add by itself
        written = row[len(added) :] if row[: len(added)] == added else row
        whole, plain = self._tokenizer.decode(written), self._tokenizer.decode(row, skip_special_tokens=True)
        for text in (plain, whole):  # a chat's special tokens must be in its text
            if list(self._tokenizer(text).input_ids) == row:
                return str(text)
        raise Unavailable(
            f"this server takes text, and no text gives exactly these {len(row)} tokens: leave prompt_tokens out"
        )

    @cached_property
    def _by_text(self) -> dict[str, int]:
        """Token by text, where the text is one token's alone. Decoded behind another: some drop a leading space."""
        before = self._tokenizer.encode("a", add_special_tokens=False)
        skipped = len(self._tokenizer.decode(before))
        ids = range(len(self._tokenizer))
        texts = self._tokenizer.batch_decode([[*before, id] for id in ids], skip_special_tokens=True)
        own = {id: text[skipped:] for id, text in zip(ids, texts, strict=True)}
        count = Counter(own.values())
        return {text: id for id, text in own.items() if text and count[text] == 1 and "\ufffd" not in text}

    def prepare(self) -> None:
        """Read the vocabulary now, so that no answer waits for it."""
        _ = self._by_text

    def ids_of(self, text: str) -> list[int]:
        """Tokens of the text of one event."""
        known = self._by_text.get(text)
        return [known] if known is not None else list(self._tokenizer.encode(text, add_special_tokens=False))
