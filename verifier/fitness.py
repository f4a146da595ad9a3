"""Whether the cells of a check are what its claim's sentence is about, as `Verdicts` of docs/statistics.md says."""

import json

from raw import FAMILIES, SHAPES, sizes

SAME_WORK = {"device", "weights", "prompt", "versions", "warm-up", "samples", "statistic"}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
STORED = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


def departs(row, of=None):
    """Whether a row's cell departs from the document's in `of`, else in its work; once, sentences told of models."""
    parts = {"model" if isinstance(one, str) else one["of"] for one in row["deviations"]}
    return of in parts if of else bool(parts - SAME_WORK)


def is_unfit(plan, claim, kind, rows):
    """Whether rows of a check of this kind cannot decide it, whatever they measured."""
    needs, rows = claim.get("needs") or {}, [row for row in rows if row["cell"]]
    if kind == "computed" or claim.get("device") not in (None, plan["device"]):
        return kind != "computed"
    if kind in ("identity", "outcome"):
        return False
    is_other = needs.get("model") and any(departs(row, "model") for row in rows)
    return is_other or any(lacks(needs, plan["cells"][row["cell"]]["cell"]) for row in rows)


def lacks(needs, cell):
    model, draft, least = cell["checkpoint"], cell["draft"], needs.get("checkpoint_gb")
    if needs.get("trained") and model["source"].startswith("random://"):
        return True
    if needs.get("draft") and draft and (draft["source"].startswith("random://") or draft.get("keep_layers")):
        return True
    held = held_bytes(model, BYTES[cell["dtype"]]) if least else None
    return held is not None and held / 1e9 < least


def held_bytes(checkpoint, width):
    """Of all weights as they are stored, others `width` each; None where nothing is known of the model."""
    name, card = checkpoint["architecture"], checkpoint["card"] or {}
    known = name and json.loads((SHAPES / f"{name}.json").read_text(encoding="utf-8"))["model_type"] in FAMILIES
    if known and not card.get("quantized"):
        return sizes(name, checkpoint.get("keep_layers"))[0] * width
    if card.get("stored_bytes"):
        return sum(size * width / STORED.get(kind, width) for kind, size in card["stored_bytes"]["held"].items())
    if card.get("stored"):
        few = card["stored"]["experts_alone"]
        matrices = card["experts"]["weights"] - card["experts"]["biases"] if few else card["matrices"]
        return matrices * min(card["stored"]["bits"] / 8, width) + (card["weights"] - matrices) * width
    return card["weights"] * width if card else None
