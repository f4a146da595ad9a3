"""Accelerators by their makers' data sheets, for limits of machines that are not here. Never for this machine's own."""

from __future__ import annotations

from typing import NamedTuple


class Hardware(NamedTuple):
    read_bytes_per_s: float
    """Of device memory."""
    memory_bytes: float
    flops_per_s: float
    """Dense matrix products of 16-bit floats; of 8-bit integers it is twice that on all of these."""
    link_bytes_per_s: float
    """Between two devices of a node, in each direction: half of what a data sheet calls the link's bandwidth."""


GIB = 2**30
HARDWARE: dict[str, Hardware] = {
    "NVIDIA A10G": Hardware(600e9, 24 * GIB, 125e12, 32e9),
    "NVIDIA L4": Hardware(300e9, 24 * GIB, 121e12, 32e9),
    "NVIDIA A100-SXM4-40GB": Hardware(1555e9, 40 * GIB, 312e12, 300e9),
    "NVIDIA A100-SXM4-80GB": Hardware(2039e9, 80 * GIB, 312e12, 300e9),
    "NVIDIA H100 80GB HBM3": Hardware(3350e9, 80 * GIB, 989e12, 450e9),
    "NVIDIA H200": Hardware(4800e9, 141e9, 989e12, 450e9),
}
