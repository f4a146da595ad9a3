"""`snakemake --config`, read as `params.yaml` is.

Snakemake reads `measure={series: 1}` with YAML's base loader, which leaves numbers and `null` inside it as strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from claimbench.schema.validation import parse_yaml


def as_written(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the values that its strings say; a string at the top level was none of YAML's others.

    Raises:
        ConfigError: a string is no YAML.
    """
    return {key: value if isinstance(value, str) else _read(value, key) for key, value in config.items()}


def _read(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _read(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [_read(inner, where) for inner in value]
    return parse_yaml(value, f"--config {where}") if isinstance(value, str) else value
