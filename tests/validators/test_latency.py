from __future__ import annotations

import numpy as np
import pytest

from flash_export.validators.latency import (
    LatencyResult,
    Percentiles,
    Ratio,
    find_median_interval,
    measure_latency,
    time_in_turn,
)


class FakeMachine:
    """A clock that only the runs advance."""

    def __init__(self, eager_s: float, backend_s: float) -> None:
        self.now = 0.0
        self.order: list[str] = []
        self.durations = {"eager": eager_s, "backend": backend_s}

    def run(self, name: str) -> None:
        self.order.append(name)
        self.now += self.durations[name]

    def measure(self, **options: object) -> LatencyResult:
        return measure_latency(
            lambda: self.run("eager"),
            lambda: self.run("backend"),
            clock=lambda: self.now,
            **options,  # type: ignore[arg-type]
        )


def test_runs_alternate_and_stop_at_the_budget() -> None:
    machine = FakeMachine(0.03, 0.01)
    result = machine.measure(budget_s=0.4, warmup=1)

    assert machine.order == ["eager", "backend"] * (result.backend.runs + 1)
    assert result.backend.runs == 10
    assert result.speedup == pytest.approx(3.0)
    assert result.backend.p50 == pytest.approx(10.0)


def test_slow_runs_are_still_repeated_three_times() -> None:
    assert FakeMachine(5.0, 1.0).measure(budget_s=0.1).backend.runs == 3


def test_first_run_counts_when_it_is_given() -> None:
    machine = FakeMachine(5.0, 1.0)
    result = machine.measure(budget_s=0.1, warmup=0, first=(7.0, 2.0))

    assert result.backend.runs == 3
    assert len(machine.order) == 4
    assert result.eager.p99 > 5000


def test_percentiles_are_in_milliseconds() -> None:
    found = Percentiles.from_seconds([0.001 * value for value in range(1, 102)])
    assert (found.p50, found.p90, found.p99) == pytest.approx((51.0, 91.0, 100.0))


def test_compiled_model_is_timed_in_turn_after_it_has_compiled() -> None:
    machine = FakeMachine(0.03, 0.01)
    machine.durations["compiled"] = 0.02
    result = machine.measure(budget_s=0.3, warmup=0, run_compiled=lambda: machine.run("compiled"))

    assert machine.order == ["compiled", *["eager", "backend", "compiled"] * 5]
    assert result.compiled is not None
    assert result.compiled.p50 == pytest.approx(20.0)


def test_interval_of_the_median_holds_it_in_95_of_100_experiments() -> None:
    rng = np.random.default_rng(0)
    for count in (6, 11, 40):
        samples = np.sort(rng.exponential(size=(4000, count)), axis=1)
        low, high = find_median_interval(count)
        covered = np.mean((samples[:, low] <= np.log(2)) & (samples[:, high] >= np.log(2)))
        assert 0.945 < covered < 0.995


@pytest.mark.parametrize(
    ("low", "high", "overlap"),
    [(3.0, 4.0, True), (2.0, 2.5, True), (0.1, 9.0, True), (3.1, 4.0, False), (0.5, 0.9, False)],
)
def test_medians_that_may_be_equal_overlap(low: float, high: float, overlap: bool) -> None:
    one, other = Percentiles(2.0, 9.0, 9.0, 1.0, 3.0, 5), Percentiles(low, 9.0, 9.0, low, high, 5)
    assert one.overlaps(other) is other.overlaps(one) is overlap


def test_bursts_leave_the_first_run_out_and_count_the_mean_of_the_others() -> None:
    machine = FakeMachine(0.03, 0.01)
    machine.durations["cold"] = 1.0

    def run_cold_then_warm() -> None:
        machine.run("cold" if machine.order[-1:] != ["backend"] and machine.order[-1:] != ["cold"] else "backend")

    samples = time_in_turn(
        [lambda: machine.run("eager"), run_cold_then_warm],
        bursts=[1, 4],
        budget_s=0.0,
        warmup=0,
        min_runs=2,
        clock=lambda: machine.now,
    )
    assert machine.order == ["eager", "cold", "backend", "backend", "backend"] * 2
    assert samples[0] == pytest.approx([0.03, 0.03])
    assert samples[1] == pytest.approx([0.01, 0.01])


def test_ratio_is_taken_turn_by_turn() -> None:
    baseline = [1.0, 2.0, 4.0, 8.0, 16.0]  # what slows a turn down slows both
    ratio = Ratio.from_seconds([0.5 * value for value in baseline], baseline)
    assert (ratio.median, ratio.low, ratio.high) == (0.5, 0.5, 0.5)
    assert Ratio.from_seconds([1.0, 3.0, 2.0], [1.0, 1.0, 1.0]) == Ratio(2.0, 1.0, 3.0)
