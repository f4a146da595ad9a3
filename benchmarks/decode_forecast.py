"""What a decode step of batch 1 launches and moves on each path, and the least time that it takes, before it runs.

`python benchmarks/decode_forecast.py --write` writes docs/decode-forecast.md. No weights and no GPU are needed: models
are shapes without values. Launches and bytes are those of the step itself: its own kernels are counted where they would
be launched, with the tensors that they are given; of PyTorch's, each operator that computes is one, which reads its
inputs and writes its outputs. A kernel is taken to move its bytes at the whole bandwidth, so a forecast is the least
that a path can take; what is compiled is counted on a GPU alone.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from claimbench.checkpoints.tensors import shapes
from claimbench.cost_model import cost
from claimbench.engine.decoder import Engine
from claimbench.engine.kernels.decode_kernels import On, Place
from claimbench.engine.kernels.decode_step import DecodeKernels
from claimbench.engine.kernels.launches import counting
from claimbench.engine.model.read_spec import read_spec
from claimbench.engine.model.shards import Shards
from claimbench.engine.model.transformer import Transformer
from claimbench.engine.model.weights import weights_in
from claimbench.engine.steps.static import static_step
from claimbench.optimizations import find, settings_of

PAGE = Path(__file__).parents[1] / "docs" / "decode-forecast.md"
MODELS = ("mistral-7b", "starcoder", "tinyllama-1.1b")
KEYS = (64, 1024)
FORMATS = {"bfloat16": None, "int8": "weight_int8", "fp8": "weight_fp8", "int4": "weight_int4"}
BANDWIDTH = 3.0e12
"""Bytes a second that a plain kernel reads on an H100."""
BETWEEN_S = 1.3e-6
"""From the end of a kernel to the begin of the next, in a graph."""
LAUNCH_S = 5e-6
"""That the host takes to launch a kernel, without a graph."""
H100 = On(processors=132, native_fp8=True, pdl=False)


@dataclass(frozen=True)
class Counted:
    launches: int
    bytes: int


@dataclass(frozen=True)
class Way:
    """A way of stepping."""

    name: str
    own: bool
    """The kernels of `triton_step`; else PyTorch's operators."""
    graphed: bool


WAYS = {
    "host": Way("operators, launched by the host", own=False, graphed=False),
    "cuda_graphs": Way("operators, in a graph", own=False, graphed=True),
    "triton_step": Way("`triton_step`", own=True, graphed=True),
}


class WithoutValues(Shards):
    """A model's tensors, of which only shapes and types are there."""

    def __init__(self, architecture: str) -> None:
        super().__init__(Path(architecture), torch.bfloat16, "meta")
        self.table = shapes(cost.architecture(architecture))
        self.where = dict.fromkeys(self.table)  # type: ignore[assignment]

    def find(self, name: str) -> Tensor | None:
        known = self.known(name)
        return None if known is None else torch.empty(self.table[known], dtype=self.dtype, device="meta")


def model_of(architecture: str, form: str) -> Transformer:
    spec = read_spec(cost.config(architecture))
    engine, technique = Engine(torch.bfloat16, torch.device("meta")), FORMATS[form]
    if technique:
        find(technique).apply(engine, settings_of(technique, {"compiled": False}))
    return Transformer(spec, weights_in(WithoutValues(architecture), spec), engine.parts, longest=2048)


