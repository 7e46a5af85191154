from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_export.errors import ConfigError, InputError
from flash_export.generation.sampling import Sampler, SamplingOptions, choose_tokens


def choose(logits: Any, options: SamplingOptions, *, draws: Any = None, seen: Any = None) -> list[int]:
    values = np.asarray(logits, np.float32)
    return choose_tokens(
        values,
        options,
        seen=np.zeros(values.shape, np.bool_) if seen is None else np.asarray(seen),
        draws=np.zeros(len(values)) if draws is None else np.asarray(draws),
    ).tolist()


def compute_probabilities(logits: np.ndarray, seen: np.ndarray, options: SamplingOptions) -> np.ndarray:
    """Do it the slow way: the definitions of Hugging Face's processors, one row and one token at a time."""
    scores = [float(value) for value in logits]
    penalty = options.repetition_penalty
    for token in np.flatnonzero(seen).tolist():
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    scores = [score / options.temperature for score in scores]
    if options.top_k:
        smallest = sorted(scores, reverse=True)[: options.top_k][-1]
        scores = [score if score >= smallest else -np.inf for score in scores]
    weights = np.exp(np.array(scores) - max(scores))
    probabilities = weights / weights.sum()
    ascending = sorted(range(len(scores)), key=lambda token: probabilities[token])
    below = 0.0
    for token in ascending[:-1]:
        below += probabilities[token]
        if options.top_p < 1 and below <= 1 - options.top_p:
            scores[token] = -np.inf
    weights = np.exp(np.array(scores) - max(scores))
    return weights / weights.sum()


LOGITS = st.lists(st.integers(-40, 40).map(lambda value: value / 8), min_size=2, max_size=12, unique=True)


@settings(deadline=None)
@given(
    LOGITS,
    st.data(),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.integers(0, 13),
    st.sampled_from([0.05, 0.37, 0.9, 1.0]),
    st.sampled_from([0.7, 1.0, 1.3]),
)
def test_shares_of_the_draws_are_the_probabilities(
    logits: list[float], data: st.DataObject, temperature: float, top_k: int, top_p: float, penalty: float
) -> None:
    seen = np.array(data.draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits))))
    options = SamplingOptions(temperature, top_k, top_p, penalty)
    values = np.array(logits, np.float32)
    draws = (np.arange(4000) + 0.5) / 4000
    tokens = choose(np.tile(values, (4000, 1)), options, draws=draws, seen=np.tile(seen, (4000, 1)))
    shares = np.bincount(tokens, minlength=len(logits)) / 4000
    np.testing.assert_allclose(shares, compute_probabilities(values, seen, options), rtol=0, atol=1e-3)


@settings(deadline=None)
@given(LOGITS, st.floats(0, 1, exclude_max=True))
def test_greedy_is_the_largest_whatever_is_drawn(logits: list[float], draw: float) -> None:
    assert choose([logits], SamplingOptions(), draws=[draw]) == [int(np.argmax(logits))]
    assert choose([logits], SamplingOptions(temperature=1.0, top_k=1), draws=[draw]) == [int(np.argmax(logits))]
    for top_p in (1e-9, 1e-30):
        options = SamplingOptions(temperature=1.0, top_p=top_p)
        assert choose([logits], options, draws=[draw]) == [int(np.argmax(logits))]


def test_equal_logits_take_the_first_token() -> None:
    assert choose([[1.0, 3.0, 3.0, 0.0]], SamplingOptions()) == [1]


def test_repetition_penalty_divides_what_is_positive_and_multiplies_what_is_negative() -> None:
    options = SamplingOptions(repetition_penalty=2.0)
    seen = [[True, False], [True, False]]
    assert choose([[3.0, 2.0], [-1.0, -1.5]], options, seen=seen) == [1, 1]
    assert choose([[5.0, 2.0], [-1.0, -2.5]], options, seen=seen) == [0, 0]


@pytest.mark.parametrize(("temperature", "expected"), [(1e-320, 1), (1e-12, 1), (1e12, 1), (1e300, 0)])
def test_extreme_temperatures_overflow_nothing(temperature: float, expected: int) -> None:
    assert choose([[-3e38, 3e38, 0.0, 1.0]], SamplingOptions(temperature=temperature)) == [expected]


def test_largest_draw_takes_a_token_with_a_probability() -> None:
    options = SamplingOptions(temperature=1.0, top_k=2)
    for top in (5.0, 5.1, 6.7):
        assert choose([[0.0, top, 5.0, -1.0]], options, draws=[np.nextafter(1.0, 0.0)]) == [2]
        assert choose([[0.0, top, 5.0, -1.0]], options, draws=[0.0]) == [1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="logits hold NaN or infinite values"):
        choose([[0.0, 1.0], [value, 1.0]], SamplingOptions())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(0, 3), st.floats(0.1, 3), st.integers(0, 5), st.floats(0.1, 1))
def test_row_alone_draws_what_it_draws_in_a_batch(
    seed: int, row: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = np.random.default_rng(7).normal(size=(6, 4, 9)).astype(np.float32)
    fields = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": 1.1}
    batch = Sampler(SamplingOptions(**fields, seed=seed), 4, 9)  # type: ignore[arg-type]
    alone = Sampler(SamplingOptions(**fields, seed=seed + row), 1, 9)  # type: ignore[arg-type]
    prompts = [np.array([index]) for index in range(4)]
    batch.read_prompts(prompts)
    alone.read_prompts([prompts[row]])
    for step in range(6):
        rows = np.arange(4) if step < 3 else np.array([row])
        tokens = batch.choose(logits[step, rows], rows)
        single = alone.choose(logits[step, row : row + 1], np.array([0]))
        assert tokens[rows == row].tolist() == single.tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 is not usable; use 0 for greedy choice, or more"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_k": -1}, "top_k=-1 is not usable; use a whole number of at least 0"),
        ({"top_p": 0.0}, "top_p=0.0 is not usable; use more than 0 and at most 1"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"top_p": float("nan")}, "top_p=nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 is not usable; use more than 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty=inf"),
        ({"max_tokens": -1}, "max_tokens=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"stop_tokens": (3, -1)}, r"stop_tokens=\(3, -1\) are not usable; token ids are at least 0"),
    ],
)
def test_unusable_options_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingOptions(**fields)


def test_stop_token_outside_of_the_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stop_tokens=\(9,\) are not usable; token ids are 0 to 8"):
        Sampler(SamplingOptions(stop_tokens=(9,)), 1, 9)
