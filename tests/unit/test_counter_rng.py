"""Noise that is a function of seed, token and place is even, independent in all three, and draws from the softmax."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from claimbench.engine import counter_rng  # noqa: E402
from claimbench.engine.sampling import draw_by_counter  # noqa: E402
from claimbench.schema.cell import Sampling  # noqa: E402

pytestmark = pytest.mark.model


def is_plausible(counts: torch.Tensor, expected: torch.Tensor | float) -> bool:
    """Chi-square within four standard deviations of its mean, on both sides: neither uneven nor too even."""
    squares = (counts.double() - expected) ** 2 / expected
    freedom = counts.numel() - 1
    return abs(float(squares.sum()) - freedom) < 4 * math.sqrt(2 * freedom)


def counted(values: torch.Tensor, kinds: int) -> torch.Tensor:
    return torch.bincount(values.flatten(), minlength=kinds)


def seeds(count: int) -> torch.Tensor:
    return torch.arange(count)


def test_the_hash_is_that_of_splitmix64() -> None:
    """The first outputs from seed 1234567, as published implementations print them."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = torch.tensor([1234567]) + torch.arange(1, 5) * counter_rng.STRIDE
    assert [word % (1 << 64) for word in counter_rng.mix(states).tolist()] == published


def test_words_are_even_in_their_high_and_their_low_bits() -> None:
    words = counter_rng.words(counter_rng.keys_of(seeds(64), 0), 1024)
    assert words.shape == (64, 1024)
    assert int(words.min()) >= 0
    assert int(words.max()) < 1 << 32
    for shift in (0, 12, 24):
        assert is_plausible(counted(words >> shift & 255, 256), words.numel() / 256), f"bits {shift} to {shift + 7}"


@pytest.mark.parametrize("of", ["seeds", "tokens", "places", "halves"])
def test_neighbours_are_independent(of: str) -> None:
    first = counter_rng.words(counter_rng.keys_of(seeds(64), 7), 1024)
    second = {
        "seeds": counter_rng.words(counter_rng.keys_of(seeds(64) + 1, 7), 1024),
        "tokens": counter_rng.words(counter_rng.keys_of(seeds(64), 8), 1024),
        "places": first.roll(1, dims=1),
        "halves": first.roll(512, dims=1),  # two words come from one hash
    }[of]
    joint = (first >> 28) * 16 + (second >> 28)
    assert is_plausible(counted(joint, 256), joint.numel() / 256)


def test_a_rows_noise_does_not_depend_on_its_company() -> None:
    together = counter_rng.exponential(counter_rng.keys_of(torch.tensor([3, 4, 5]), 2), 301)
    assert torch.equal(together[1:2], counter_rng.exponential(counter_rng.keys_of(torch.tensor([4]), 2), 301))


def test_clocks_are_exponential() -> None:
    clocks = counter_rng.exponential(counter_rng.keys_of(seeds(64), 0), 1024)
    assert bool(clocks.isfinite().all())
    assert float(clocks.min()) > 0
    share = (1 - torch.exp(-clocks)).mul(32).long().clamp(max=31)  # the distribution function makes them uniform
    assert is_plausible(counted(share, 32), share.numel() / 32)


def test_draws_are_distributed_as_the_softmax() -> None:
    rows = 40_000
    logits = torch.linspace(-3, 2, 20).expand(rows, -1)
    draw = draw_by_counter(Sampling(seed=1), rows, torch.device("cpu"))
    expected = logits[0].double().softmax(-1) * rows
    for number in range(3):
        assert is_plausible(counted(draw(logits), 20), expected), f"token {number}"


def test_successive_draws_of_a_row_are_distributed_as_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    draw = draw_by_counter(Sampling(seed=5), 1, torch.device("cpu"))
    tokens = torch.cat([draw(logits) for _ in range(4000)])
    assert is_plausible(counted(tokens, 4), logits[0].double().softmax(-1) * 4000)
    pairs = tokens[:-1] * 4 + tokens[1:]
    odds = logits[0].double().softmax(-1)
    assert is_plausible(counted(pairs, 16), torch.outer(odds, odds).flatten() * 3999)


def test_a_token_that_was_ruled_out_is_never_drawn() -> None:
    logits = torch.full((5000, 8), -torch.inf)
    logits[:, 2], logits[:, 6] = -30.0, 30.0
    tokens = draw_by_counter(Sampling(), 5000, torch.device("cpu"))(logits)
    assert set(tokens.tolist()) == {6}
    logits[:, 6] = -torch.inf
    assert set(draw_by_counter(Sampling(), 5000, torch.device("cpu"))(logits).tolist()) == {2}
