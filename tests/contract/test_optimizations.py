"""Every file in optimizations/, found by its name, keeps the contract."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.contract.conftest import COMPILED, SLOW, Load, Use, companions, make_cell, pairs, rows_of, use

from claimbench import backends, optimizations
from claimbench.checkpoints import counting
from claimbench.cost_model import weight_bytes
from claimbench.errors import Unavailable, WrongOutput
from claimbench.hf import evidence
from claimbench.hf.setup import GenerationSetup
from claimbench.schema.cell import DTYPE_BYTES
from claimbench.schema.frozen import Frozen

ALL = optimizations.names()
NAMES = [name for name in ALL if optimizations.find(name).SEAM in backends.find("transformers").SEAMS]
CPU = [name for name in NAMES if name not in ("flash_attention_2", "torchao_int4")]
EXACT = [name for name in CPU if optimizations.find(name).EXACT]
LOSSY = [name for name in CPU if not optimizations.find(name).EXACT]


def settings(name: str) -> Any:
    return optimizations.settings_of(name, use(name)[1] or ({"layers": 1} if name == "early_exit" else {}))


@pytest.mark.parametrize("name", ALL)
def test_it_holds_what_the_contract_asks(name: str) -> None:
    module: Any = optimizations.find(name)
    assert isinstance(module.SEAM, str)
    assert isinstance(module.EXACT, bool)
    assert isinstance(module.LIBRARIES, tuple)
    assert issubclass(module.Settings, Frozen)
    for function in (module.unavailable, module.apply, module.prove):
        assert callable(function)
    assert getattr(module, "COMPUTE_DTYPE", "float32") in DTYPE_BYTES
    assert getattr(module, "NEEDS", frozenset()) <= set(ALL)
    assert getattr(module, "CLASHES", frozenset()) <= set(ALL)
    assert any(module.SEAM in backends.find(backend).SEAMS for backend in backends.names())


@pytest.mark.parametrize("name", ALL)
def test_its_docstring_opens_with_its_physics(name: str) -> None:
    text = optimizations.find(name).__doc__
    assert text is not None
    assert text.startswith("Physics: ")
    assert any(
        limit in text for limit in ("cannot", "loses", "gains nothing", "only cost", "costs", "cost more", "slower")
    )


@pytest.mark.parametrize("name", ALL)
def test_it_names_no_backend(name: str) -> None:
    file = Path(str(optimizations.find(name).__file__))
    imported = {
        node.module
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert not [module for module in imported if module.startswith("claimbench.backends")]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_says_why_it_is_unavailable_in_one_line(name: str, device: str) -> None:
    module: Any = optimizations.find(name)
    cell = make_cell(draft=True).model_copy(update={"device": device})
    reason = module.unavailable(cell, settings(name))
    assert reason is None or (reason and "\n" not in reason)


def test_planning_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from claimbench import backends, optimizations\n"
        "from claimbench.schema.cell import Cell, Checkpoint, Workload\n"
        "from pydantic import ValidationError\n"
        "for device in ('cpu', 'cuda'):\n"
        "    checkpoint = Checkpoint(name='t', source='random://tiny-llama', architecture='tiny-llama')\n"
        "    work = Workload(prompt='a', new_tokens=4)\n"
        "    cell = Cell(checkpoint=checkpoint, backend='transformers', workload=work, device=device)\n"
        "    for name in backends.names(): backends.find(name).unavailable(cell)\n"
        "    for name in optimizations.names():\n"
        "        module = optimizations.find(name)\n"
        "        required = [key for key, field in module.Settings.model_fields.items() if field.is_required()]\n"
        "        values = {key: 'd' if key == 'draft' else 1 for key in required}\n"
        "        module.unavailable(cell, module.Settings(**values))\n"
        "heavy = {'torch', 'transformers', 'bitsandbytes', 'torchao', 'flash_attn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["flash_attention_2", "torchao_int4"])
def test_what_needs_cuda_says_so(name: str) -> None:
    module: Any = optimizations.find(name)
    assert "CUDA" in module.unavailable(make_cell(), settings(name))


@pytest.mark.model
@pytest.mark.parametrize("name", NAMES)
def test_apply_changes_the_recipe(name: str) -> None:
    plain, changed = GenerationSetup(dtype="float32"), GenerationSetup(dtype="float32")
    optimizations.find(name).apply(changed, settings(name))
    changed.phase = plain.phase
    assert changed != plain


@pytest.mark.model
@pytest.mark.parametrize("name", EXACT)
def test_an_exact_technique_emits_the_same_tokens_and_proves_itself(
    name: str, load: Load, plain_rows: list[list[int]]
) -> None:
    session = load(*companions(name))
    assert rows_of(session) == plain_rows
    assert rows_of(session) == plain_rows, "the second generation differs from the first"
    assert name in session.prove()["optimizations"]
    assert rows_of(session) == plain_rows, "the proof changed the session"


def skip_where_not_installed(name: str) -> None:
    reason = optimizations.find(name).unavailable(make_cell(), settings(name))
    if reason and "not installed" in reason:
        pytest.skip(reason)


@pytest.mark.model
@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_technique_generates_and_can_be_compared(name: str, load: Load, plain_rows: list[list[int]]) -> None:
    skip_where_not_installed(name)
    session, plain = load(use(name)), load()
    rows = rows_of(session)
    assert [len(row) for row in rows] == [len(row) for row in plain_rows]
    assert name in session.prove()["optimizations"]
    ours, theirs = session.log_probs(rows[0]), plain.log_probs(rows[0])
    assert ours.shape == theirs.shape == (len(rows[0]), 300)
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    assert 0 < float(kl.mean()) < 0.5
    assert session.memory()["weights"] < plain.memory()["weights"]


def first_of(members: frozenset[str]) -> str:
    return "+".join(sorted(members))


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("members", pairs([name for name in EXACT if name not in SLOW]), ids=first_of)
def test_two_exact_techniques_together_emit_the_same_tokens(
    members: frozenset[str], load: Load, plain_rows: list[list[int]]
) -> None:
    session = load(*map(use, sorted(members)))
    assert rows_of(session) == plain_rows
    assert set(session.prove()["optimizations"]) == members


@pytest.mark.model
@pytest.mark.parametrize("uses", COMPILED, ids=lambda uses: "+".join(name for name, _ in uses))
def test_a_compiled_static_step_is_compiled_once(
    uses: tuple[Use, ...], load: Load, plain_rows: list[list[int]]
) -> None:
    session = load(*uses)
    assert rows_of(session) == plain_rows
    assert rows_of(session) == plain_rows
    found = session.prove()
    assert (found["graphs"], found["recompiles"], found["graph_breaks"]) == (1, 0, 0)


@pytest.mark.model
def test_a_wrapped_model_compiles_nothing_under_generate(load: Load) -> None:
    session = load(("compile_wrapped", {"mode": "max-autotune"}))
    rows_of(session)
    found = session.prove()
    assert found["graphs"] == 0
    assert found["optimizations"]["compile_wrapped"]["compiled_regions"] == 0


@pytest.mark.model
@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_a_named_attention_kernel_runs_alone(kernel: str, load: Load, plain_rows: list[list[int]]) -> None:
    session = load(("sdpa", {"kernel": kernel}))
    assert rows_of(session) == plain_rows
    assert session.prove()["kernels"] == [kernel]


@pytest.mark.model
def test_an_attention_kernel_that_cannot_run_is_unavailable(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = optimizations.find("sdpa")
    monkeypatch.setattr(module, "unavailable", lambda *_: None)
    session = load(("sdpa", {"kernel": "efficient"}))
    with pytest.raises(Unavailable, match=r"No available kernel|No viable backend"):
        rows_of(session)


@pytest.mark.model
@pytest.mark.parametrize("name", ["assisted", "early_exit", "prompt_lookup"])
def test_the_library_refuses_to_speculate_on_a_batch(name: str, load: Load) -> None:
    with pytest.raises(Unavailable, match="batch_size = 1"):
        rows_of(load(use(name), batch=2))


@pytest.mark.model
@pytest.mark.parametrize("name", ["assisted", "early_exit", "prompt_lookup"])
def test_speculation_gives_several_tokens_a_step(name: str, load: Load) -> None:
    session = load(use(name), new_tokens=40, prompt="abababababab")
    widths = [columns.shape[1] for columns in session.generate()]
    assert sum(widths) == 40
    assert max(widths) > 1


@pytest.mark.model
@pytest.mark.parametrize("name", CPU)
def test_the_proof_fails_when_the_technique_did_not_run(name: str, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_where_not_installed(name)
    monkeypatch.setattr(optimizations.find(name), "apply", lambda *_: None)
    session = load(*companions(name))
    rows_of(session)
    with pytest.raises(WrongOutput, match=f"{name} did not run"):
        session.prove()


@pytest.mark.model
@pytest.mark.parametrize(("asked", "ran"), [("nf4", "fp4"), ("fp4", "nf4")])
def test_the_proof_tells_4_bit_formats_apart(asked: str, ran: str, load: Load) -> None:
    session = load(("bitsandbytes_4bit", {"quant_type": ran}))
    seen = session.watch()
    module: Any = optimizations.find("bitsandbytes_4bit")
    assert module.prove(seen, module.Settings(quant_type=ran))["layers"] == 14
    with pytest.raises(WrongOutput, match=asked):
        module.prove(seen, module.Settings(quant_type=asked))


@pytest.mark.model
def test_the_proof_tells_attention_kernels_apart(load: Load) -> None:
    seen = load(("sdpa", {"kernel": "math"})).watch()
    module: Any = optimizations.find("sdpa")
    with pytest.raises(WrongOutput, match="flash"):
        module.prove(seen, module.Settings(kernel="flash"))


@pytest.mark.model
@pytest.mark.parametrize("name", ["sdpa", "prompt_lookup", "static_cache", "compile_layer"])
def test_nothing_may_run_that_was_not_asked_for(name: str, load: Load) -> None:
    seen = load(use(name)).watch()
    with pytest.raises(WrongOutput):
        evidence.check_plain(seen, GenerationSetup(dtype="float32"))


@pytest.mark.model
@pytest.mark.parametrize("uses", [("static_cache",), ("forward_loop", "static_cache")])
@pytest.mark.parametrize(("of", "earlier"), [("new_tokens", [(4, 3), (4, 6)]), ("batch", [(1, 10), (2, 10)])])
def test_smaller_generations_come_first_and_once(
    of: str, earlier: list[tuple[int, int]], uses: tuple[str, ...], load: Load, plain_rows: list[list[int]]
) -> None:
    session = load(*uses, ("growing", {"of": of, "calls": 2}), batch=4)
    assert session.earlier == []
    assert rows_of(session) == plain_rows * 4
    assert session.earlier == earlier
    assert rows_of(session) == plain_rows * 4
    assert session.earlier == earlier
    assert session.prove()["optimizations"]["growing"]["earlier"] == earlier


@pytest.mark.model
def test_a_compiled_layer_is_compiled_anew_for_a_larger_cache(load: Load, plain_rows: list[list[int]]) -> None:
    session = load("sdpa", "static_cache", "compile_layer", ("growing", {"calls": 1}))
    assert rows_of(session) == plain_rows
    assert session.prove()["recompiles"] >= 1


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "bits"),
    [("bitsandbytes_4bit", 4 + 32 / 64), ("torchao_int8", 8 + 32 / 64)],  # codes, and a scale of 32 bits for 64 of them
)
def test_quantized_weights_take_the_bytes_of_the_cost_model(name: str, bits: float, load: Load) -> None:
    session = load(use(name))
    decoder = counting.count(session.model.config.to_dict())
    expected = weight_bytes.held_weight_bytes(decoder, weight_bytes.Precision(value_bytes=4, layer_bits=bits))
    assert session.memory()["weights"] == pytest.approx(expected, rel=0.02)
