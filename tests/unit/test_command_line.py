"""`snakemake --config` means what the same words in params.yaml mean."""

from __future__ import annotations

import pytest
from snakemake.cli import parse_config

from claimbench.errors import ConfigError
from claimbench.workflow.command_line import as_written


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("measure={series: 1}", {"measure": {"series": 1}}),
        ("measure={threads: null, tolerance: 0.03}", {"measure": {"threads": None, "tolerance": 0.03}}),
        ("studies=[quickstart, bloom]", {"studies": ["quickstart", "bloom"]}),
        ("device=cpu", {"device": "cpu"}),
    ],
)
def test_numbers_inside_are_numbers(given: str, meant: dict[str, object]) -> None:
    once = as_written(parse_config([given]))
    assert once == meant
    assert as_written(once) == meant, "each job is given them again"


def test_what_is_no_yaml_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"--config measure\.series"):
        as_written({"measure": {"series": "{1"}})
