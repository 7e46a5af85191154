"""What the benchmark of precisions found, and whether it is what it has to be."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from report import judge
from wide_models import TARGETS, Case

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flash_export.validators.trade_off.results import Entry, TradeOff

# Largest change of the bits per byte, up or down, and smallest share of equal top tokens.
CHANGE_TARGETS = {"fp16": 0.001, "bf16": 0.005, "int8": 0.005, "int4": 0.02}
AGREEMENT_TARGETS = {"fp16": 0.995, "bf16": 0.98}
NOT_MEASURED = "NOT reached (not measured)"


@dataclass(frozen=True)
class Target:
    """What has to be reached, what was measured (None: nothing), and the verdict."""

    what: str
    value: float | None
    verdict: str


@dataclass(frozen=True)
class Engine:
    """A build of one graph.

    Attributes:
        model: The model.
        precision: The bundle.
        graph: Its graph.
        seconds: What the build took.
        layer_dtypes: Layers of the parsed network by the dtype of their output.
        reason: Why there is no engine; None when there is.
    """

    model: str
    precision: str
    graph: str
    seconds: float | None = None
    layer_dtypes: dict[str, int] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Comparison:
    """One bundled model in every precision.

    Attributes:
        model: Its name.
        trade: What was found.
        reasons: Why a precision is not among the bundles.
    """

    model: str
    trade: TradeOff
    reasons: dict[str, str]


@dataclass(frozen=True)
class Results:
    """Everything that was measured."""

    comparisons: tuple[Comparison, ...]
    cases: tuple[Case, ...]
    engines: tuple[Engine, ...]

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every target that the measured precisions have, and whether it is reached."""
        found = [target for one in self.comparisons for target in judge_comparison(one)]
        return (*found, *(target for case in self.cases for target in judge_case(case)))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "models": [
                {
                    "model": one.model,
                    "not_made": one.reasons,
                    "trade_off": json.loads(one.trade.to_json()),
                }
                for one in self.comparisons
            ],
            "cases": [asdict(case) for case in self.cases],
            "engines": [asdict(engine) for engine in self.engines],
            "targets": [asdict(target) for target in self.targets],
        }


def judge_comparison(comparison: Comparison) -> Iterator[Target]:
    """Yield what the predictions of each precision have to reach; a bundle that could not be made reaches nothing."""
    model, trade = comparison.model, comparison.trade
    entries: dict[str, Entry | None] = {entry.name: entry for entry in trade.entries} | dict.fromkeys(
        comparison.reasons
    )
    for precision, entry in entries.items():
        quality = entry.quality if entry is not None else None
        if precision in CHANGE_TARGETS:
            change = None if quality is None or quality.change is None else abs(quality.change)
            what = f"{model}, {precision}: change of bits per byte"
            yield _judge(what, change, at_most=CHANGE_TARGETS[precision])
        if precision in AGREEMENT_TARGETS:
            agreement = None if quality is None else quality.measures.get("top1_agreement")
            what = f"{model}, {precision}: same top token"
            yield _judge(what, agreement, at_least=AGREEMENT_TARGETS[precision])


def judge_case(case: Case) -> Iterator[Target]:
    """Yield what a wide model has to reach."""
    if (target := TARGETS.get((case.graph, case.precision))) is not None:
        speed, size = target
        yield _judge(f"{case.what}, {case.precision}: times as fast as fp32", case.speed, at_least=speed)
        yield _judge(f"{case.what}, {case.precision}: size / fp32", case.size, at_most=size)


def _judge(what: str, value: float | None, **limits: float) -> Target:
    return Target(what, value, NOT_MEASURED if value is None else judge(value, **limits))
