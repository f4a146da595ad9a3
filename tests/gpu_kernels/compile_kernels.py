"""Compiles the decode step's kernels to machine code for GPUs that are not here; prints what came of each as JSON."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from claimbench.engine.kernels import triton_attention, triton_gemv

TYPES = {"plain": "*bf16", "int8": "*i8", "int4": "*u8", "fp8": "*u8"}
TILES = {"plain": 1024, "int8": 2048, "int4": 4096, "fp8": 2048}
HEADS = {"heads": 32, "kv_heads": 8, "head_dim": 128}


def gemv(form: str, end: str, norm: str, batch: int, splits: int, many: int = 4096, columns: int = 4096) -> Any:
    """A kernel's types and constants, as a step of a model of 8 billion weights has them."""
    tile = TILES[form] // (batch * (2 if end in ("gate", "heads") else 1))
    types = {name: "*bf16" for name in ("x", "bias", "gain", "shift", "residual", "out", "keys", "values")}
    types |= {"codes": TYPES[form], "scale": "*fp32" if form == "fp8" else "*fp16", "minimum": "*fp16"}
    types |= {"partial": "*fp32", "counter": "*i32", "cos": "*fp32", "sin": "*fp32", "past": "*i64"}
    types |= {"padding": "*i64", "of_batch": "i32", "of_head": "i32", "eps": "fp32", "cap": "fp32"}
    constants = {"many": many, "columns": columns, "per_split": columns // splits, "splits": splits, "batch": batch}
    constants |= {"rows": 4, "tile": tile, "whole": columns, "form": form, "norm": norm, "shifted": norm == "layer"}
    constants |= {"biased": True, "end": end, "activation": "silu" if end == "gate" else "none", "width": 128}
    return triton_gemv.decode_gemv, types, constants | HEADS


def attention(head_dim: int, splits: int, sloped: bool, window: int) -> Any:
    names = ("q", "keys", "values")
    types = {name: "*bf16" for name in names} | {"out": "*bf16" if splits == 1 else "*fp32", "past": "*i64"}
    types |= {"padding": "*i64", "slopes": "*fp32", "peaks": "*fp32", "sums": "*fp32", "scale": "fp32", "cap": "fp32"}
    types |= {"of_batch": "i32", "of_head": "i32"}
    wide = 1 << (head_dim - 1).bit_length()
    constants = HEADS | {"head_dim": head_dim, "shared": 16, "wide": wide, "tile": max(16, min(128, 8192 // wide))}
    return triton_attention.decode_attention, types, constants | {"splits": splits, "window": window, "sloped": sloped}


def small() -> dict[str, Any]:
    bf16 = "*bf16"
    place = {"past": "*i64", "padding": "*i64"}
    embed = {"tokens": "*i64", "table": bf16, "places": bf16, **place, "gain": bf16, "shift": bf16, "out": bf16}
    heads = {"mixed": bf16, "q_gain": bf16, "q_shift": bf16, "k_gain": bf16, "k_shift": bf16, "cos": "*fp32"}
    heads |= {"sin": "*fp32", "q_out": bf16, "keys": bf16, "values": bf16, **place}
    heads |= {"of_batch": "i32", "of_head": "i32", "eps": "fp32"}
    norm_add = {"given": bf16, "residual": bf16, "gain": bf16, "shift": bf16, "out": bf16, "eps": "fp32"}
    parts = {"parts": "*fp32", "peaks": "*fp32", "sums": "*fp32", "out": bf16}
    sizes = {"columns": 4096, "whole": 4096}
    found: dict[str, Any] = {
        "combine": (triton_attention.decode_combine, parts, {"head_dim": 80, "wide": 128, "splits": 12, "many": 16})
    }
    for norm, shifted in (("rms", False), ("layer", True)):
        own = {"norm": norm, "shifted": shifted}
        found[f"norm_add {norm}"] = (triton_attention.decode_norm_add, norm_add, sizes | own)
        scalars = {"factor": "fp32", "eps": "fp32"}
        found[f"embed {norm}"] = (triton_attention.decode_embed, embed | scalars, sizes | own | {"placed": shifted})
    for together, own in ((False, False), (False, True), (True, False)):
        constants = HEADS | {"wide": 128, "section": 4096, "together": together, "own": own, "width": 128}
        constants |= {"centred": own, "shifted": own}
        found[f"heads {together} {own}"] = (triton_attention.decode_heads, heads, constants)
    return found


def kernels() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for form, end in itertools.product(TYPES, ("add", "gate", "heads")):
        found[f"gemv {form} {end}"] = gemv(form, end, "none" if end == "add" else "rms", 1, 1)
    for form in TYPES:
        found[f"gemv {form} of 4 rows"] = gemv(form, "gate", "layer", 4, 1)
        found[f"gemv {form} of few rows"] = gemv(form, "heads", "rms", 2, 4)
    for head_dim, splits in ((64, 8), (80, 1), (128, 16), (256, 8)):
        found[f"attention {head_dim}"] = attention(head_dim, splits, head_dim == 64, 4096 if head_dim == 256 else 0)
    return found | small()


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int) -> dict[str, Any]:
    recent = capability >= 90
    names = kernel.arg_names
    flags = {"native": recent, "pdl": recent}
    constants = constants | {name: value for name, value in flags.items() if name in names}
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types.get(name, "")[:1] in ("*", "i")}
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": 4} | ({"launch_pdl": True} if recent else {})
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = made.asm["ptx"]
    return {
        "cubin": len(made.asm["cubin"]),
        "shared": made.metadata.shared,
        "waits": ptx.count("griddepcontrol.wait"),
        **loads(ptx),
        **machine_code(made.asm["cubin"]),
    }


def loads(ptx: str) -> dict[str, Any]:
    """How often each width of global loads is written, in bytes."""
    widths: dict[str, int] = {}
    for many, kind in re.findall(r"ld\.global(?:\.\w+)*?(?:\.v(\d))?\.b(\d+)", ptx):
        width = int(many or 1) * int(kind) // 8
        widths[str(width)] = widths.get(str(width), 0) + 1
    return {"loads": widths}


def machine_code(cubin: bytes) -> dict[str, Any]:
    """Registers, bytes that spill, and how many instructions there are."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [str(tools / "cuobjdump"), "-res-usage", file.name], capture_output=True, text=True, check=True
        )
        text = said.stdout + said.stderr
    registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    assert registers, text
    assert stack, text
    return {"registers": int(registers[1]), "stack": int(stack[1])}


def main() -> None:
    found: dict[str, Any] = {}
    for (name, made), capability in itertools.product(kernels().items(), (80, 90)):
        try:
            found[f"{name} sm_{capability}"] = compiled(*made, capability)
        except Exception as error:  # every kernel is told of, whatever stops one
            found[f"{name} sm_{capability}"] = {"error": f"{type(error).__name__}: {error}"[-1500:]}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
