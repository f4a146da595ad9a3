"""docs/fidelity.md names every claim of the four documents, and nothing that is not in their studies."""

from __future__ import annotations

import re
from functools import cache

import pytest
from tests.unit.test_studies import DOCUMENTS, ROOT, studies

STATES = ("ok", "differs", "on paper", "cannot")


@cache
def sections() -> dict[str, list[list[str]]]:
    """Study -> the cells of each row of its table."""
    parts = re.split(r"^## .*\(`studies/(\w+)\.yaml`\)$", (ROOT / "docs/fidelity.md").read_text(), flags=re.MULTILINE)
    return {
        name: [re.split(r" \| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")][1:]
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_claim_of_a_document_has_a_row(name: str) -> None:
    letter, count = DOCUMENTS[name]
    text = " ".join(" ".join(row) for row in sections()[name])
    assert {f"{letter}{number}" for number in range(1, count + 1)} - set(re.findall(r"\b[A-Z]\d+\b", text)) == set()


def test_every_claim_that_is_named_exists() -> None:
    known = {claim.id for name in DOCUMENTS for claim in studies(name)[name].claims}
    text = " ".join(cell for rows in sections().values() for row in rows for cell in row[1:])
    names = set(re.findall(r"(?<![\w-])[ABCDEPX]\d{1,2}\b(?!\d)", text))
    assert names - known - {"A100"} == set()
    assert len(names) > 80


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_row_that_is_named_is_in_its_study(name: str) -> None:
    experiments = studies(name)[name].experiments
    named = [address for row in sections()[name] for address in re.findall(r"`(\w+/\w+)`", " ".join(row))]
    assert len(named) > 15
    for address in named:
        experiment, _, label = address.partition("/")
        assert experiment in experiments, address
        assert label in experiments[experiment].cells, address


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_row_has_a_state_and_what_cannot_be_has_a_reason(name: str) -> None:
    for row in sections()[name]:
        assert len(row) == 3, row
        assert row[2].startswith(STATES), row
        assert not row[2].startswith(("cannot", "differs")) or len(row[2]) > 14, row
