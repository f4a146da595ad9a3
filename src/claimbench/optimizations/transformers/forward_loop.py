"""Physics: saves host time, not bytes. `generate` prepares inputs, masks, logits processors and stopping criteria
anew at every step, and asks the device whether it is done, which waits for it. This loop is what is left without all
that: one forward pass over the prompt, then one pass per token, the argmax taken on the device. It cannot help where
the device is busy longer than the host takes to queue a step.

With `static_cache` it is the guide's second way: an explicit StaticCache, allocated once and reset between
generations. Rows that are padded on the right get a mask for the prompt alone, as the guide's sample has it: its steps
attend to the padding as well, and the first new token of a shorter row is chosen behind that.
"""

from __future__ import annotations

import inspect

from claimbench.errors import Unavailable
from claimbench.hf.evidence import TransformersEvidence
from claimbench.hf.setup import Generation, GenerationSetup
from claimbench.proof import Findings, expect
from claimbench.schema.cell import Cell
from claimbench.schema.frozen import Frozen

SEAM = "loop"
EXACT = True
LIBRARIES: tuple[str, ...] = ()


class Settings(Frozen):
    """None."""


def unavailable(cell: Cell, settings: Settings) -> str | None:
    return None


def apply(setup: GenerationSetup, settings: Settings) -> None:
    import torch

    setup.loop = forward_loop
    setup.around.insert(0, torch.no_grad)  # as `generate` does; a grad optimization comes inside and has the last word


def forward_loop(generation: Generation) -> None:
    """Prefill, then one pass per token."""
    import torch

    model, cache = generation.model, generation.cache
    taken = inspect.signature(model.forward).parameters
    if cache is not None and "past_key_values" not in taken:
        raise Unavailable("a model of this family takes its cache under a name of its own")
    head_at = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}
    sequence = generation.prompt  # [batch, length]
    inputs, positions = sequence, torch.arange(sequence.shape[1], device=sequence.device)[None]  # [1, length]
    padded = not bool(generation.mask.all())
    for number in range(generation.new_tokens):
        masked = {"attention_mask": generation.mask} if padded and number == 0 else {}
        at = {"position_ids": positions} if "position_ids" in taken else {}  # some hybrids begin again at 0
        output = model(input_ids=inputs, past_key_values=cache, use_cache=cache is not None, **head_at, **at, **masked)
        token = generation.choose(sequence, output.logits[:, -1])[:, None]  # [batch, 1]
        generation.emit(token)
        sequence = torch.cat([sequence, token], dim=1)
        inputs = sequence if cache is None else token
        positions = torch.arange(sequence.shape[1] - inputs.shape[1], sequence.shape[1], device=sequence.device)[None]


def prove(evidence: TransformersEvidence, settings: Settings) -> Findings:
    held = "forward_loop" in evidence.functions and "generate" not in evidence.functions
    expect("forward_loop", held, "the loop of this file on the stack, and no `generate`", evidence.functions)
    return {"functions": evidence.functions}
