"""Choosing how each product is computed: as cheaply as the budget allows, by measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.exporters.quantization.recipe import QuantizationRecipe
from flash_export.temporary import create_temporary_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flash_export.exporters.quantization.recipe import ProductRecipe, Scheme
    from flash_export.exporters.quantization.source import SourceGraph
    from flash_export.quantization.loss import Judge
    from flash_export.tasks.base import Loss


# What the estimate of a loss is multiplied with: a search that stops short measures once more.
SAFETY = 0.9


@dataclass(frozen=True)
class Candidate:
    """A product, and the ways to compute it.

    Attributes:
        name: Such as ``layers.3.out``.
        weights: Number of weights.
        recipes: The ways, the cheapest first; after the last one it stays fp32.
    """

    name: str
    weights: int
    recipes: tuple[ProductRecipe, ...]


@dataclass(frozen=True)
class Choice:
    """What came out of a search.

    Attributes:
        recipe: What is quantized.
        loss: What that costs.
        sensitivity: What each costs if it alone is computed in the cheapest way, by name; empty where none had to be
            chosen.
        rungs: Which way was chosen, by name; as many as there are ways for fp32.
        reasons: Why it is not the cheapest, by name.
    """

    recipe: QuantizationRecipe
    loss: Loss
    sensitivity: dict[str, float]
    rungs: dict[str, int]
    reasons: dict[str, str]


class Search:
    """Writes variants of a graph into a folder of its own, one at a time, and has them judged."""

    def __init__(
        self, source: SourceGraph, judge: Judge, scheme: Scheme, on_measure: Callable[[str], None] | None = None
    ) -> None:
        """Take what is needed; ``on_measure`` is called with the name of each variant before it is measured."""
        self._source, self._judge, self._scheme = source, judge, scheme
        self._on_measure = on_measure or (lambda _: None)

    def run(self, candidates: tuple[Candidate, ...], accepted: float) -> Choice:
        """Compute everything in the cheapest way, and what costs most in a dearer one until the loss is accepted.

        If all of them together lose no more than that, there is nothing to choose, and none is measured alone. Else
        what costs most for its size goes first. Losses nearly add up, so that the sum tells how many have to go, and is
        measured then.

        Args:
            candidates: What may be quantized.
            accepted: Largest loss, see :attr:`Loss.share`.
        """
        rungs = dict.fromkeys((one.name for one in candidates), 0)
        loss = self._measure(candidates, rungs, "all of them")
        if loss.share <= accepted:
            return Choice(self._join(candidates, rungs), loss, {}, rungs, {})
        sensitivity = {one.name: self._estimate(one, 0) for one in candidates}
        costs = dict(sensitivity)
        reasons: dict[str, str] = {}
        while loss.share > accepted and (open_ones := _list_open(candidates, rungs)):
            # Losses of many products together are more than their sum; what counts is which share of them is left.
            # That may be nothing, and the loss infinite: one goes in any case, or this would never end.
            before, has_changed = sum(costs.values()), False
            while open_ones and (not has_changed or _is_still_too_much(loss, sum(costs.values()), before, accepted)):
                has_changed = True
                worst = max(open_ones, key=lambda one: costs[one.name] / one.weights)
                reasons[worst.name] = _explain(costs[worst.name], worst.weights, worst.recipes[rungs[worst.name]])
                rungs[worst.name] += 1
                is_fp32 = rungs[worst.name] == len(worst.recipes)
                costs[worst.name] = 0.0 if is_fp32 else self._estimate(worst, rungs[worst.name])
                open_ones = _list_open(candidates, rungs)
            loss = self._measure(candidates, rungs, f"{len(reasons)} of {len(candidates)} dearer")
        return Choice(self._join(candidates, rungs), loss, sensitivity, rungs, reasons)

    def _measure(self, candidates: tuple[Candidate, ...], rungs: Mapping[str, int], label: str) -> Loss:
        self._on_measure(label)
        with create_temporary_folder() as folder:
            return self._judge.measure(self._source.write(folder, self._join(candidates, rungs)))

    def _estimate(self, candidate: Candidate, rung: int) -> float:
        self._on_measure(candidate.name)
        with create_temporary_folder() as folder:
            recipe = self._join((candidate,), {candidate.name: rung})
            return self._judge.estimate(self._source.write(folder, recipe))

    def _join(self, candidates: tuple[Candidate, ...], rungs: Mapping[str, int]) -> QuantizationRecipe:
        chosen = {one.name: one.recipes[rungs[one.name]] for one in candidates if rungs[one.name] < len(one.recipes)}
        return QuantizationRecipe(self._scheme, chosen)


def _list_open(candidates: tuple[Candidate, ...], rungs: Mapping[str, int]) -> list[Candidate]:
    """Return what is not fp32 yet."""
    return [one for one in candidates if rungs[one.name] < len(one.recipes)]


def _is_still_too_much(loss: Loss, cost: float, before: float, accepted: float) -> bool:
    """Estimate whether the loss is too large now that the sum of all losses has changed."""
    return math.isfinite(loss.share) and loss.share * cost > accepted * before * SAFETY


def _explain(cost: float, weights: int, recipe: ProductRecipe) -> str:
    way = "in two terms" if recipe.terms > 1 else "in the cheapest way"
    if not math.isfinite(cost):
        return f"{way} the predictions are not finite"
    return f"{way} it loses {cost:.2%}, the most for its {weights} weights"
