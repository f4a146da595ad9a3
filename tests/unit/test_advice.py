"""What to switch on, in a kept report: each row stands where it belongs, and says what a reader must know."""

from __future__ import annotations

import re
from pathlib import Path

REPORT = Path(__file__).parents[2] / "reports/quickstart-slow-hour-amd-epyc-2-cores/report.md"
LATENCY = REPORT.read_text(encoding="utf-8").partition("### For a lower latency")[2].partition("### For a higher")[0]


def rows_under(title: str) -> list[str]:
    """Of all tables from `title` to the next bold one, or to what was left out."""
    part = re.split(r"^\*\*|<summary>Left out", LATENCY.partition(f"**{title}**")[2], flags=re.MULTILINE)[0]
    return [line for line in part.splitlines() if line.startswith("| `")]


def test_what_rounds_stands_apart_though_its_tokens_were_the_same() -> None:
    same, other = rows_under("With the plain run's tokens"), rows_under("Lossy, or tokens that were not compared")
    assert any("`prompt_lookup` on" in row for row in same)
    assert not [row for row in same if re.search(r"bfloat16|torchao|bitsandbytes|on `engine`|KL ", row)]
    assert any("dtype=torch.bfloat16" in row and "same tokens, KL " in row for row in other)
    assert all(re.search(r"bfloat16|torchao|bitsandbytes", row) for row in other)


def test_the_engine_stands_apart_and_nobody_is_told_to_switch_it_on_elsewhere() -> None:
    own = rows_under("What this machine could give: Claimbench's own engine")
    assert own
    assert all("on `engine`" in row for row in own)
    assert not [row for row in own if "from_pretrained" in row or "generate(" in row]


def test_a_gain_says_where_the_same_gains_nothing() -> None:
    (row,) = [row for row in rows_under("With the plain run's tokens") if "`prompt_lookup` on" in row]
    assert re.search(r"<br>but 0\.\d+x \[[^]]*\] \([^)]*\): Prompt lookup on an open prompt", row)


def test_what_was_left_out_says_why() -> None:
    left_out = LATENCY.partition("<summary>Left out")[2]
    assert re.search(r"^\| Without a key-value cache \(quickstart\) \| 0\.\d+x \[", left_out, flags=re.MULTILINE)
    assert re.search(r"^\| llama\.cpp's server, bfloat16 \(quickstart\) \| unavailable: ", left_out, flags=re.MULTILINE)
