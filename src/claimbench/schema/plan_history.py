"""What a plan looked like before, so that reports that git keeps are rendered by later versions too.

until 0.1   a document's `setting` was a sentence, which is `measured` now; a row's deviations were sentences,
            of which plans that are kept have one kind: `A (its architecture) swapped for B`
"""

from __future__ import annotations

import re
from typing import Any

SWAPPED = re.compile(r"(?P<documented>.+?)(?: \(.*\))? swapped for (?P<here>.+)")


def as_of_today(content: Any) -> Any:
    """`content` of a plan's file, as this version writes it.

    Raises:
        ValueError: a deviation is a sentence of another kind.
    """
    for planned in _values(content, "studies"):
        document = planned["study"]["document"]
        if isinstance(document.get("setting"), str):
            document["measured"] = document.pop("setting")
        for row in (row for rows in _values(planned, "rows") for row in rows.values()):
            row["deviations"] = [_deviation(each) for each in row.get("deviations", [])]
    return content


def _values(content: Any, name: str) -> list[Any]:
    found = content.get(name) if isinstance(content, dict) else None
    return list(found.values()) if isinstance(found, dict) else []


def _deviation(found: Any) -> Any:
    if not isinstance(found, str):
        return found
    swap = SWAPPED.fullmatch(found)
    if swap is None:
        raise ValueError(f"a deviation that no version of today knows: {found[:80]!r}")
    return {"of": "model", **swap.groupdict()}
