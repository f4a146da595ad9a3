"""Sets of instructions that products.h has a way for, and how to ask a compiler for one of them.

Without asking, the step is built for all that this CPU has. Asking for less is for comparisons: the same kernels on
another CPU, or beside systems that are held to the same instructions.
"""

from __future__ import annotations

import platform
from typing import Literal, NamedTuple, get_args

from claimbench.errors import Unavailable
from claimbench.system import machine

Instructions = Literal["sse2", "avx2", "avx_vnni", "avx512", "avx512_vnni"]
"""As the built code names itself; `neon` and `portable` are what it is on other CPUs, where there is nothing to ask."""
NAMES: tuple[Instructions, ...] = get_args(Instructions)


class InstructionSet(NamedTuple):
    flags: tuple[str, ...]
    """That GCC 11 and Clang 12 and later take."""
    needs: frozenset[str]
    """As Linux names them."""


_AVX2 = frozenset({"avx2", "fma", "f16c", "bmi2"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
SETS: dict[Instructions, InstructionSet] = {
    "sse2": InstructionSet(("-march=x86-64",), frozenset({"sse2"})),
    "avx2": InstructionSet(("-march=x86-64-v3",), _AVX2),
    "avx_vnni": InstructionSet(("-march=x86-64-v3", "-mavxvnni"), _AVX2 | {"avx_vnni"}),
    "avx512": InstructionSet(("-march=x86-64-v4",), _AVX512),
    "avx512_vnni": InstructionSet(("-march=x86-64-v4", "-mavx512vnni"), _AVX512 | {"avx512_vnni"}),
}


def lacks(name: Instructions) -> str | None:
    """Why this CPU does not run the instructions `name`, or None."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"the instructions {name} are of x86-64, and this CPU is {platform.machine()}"
    missing = sorted(SETS[name].needs - machine.cpu_flags())
    return f"this CPU has not the instructions {name}: it lacks {', '.join(missing)}" if missing else None


def flags_of(name: Instructions | None) -> tuple[str, ...]:
    """What to build with; None asks for nothing, which means all that this CPU has.

    Raises:
        Unavailable: this CPU does not run them.
    """
    if name is None:
        return ()
    reason = lacks(name)
    if reason:
        raise Unavailable(reason)
    return SETS[name].flags


def here() -> tuple[Instructions, ...]:
    """Those that this CPU runs."""
    return tuple(name for name in NAMES if lacks(name) is None)
