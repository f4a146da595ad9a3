"""Every file in backends/, found by its name, keeps the contract; the Transformers session in detail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.contract.conftest import Load, make_cell, rows_of

from claimbench import backends
from claimbench.backends import transformers as backend
from claimbench.errors import SourceError, WrongOutput
from claimbench.schema.cell import Sampling
from claimbench.schema.frozen import Frozen


@pytest.mark.parametrize("name", backends.names())
def test_it_holds_what_the_contract_asks(name: str) -> None:
    module: Any = backends.find(name)
    assert module.REFERENCE in backends.names()
    assert isinstance(module.ENVIRONMENT, str)
    assert isinstance(module.LIBRARIES, tuple)
    assert isinstance(module.SEAMS, frozenset)
    assert issubclass(module.Options, Frozen)
    assert module.unavailable(make_cell()) is None or isinstance(module.unavailable(make_cell()), str)
    assert callable(module.load)


@pytest.mark.parametrize("name", backends.names())
def test_it_says_what_it_is(name: str) -> None:
    assert len((backends.find(name).__doc__ or "").split()) > 10


@pytest.mark.model
def test_a_session_is_a_session(load: Load) -> None:
    session = load()
    assert isinstance(session, backends.Session)
    assert session.prompt_tokens == len("hello hello hello")


@pytest.mark.model
def test_generate_yields_one_column_a_step_and_exactly_as_many_as_asked(load: Load) -> None:
    shapes = [tuple(columns.shape) for columns in load(new_tokens=7, batch=2).generate()]
    assert shapes == [(2, 1)] * 7


@pytest.mark.model
def test_the_workload_alone_decides_how_tokens_are_chosen(
    tiny: Path, tmp_path: Path, plain_rows: list[list[int]]
) -> None:
    """A checkpoint may ask for an end, for sampling and for penalties: every row is greedy and runs to its length."""
    for file in tiny.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink()
    asked = {"eos_token_id": plain_rows[0][2], "do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(asked))
    session = backend.load(make_cell(), tmp_path, None)
    assert rows_of(session) == plain_rows
    session.close()


@pytest.mark.model
def test_all_rows_of_a_batch_are_the_same(load: Load, plain_rows: list[list[int]]) -> None:
    for rows in (rows_of(load(batch=2)), rows_of(load("forward_loop", "static_cache", batch=2))):
        assert rows == [plain_rows[0], plain_rows[0]]


@pytest.mark.model
@pytest.mark.parametrize("uses", [(), ("forward_loop",), ("static_cache",), ("prompt_lookup",)])
def test_a_generation_that_is_closed_early_leaves_a_usable_session(
    uses: tuple[str, ...], load: Load, plain_rows: list[list[int]]
) -> None:
    session = load(*uses)
    steps = session.generate()
    next(steps)
    steps.close()
    with pytest.raises(StopIteration):
        next(steps)
    session.generate().close()  # never begun
    assert rows_of(session) == plain_rows


@pytest.mark.model
def test_an_early_exit_that_is_closed_early_leaves_all_layers(load: Load, plain_rows: list[list[int]]) -> None:
    session = load(("early_exit", {"layers": 1}))
    steps = session.generate()
    next(steps)
    next(steps)
    steps.close()
    assert session.model.config.num_hidden_layers == 2
    assert rows_of(session) == plain_rows


@pytest.mark.model
@pytest.mark.parametrize(
    "uses", [(), ("inference_mode",), ("forward_loop", "grad_enabled"), ("forward_loop", "no_grad")]
)
def test_the_caller_keeps_its_own_gradient_mode_between_steps(uses: tuple[str, ...], load: Load) -> None:
    import torch

    steps = load(*uses).generate()
    for _ in range(2):
        next(steps)
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    steps.close()
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.model
def test_a_caller_without_gradients_stays_without(load: Load) -> None:
    import torch

    with torch.no_grad():
        for _ in load("forward_loop", "grad_enabled").generate():
            assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.model
def test_two_generations_can_be_in_flight(load: Load, plain_rows: list[list[int]]) -> None:
    session = load()
    first, second = session.generate(), session.generate()
    pairs = list(zip(first, second, strict=True))
    assert [[int(left) for left, _ in pairs]] == plain_rows
    assert [[int(right) for _, right in pairs]] == plain_rows


@pytest.mark.model
def test_an_error_inside_the_generation_reaches_the_caller(load: Load) -> None:
    session = load()

    def fail(*_: Any, **__: Any) -> Any:
        raise ArithmeticError("inside")

    steps = session.generate()
    next(steps)
    session.model.forward = fail
    with pytest.raises(ArithmeticError, match="inside"):
        next(steps)


@pytest.mark.model
def test_close_can_be_called_twice(load: Load) -> None:
    session = load()
    session.close()
    session.close()
    assert session.model is None


@pytest.mark.model
def test_sampling_repeats_itself_and_both_loops_draw_the_same(load: Load, plain_rows: list[list[int]]) -> None:
    sampling = Sampling(temperature=0.7, top_k=20, top_p=0.9, seed=3)
    session, loop = load(sampling=sampling), load("forward_loop", sampling=sampling)
    rows = rows_of(session)
    assert rows_of(session) == rows
    assert rows_of(loop) == rows
    assert rows_of(load(sampling=sampling.model_copy(update={"seed": 4}))) != rows
    assert rows != plain_rows


@pytest.mark.model
def test_both_loops_draw_the_same_with_every_way_of_choosing(load: Load) -> None:
    greedy = Sampling(top_k=1)
    for sampling in (Sampling(typical_p=0.3, seed=3), Sampling(repetition_penalty=5.0, seed=3)):
        rows = rows_of(load(sampling=sampling))
        assert rows_of(load("forward_loop", sampling=sampling)) == rows
        assert rows != rows_of(load(sampling=Sampling(seed=3)))
    (row,) = rows_of(load(sampling=greedy.model_copy(update={"repetition_penalty": 1e6})))
    assert len(set(row)) == len(row), "a token came again in spite of the penalty"


@pytest.mark.model
@pytest.mark.parametrize("uses", [(), ("static_cache",), ("sdpa",), ("no_cache",)])
def test_each_of_several_lengths_says_what_it_says_alone(uses: tuple[str, ...], load: Load) -> None:
    session = load(*uses, batch=3, shortest=5)
    rows = rows_of(session)
    assert session.prompt_tokens == 17
    assert session.mask.sum(1).tolist() == [17, 11, 5]
    alone = [rows_of(load(prompt="hello hello hello"[-length:]))[0] for length in (17, 11, 5)]
    assert rows == alone
    assert rows[0] != rows[2]
    assert session.log_probs(rows[0]).argmax(-1).tolist() == rows[0]
    session.prove()


@pytest.mark.model
def test_a_repetition_penalty_does_not_see_the_padding(load: Load) -> None:
    """With the likeliest token alone to draw from, nothing but the penalty could tell the padded row apart."""
    sampling = Sampling(top_k=1, repetition_penalty=5.0)
    padded = rows_of(load(batch=2, shortest=5, sampling=sampling))[1]
    assert padded == rows_of(load(prompt="hello", sampling=sampling))[0]


@pytest.mark.model
def test_the_prompt_is_cut_or_repeated_to_length(load: Load) -> None:
    short, long = load(prompt_tokens=5), load(prompt_tokens=40)
    assert short.prompt_tokens == 5
    assert long.prompt_tokens == 40
    whole = load().prompt[0].tolist()
    assert long.prompt[0].tolist() == (whole * 3)[:40]


@pytest.mark.model
def test_log_probs_rank_the_greedy_tokens_first(load: Load, plain_rows: list[list[int]]) -> None:
    import torch

    log_probs = load().log_probs(plain_rows[0])
    assert log_probs.dtype is torch.float32
    assert log_probs.shape == (10, 300)
    assert log_probs.argmax(-1).tolist() == plain_rows[0]
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(10))


@pytest.mark.model
def test_a_model_that_emits_nan_is_wrong(load: Load) -> None:
    session = load()
    session.model.model.norm.weight.data.fill_(float("nan"))
    rows_of(session)
    with pytest.raises(WrongOutput, match="finite"):
        session.prove()


@pytest.mark.model
def test_memory_is_what_the_architecture_needs(load: Load) -> None:
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128 + 2 * 64
    weights = 4 * (2 * layer + 300 * 64 + 64)
    memory = load(batch=2).memory()
    assert memory["step_weights"] == weights, "a tied embedding is read as the output head"
    assert 0 <= memory["weights"] - weights <= 256  # buffers: the rotary frequencies
    assert memory["kv_cache"] == 2 * 2 * 2 * (17 + 10) * 2 * 16 * 4
    assert load("no_cache").memory()["kv_cache"] == 0


@pytest.mark.model
def test_a_looked_up_embedding_is_held_and_not_read(load: Load) -> None:
    import torch

    session = load()
    tied = session.memory()
    session.model.lm_head.weight = torch.nn.Parameter(session.model.lm_head.weight.detach().clone())
    memory = session.memory()
    assert memory["weights"] == tied["weights"] + 4 * 300 * 64
    assert memory["step_weights"] == tied["step_weights"]


@pytest.mark.model
def test_a_draft_model_counts_as_held(load: Load) -> None:
    memory = load(("assisted", {"draft": "tiny-draft"})).memory()
    plain = load().memory()
    assert memory["weights"] == plain["weights"] + memory["draft_weights"]
    assert memory["step_weights"] == plain["step_weights"]


@pytest.mark.model
def test_a_checkpoint_without_a_tokenizer_is_refused_unless_it_is_random(tiny: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(tiny / name)
    with pytest.raises(SourceError, match="tokenizer"):
        backend.load(make_cell(), tmp_path, None)
    random = make_cell()
    random = random.model_copy(update={"checkpoint": random.checkpoint.model_copy(update={"source": "random://tiny"})})
    session = backend.load(random, tmp_path, None)
    assert session.prompt_tokens == len("hello hello hello")
    session.close()