class Operators(TorchDispatchMode):
    """Counts the operators that compute, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if not is_view and func.overloadpacket not in (torch.ops.aten.empty, torch.ops.aten._unsafe_view):
            self.launches += 1
            self.bytes += sum(_moved(func, each) for each in tree_leaves((args, kwargs, out)))
        return out


def _moved(func: Any, leaf: object) -> int:
    """Of a table, some rows are read; into the cache, a column is written. Tensors of a few numbers do not count."""
    if not isinstance(leaf, Tensor):
        return 0
    if func.overloadpacket in (torch.ops.aten.embedding, torch.ops.aten.index, torch.ops.aten.index_copy_):
        return 0
    return leaf.numel() * leaf.element_size()


def place() -> Place:
    return Place(torch.empty((), dtype=torch.int64, device="meta"), torch.empty(1, dtype=torch.int64, device="meta"))


def count(model: Transformer, keys: int, own: bool) -> Counted:
    """One step of a sequence whose last slot is number `keys`, in a cache of just as many."""
    arch, here = model.spec.arch, place()
    shape = 1, arch.kv_heads, keys, arch.head_dim
    cache = [[torch.empty(shape, dtype=torch.bfloat16, device="meta") for _ in model.layers] for _ in range(2)]
    tokens = torch.empty((1, 1), dtype=torch.int64, device="meta")
    if own:
        kernels = DecodeKernels(model, H100, 1, keys)
        with counting(keys, dry=True) as counted:
            kernels(tokens, here, *cache)
        return Counted(len(counted.launches), counted.bytes)
    with Operators() as operators:
        static_step(model, tokens, here.past, here.padding, None, *cache)
    return Counted(operators.launches, operators.bytes)


def model_bytes(model: Transformer, keys: int) -> int:
    """The least that a step reads: its matrices and norms, and the keys and values."""
    read = [part for part in (model.layers, model.norm, model.head) if isinstance(part, torch.nn.Module)]
    tables = {id(table) for layer in model.layers if layer.rotary for table in layer.rotary.buffers()}
    tensors = [each for part in read for each in (*part.parameters(), *part.buffers()) if id(each) not in tables]
    cache = cost.kv_bytes(model.spec.arch, 1, keys, 2)
    return sum(each.numel() * each.element_size() for each in tensors) + int(cache)


@dataclass(frozen=True)
class Forecast:
    model: str
    form: str
    way: Way
    keys: int
    counted: Counted
    least_bytes: int

    def seconds(self, bandwidth: float, between_s: float = BETWEEN_S, launch_s: float = LAUNCH_S) -> float:
        """The device's time, or the host's where it is the later one."""
        on_device = self.counted.bytes / bandwidth + self.counted.launches * between_s
        return on_device if self.way.graphed else max(on_device, self.counted.launches * launch_s)

    def of_read(self, bandwidth: float) -> float:
        """The share of the bandwidth that is for what the model must read."""
        return self.least_bytes / bandwidth / self.seconds(bandwidth)


def forecast(model: Transformer, architecture: str, form: str, keys: int, way: Way) -> Forecast:
    return Forecast(architecture, form, way, keys, count(model, keys, way.own), model_bytes(model, keys))


def forecasts(architecture: str) -> list[Forecast]:
    """Of operators that widen codes, only those in a graph: what the host adds is nothing beside their bytes."""
    found = []
    for form in FORMATS:
        model = model_of(architecture, form)
        ways = [way for name, way in WAYS.items() if form == "bfloat16" or name != "host"]
        found += [forecast(model, architecture, form, keys, way) for keys in KEYS for way in ways]
    return found


def row(one: Forecast) -> str:
    moved = one.counted.bytes / one.least_bytes
    least, seconds = one.least_bytes / 1e9, one.seconds(BANDWIDTH)
    return (
        f"| {one.way.name} | {one.form} | {one.keys:,} | {one.counted.launches:,} | {least:.2f} | {moved:.3f} "
        f"| {seconds * 1e3:.2f} | {one.of_read(BANDWIDTH):.0%} |"
    )


TERABYTES, BETWEEN, LAUNCH = f"{BANDWIDTH / 1e12:.1f}", f"{BETWEEN_S * 1e6:.1f}", f"{LAUNCH_S * 1e6:.0f}"
HEAD = f"""# What a decode step launches and moves

Written by [decode_forecast.py](../benchmarks/decode_forecast.py), which counts one step of one row on each path of the
engine, without weights and without a GPU. None of it is measured. The engine's own kernels are counted where they would
be launched, by the tensors that they are given. Each operator of PyTorch that computes counts as one kernel, which
reads its inputs and writes its outputs. It is assumed that a kernel moves its bytes at {TERABYTES} TB/s, about what one
reads on an H100, that {BETWEEN} us pass from one kernel to the next in a graph, and that the host takes {LAUNCH} us to
launch one. So a time is the least that a path can take, and the last column the most of the bandwidth that it can
reach.

- **GB**: what a step must read, matrices and norms in their format, keys and values in bfloat16.
- **moved**: bytes that the kernels read and write, as a multiple of GB. It is large where operators first write
  quantized weights out as a whole matrix.
"""


def page() -> str:
    lines = [HEAD]
    for architecture in MODELS:
        lines += [f"## {architecture}", ""]
        lines += ["| path | weights | keys | kernels | GB | moved | ms | of bandwidth |", "|" + "---|" * 8]
        lines += [*map(row, forecasts(architecture)), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"into docs/{PAGE.name}, instead of printing")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page())


if __name__ == "__main__":
    main()
