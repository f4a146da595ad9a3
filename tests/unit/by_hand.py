"""What a pass of five published models costs, as on paper: sums over their configs, without anything of the product.

python -m tests.unit.by_hand    writes docs/ceilings.md
"""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ceilings.md"
CONFIGS = Path(__file__).parent / "data" / "configs"
LENGTHS = (0, 4096, 32768)
BANDWIDTHS = {"100 GB/s": 100e9, "3.35 TB/s": 3350e9}
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub},
    **{ast.Mult: operator.mul, ast.Div: operator.truediv},
}
ALL, NONE = "1", "0"


def result(sum: str) -> float:
    """Of arithmetic as it stands on the page, such as `48 x (2 + 3)`."""

    def of(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            found: float = OPERATORS[type(node.op)](of(node.left), of(node.right))
            return found
        assert isinstance(node, ast.Constant)
        return float(node.value) if isinstance(node.value, float) else int(node.value)  # type: ignore[arg-type]

    return of(ast.parse(sum.replace(" x ", " * "), mode="eval").body)


class Role(NamedTuple):
    name: str
    sum: str
    """Of parameters."""
    read: str = ALL
    """The share that a step over one token reads."""
    bits: str = "16"
    """Of a value, as the makers store it."""

    @property
    def parameters(self) -> int:
        return int(result(self.sum))

    @property
    def read_parameters(self) -> float:
        return self.parameters * result(self.read)


class Paper(NamedTuple):
    name: str
    file: str
    published: str
    stored: str | None
    """The makers' own format, where it is not bfloat16."""
    roles: tuple[Role, ...]
    kept: tuple[tuple[str, int | None], ...]
    """Values that are kept for a token, and of how many tokens at most."""

    @property
    def weights(self) -> int:
        return sum(role.parameters for role in self.roles)

    @property
    def read(self) -> float:
        return sum(role.read_parameters for role in self.roles)

    @property
    def active(self) -> float:
        """As makers count: with the embedding, of which a step looks up a row."""
        return self.read + self.looked_up

    @property
    def looked_up(self) -> int:
        return sum(role.parameters for role in self.roles if role.name == "embedding, looked up")

    def kept_values(self, length: int) -> int:
        return sum(int(result(each)) * min(length, most or length) for each, most in self.kept)

    def step_bytes(self, length: int, stored: bool = False) -> float:
        weights = sum(role.read_parameters * (result(role.bits) if stored else 16) / 8 for role in self.roles)
        return weights + 2 * self.kept_values(length)


def config_of(file: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((CONFIGS / f"{file}.json").read_text(encoding="utf-8"))
    return value


def llama() -> Paper:
    c = config_of("llama-3.1-8b")
    layers, hidden, vocabulary = c["num_hidden_layers"], c["hidden_size"], c["vocab_size"]
    heads, kv, inner = c["num_attention_heads"], c["num_key_value_heads"], c["intermediate_size"]
    width = hidden // heads
    roles = (
        Role("embedding, looked up", f"{vocabulary} x {hidden}", NONE),
        Role("attention", f"{layers} x {hidden} x (2 x {heads} + 2 x {kv}) x {width}"),
        Role("feed-forward", f"{layers} x 3 x {hidden} x {inner}"),
        Role("norms", f"{layers} x 2 x {hidden} + {hidden}"),
        Role("head", f"{vocabulary} x {hidden}"),
    )
    return Paper("Llama-3.1-8B", "llama-3.1-8b", "8.03B", None, roles, ((f"{layers} x 2 x {kv} x {width}", None),))


def gemma() -> Paper:
    c, seen = config_of("gemma-3-27b")["text_config"], config_of("gemma-3-27b")["vision_config"]
    layers, hidden, inner = c["num_hidden_layers"], c["hidden_size"], c["intermediate_size"]
    heads, kv, width = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    side, deep, wide = seen["image_size"] // seen["patch_size"], seen["hidden_size"], seen["intermediate_size"]
    of_layer = f"(4 x ({deep} x {deep} + {deep}) + 2 x {deep} x {wide} + {wide} + {deep} + 4 x {deep})"
    patches = f"3 x {seen['patch_size']} x {seen['patch_size']} x {deep} + {deep} + {side} x {side} x {deep}"
    roles = (
        Role("attention", f"{layers} x {hidden} x (2 x {heads} + 2 x {kv}) x {width}"),
        Role("feed-forward", f"{layers} x 3 x {hidden} x {inner}"),
        Role("norms", f"{layers} x (4 x {hidden} + 2 x {width}) + {hidden}"),
        Role("head, which is the embedding", f"{c['vocab_size']} x {hidden}"),
        Role("tower: patches", patches, NONE),
        Role("tower: layers", f"{seen['num_hidden_layers']} x {of_layer} + 2 x {deep}", NONE),
        Role("tower: projector", f"{deep} x {hidden} + {deep}", NONE),
    )
    full = layers // 6  # every sixth sees everything
    kept = (
        (f"{full} x 2 x {kv} x {width}", None),
        (f"{layers - full} x 2 x {kv} x {width}", c["sliding_window"] - 1),
    )
    return Paper("Gemma-3-27B", "gemma-3-27b", "27.4B", None, roles, kept)


def qwen() -> Paper:
    c = config_of("qwen3-30b-a3b")
    layers, hidden, vocabulary = c["num_hidden_layers"], c["hidden_size"], c["vocab_size"]
    heads, kv, width = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    count, active, inner = c["num_experts"], c["num_experts_per_tok"], c["moe_intermediate_size"]
    roles = (
        Role("embedding, looked up", f"{vocabulary} x {hidden}", NONE),
        Role("attention", f"{layers} x {hidden} x (2 x {heads} + 2 x {kv}) x {width}"),
        Role("routers", f"{layers} x {count} x {hidden}"),
        Role("routed experts", f"{layers} x {count} x 3 x {hidden} x {inner}", f"{active} / {count}"),
        Role("norms", f"{layers} x (2 x {hidden} + 2 x {width}) + {hidden}"),
        Role("head", f"{vocabulary} x {hidden}"),
    )
    kept = ((f"{layers} x 2 x {kv} x {width}", None),)
    return Paper("Qwen3-30B-A3B", "qwen3-30b-a3b", "30.5B, 3.3B active", None, roles, kept)


def gpt_oss() -> Paper:
    c = config_of("gpt-oss-20b")
    layers, hidden, vocabulary = c["num_hidden_layers"], c["hidden_size"], c["vocab_size"]
    heads, kv, width = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    count, active, inner = c["num_local_experts"], c["num_experts_per_tok"], c["intermediate_size"]
    biases = f"({heads} + 2 x {kv}) x {width} + {hidden} + {heads}"
    share = f"{active} / {count}"
    roles = (
        Role("embedding, looked up", f"{vocabulary} x {hidden}", NONE),
        Role("attention", f"{layers} x {hidden} x (2 x {heads} + 2 x {kv}) x {width}"),
        Role("its biases and sinks", f"{layers} x ({biases})"),
        Role("routers", f"{layers} x {count} x ({hidden} + 1)"),
        Role("routed experts", f"{layers} x {count} x 3 x {hidden} x {inner}", share, "4 + 8 / 32"),
        Role("their biases", f"{layers} x {count} x (2 x {inner} + {hidden})", share),
        Role("norms", f"{layers} x 2 x {hidden} + {hidden}"),
        Role("head", f"{vocabulary} x {hidden}"),
    )
    of_layers = f"{layers // 2} x 2 x {kv} x {width}"  # every second sees everything
    kept = ((of_layers, None), (of_layers, c["sliding_window"] - 1))
    return Paper("gpt-oss-20b", "gpt-oss-20b", "20.9B, 3.6B active", "mxfp4", roles, kept)


def deepseek() -> Paper:
    c = config_of("deepseek-v3")
    layers, hidden, heads, vocabulary = (
        c[key] for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    )
    of_queries, latent, plain, turned, of_values = (
        c[key] for key in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    count, active, inner = c["n_routed_experts"], c["num_experts_per_tok"], c["moe_intermediate_size"]
    dense = c["first_k_dense_replace"]
    mixed = layers - dense
    queries = f"{hidden} x {of_queries} + {of_queries} x {heads} x ({plain} + {turned})"
    pairs = f"{hidden} x ({latent} + {turned}) + {latent} x {heads} x ({plain} + {of_values})"
    fp8 = "8 + 32 / (128 x 128)"
    roles = (
        Role("embedding, looked up", f"{vocabulary} x {hidden}", NONE),
        Role("attention: queries", f"{layers} x ({queries})", bits=fp8),
        Role("attention: keys and values", f"{layers} x ({pairs})", bits=fp8),
        Role("attention: output", f"{layers} x {heads} x {of_values} x {hidden}", bits=fp8),
        Role("feed-forward of dense layers", f"{dense} x 3 x {hidden} x {c['intermediate_size']}", bits=fp8),
        Role("shared experts", f"{mixed} x {c['n_shared_experts']} x 3 x {hidden} x {inner}", bits=fp8),
        Role("routers", f"{mixed} x {count} x {hidden}"),
        Role("routed experts", f"{mixed} x {count} x 3 x {hidden} x {inner}", f"{active} / {count}", fp8),
        Role("norms", f"{layers} x (2 x {hidden} + {of_queries} + {latent}) + {hidden}"),
        Role("head", f"{vocabulary} x {hidden}"),
    )
    kept = ((f"{layers} x ({latent} + {turned})", None),)
    return Paper("DeepSeek-V3", "deepseek-v3", "671B, 37B active", "fp8", roles, kept)


MODELS: dict[str, Callable[[], Paper]] = {
    "llama-3.1-8b": llama,
    "gemma-3-27b": gemma,
    "qwen3-30b-a3b": qwen,
    "gpt-oss-20b": gpt_oss,
    "deepseek-v3": deepseek,
}
HEAD = """# How fast could it be?

The least that a decode step of one row must read, and so the most tokens per second that a bandwidth allows, for five
published models, as on paper. [The configs](../tests/unit/data/configs/SOURCES.md) name their sources. The tests add it
all up again, compare it with what the product counts, and with the parameters that the makers publish.

- **Embedding**: where the output head has weights of its own, a step reads a row of the embedding, counted as nothing.
- **Mixtures**: a token reads the experts that its router picks.
- **Towers** for pictures or sound are not read by a step over text.
- **Sliding windows**: a layer with a window of n tokens keeps the last n - 1 of them, since the next one takes a place.
- **Formats**: keys and values are kept in bfloat16. mxfp4 has a scale of 8 bits for 32 values, fp8 one of 32 bits for a
  block of 128 x 128.

The last column is for the memory of an NVIDIA H100.
"""


def page() -> str:
    papers = [make() for make in MODELS.values()]
    lines = ["| model | published | parameters | read by a step | with the embedding |", "|---|---|---|---|---|"]
    for paper in papers:
        counts = f"{paper.weights:,} | {paper.read:,.0f} | {paper.active:,.0f}"
        lines.append(f"| {paper.name} | {paper.published} | {counts} |")
    return "\n".join([HEAD, *lines, *(line for paper in papers for line in section(paper))]) + "\n"


def section(paper: Paper) -> list[str]:
    lines = [
        "",
        f"## {paper.name}",
        "",
        "| role | sum | parameters | share read | a step reads |",
        "|---|---|---|---|---|",
    ]
    for role in paper.roles:
        counts = f"{role.parameters:,} | {role.read} | {role.read_parameters:,.0f}"
        lines.append(f"| {role.name} | {role.sum} | {counts} |")
    lines += [f"| together | | {paper.weights:,} | | {paper.read:,.0f} |", ""]
    for each, most in paper.kept:
        bound = f", of the last {most:,} tokens" if most else ""
        lines.append(f"- Kept for a token{bound}: {each} = {result(each):,} values, {2 * result(each):,} bytes")
    if paper.stored:
        own = {role.bits: result(role.bits) for role in paper.roles if role.bits != "16"}
        names = ", ".join(role.name for role in paper.roles if role.bits != "16")
        bits = ", ".join(f"{sum} = {value:g} bits" for sum, value in own.items())
        lines.append(f"- In {paper.stored}, {bits} for a value of: {names}")
    speeds = " | ".join(f"tokens/s at {name}" for name in BANDWIDTHS)
    lines += ["", f"| weights | length | kept, GB | a step reads, GB | {speeds} |", "|---|---|---|---|---|---|"]
    for stored in (False, True)[: 2 if paper.stored else 1]:
        for length in LENGTHS:
            lines.append(_row(paper, length, stored))
    return lines


def _row(paper: Paper, length: int, stored: bool) -> str:
    read = paper.step_bytes(length, stored)
    speeds = " | ".join(f"{bandwidth / read:,.2f}" for bandwidth in BANDWIDTHS.values())
    kept = 2 * paper.kept_values(length) / 1e9
    return f"| {paper.stored if stored else 'bfloat16'} | {length:,} | {kept:,.3f} | {read / 1e9:,.3f} | {speeds} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
