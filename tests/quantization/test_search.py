"""The search against graphs and a judge that are made up: what it does about losses, whatever they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flash_export.exporters.quantization.recipe import ProductRecipe, QuantizationRecipe
from flash_export.exporters.quantization.schemes.registry import SCHEMES_BY_NAME
from flash_export.quantization.search import Candidate, Search
from flash_export.tasks.base import Loss

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from flash_export.exporters.quantization.source import SourceGraph
    from flash_export.quantization.loss import Judge
    from flash_export.quantization.search import Choice

    Together = Callable[[list[float]], float]

INT8 = SCHEMES_BY_NAME["int8"]
ONE, TWO = ProductRecipe(INT8, 1.0), ProductRecipe(INT8, 1.0, terms=2)


class MadeUp:
    """Graph and judge in one: a recipe costs what its products cost in the way that it names."""

    def __init__(self, costs: Mapping[str, tuple[float, ...]], together: Together = sum) -> None:
        self.costs, self.together, self.recipe = costs, together, QuantizationRecipe(INT8)
        self.recipes: list[QuantizationRecipe] = []

    def write(self, folder: Path, recipe: QuantizationRecipe) -> Path:
        assert folder.is_dir()
        self.recipe = recipe
        return folder

    def estimate(self, path: Path) -> float:
        (name,) = self.recipe.products
        return self.costs[name][self.recipe.products[name].terms - 1]

    def measure(self, path: Path) -> Loss:
        self.recipes.append(self.recipe)
        share = self.together([self.costs[name][one.terms - 1] for name, one in self.recipe.products.items()])
        return Loss(share if math.isfinite(share) else math.inf, None, 1.0)

    def search(self, accepted: float, weights: Mapping[str, int] | None = None) -> Choice:
        ways = ONE, TWO
        candidates = tuple(
            Candidate(name, (weights or {}).get(name, 100), ways[: len(costs)]) for name, costs in self.costs.items()
        )
        return Search(cast("SourceGraph", self), cast("Judge", self), INT8).run(candidates, accepted)


def test_what_is_within_the_budget_stays_as_cheap_as_it_can_be() -> None:
    made_up = MadeUp({"a": (0.002, 0.001), "b": (0.001, 0.0005)})
    choice = made_up.search(0.005)
    assert choice.rungs == {"a": 0, "b": 0}
    assert choice.reasons == {}
    assert choice.sensitivity == {}
    assert choice.loss.share == pytest.approx(0.003)
    assert choice.recipe.products == {"a": ONE, "b": ONE}
    assert len(made_up.recipes) == 1


def test_the_worst_goes_first_and_no_more_than_has_to() -> None:
    choice = MadeUp({"a": (0.001, 0.0), "b": (0.02, 0.0005), "c": (0.002, 0.001)}).search(0.005)
    assert choice.rungs == {"a": 0, "b": 1, "c": 0}
    assert choice.recipe.products["b"] == TWO
    assert choice.loss.share == pytest.approx(0.0035)
    assert choice.reasons == {"b": "in the cheapest way it loses 2.00%, the most for its 100 weights"}
    assert choice.sensitivity == {"a": 0.001, "b": 0.02, "c": 0.002}


def test_what_costs_most_for_its_size_goes_first() -> None:
    choice = MadeUp({"large": (0.006,), "small": (0.005,)}).search(0.007, {"large": 10000, "small": 100})
    assert choice.rungs == {"large": 0, "small": 1}
    assert list(choice.recipe.products) == ["large"]
    assert "the most for its 100 weights" in choice.reasons["small"]


def test_what_is_too_dear_in_every_way_stays_fp32_and_the_reason_is_of_the_last() -> None:
    choice = MadeUp({"a": (0.5, 0.2), "b": (0.001, 0.0)}).search(0.005)
    assert choice.rungs == {"a": 2, "b": 0}
    assert list(choice.recipe.products) == ["b"]
    assert choice.reasons == {"a": "in two terms it loses 20.00%, the most for its 100 weights"}
    assert choice.sensitivity["a"] == 0.5


def test_if_nothing_suffices_all_is_fp32_and_nothing_is_lost() -> None:
    choice = MadeUp({"a": (0.5, 0.2), "b": (0.4, 0.3)}).search(0.001)
    assert choice.rungs == {"a": 2, "b": 2}
    assert choice.recipe.products == {}
    assert choice.loss.share == 0
    assert choice.reasons.keys() == {"a", "b"}


def test_losses_that_are_more_together_than_alone_end_within_the_budget() -> None:
    made_up = MadeUp(dict.fromkeys("abcdefgh", (0.001, 0.0001)), together=lambda costs: 20 * sum(costs) ** 1.5)
    choice = made_up.search(0.005)
    assert choice.loss.share <= 0.005
    assert 0 < sum(rung > 0 for rung in choice.rungs.values()) < 8


def test_losses_that_cancel_out_alone_are_found_together() -> None:
    """No product costs anything by itself."""
    made_up = MadeUp(dict.fromkeys("abc", (0.0, 0.0)), together=lambda costs: 0.01 * len(costs))
    choice = made_up.search(0.005)
    assert choice.loss.share == 0
    assert choice.recipe.products == {}


@pytest.mark.parametrize("broken", [math.inf, 1e30])
def test_a_product_that_ruins_the_model_goes(broken: float) -> None:
    choice = MadeUp({"a": (broken, broken), "b": (0.001, 0.0)}).search(0.005)
    assert choice.rungs == {"a": 2, "b": 0}
    assert ("are not finite" in choice.reasons["a"]) == math.isinf(broken)
    assert choice.loss.share == pytest.approx(0.001)


def test_the_sum_may_be_infinite_where_no_part_is() -> None:
    made_up = MadeUp(dict.fromkeys("abcd", (0.001,)), together=lambda c: math.inf if len(c) > 2 else sum(c))
    choice = made_up.search(0.005)
    assert choice.loss.share <= 0.005
    assert choice.recipe.products


def test_without_candidates_nothing_is_searched() -> None:
    choice = MadeUp({}).search(0.005)
    assert (choice.loss.share, choice.rungs, choice.reasons) == (0, {}, {})


COSTS = st.floats(0, 1) | st.just(math.inf)


@given(
    st.dictionaries(st.sampled_from("abcdefghij"), st.tuples(COSTS, COSTS) | st.tuples(COSTS), min_size=1),
    st.floats(1e-6, 0.5),
    st.floats(1, 3),
)
def test_the_search_ends_within_the_budget(costs: dict[str, tuple[float, ...]], accepted: float, power: float) -> None:
    made_up = MadeUp(costs, together=lambda chosen: sum(chosen) ** power)
    choice = made_up.search(accepted)
    assert choice.loss.share <= accepted
    assert choice.reasons.keys() == {name for name, rung in choice.rungs.items() if rung}
    assert choice.recipe.products.keys() == {name for name, rung in choice.rungs.items() if rung < len(costs[name])}
    assert len(made_up.recipes) <= 1 + sum(map(len, costs.values()))
