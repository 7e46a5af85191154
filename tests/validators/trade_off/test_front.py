from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from flash_export.report.document import Plots
from flash_export.report.drawing import draw_plot
from flash_export.validators.trade_off.front import SIZE, find_front, list_costs, list_losses
from flash_export.validators.trade_off.page import build_trade_off_plot, describe_trade_off
from tests.validators.trade_off.builders import (
    FP8,
    FP16,
    FP32,
    FULL,
    INT4,
    INT8,
    make_entry,
    make_trade_off,
    make_untimed,
)

BITS_PER_BYTE, DIVERGENCE = list_losses(FULL)


def test_front_leaves_out_what_is_beaten_and_what_was_not_measured() -> None:
    step = list_costs(FULL)[1]
    assert find_front(FULL.entries, BITS_PER_BYTE, step) == (FP32, INT8)
    assert find_front(FULL.entries, BITS_PER_BYTE, SIZE) == (FP32, FP16, INT8, INT4)


def test_equal_bundles_do_not_beat_each_other() -> None:
    twin = replace(FP32, name="twin")
    assert find_front((FP32, twin), BITS_PER_BYTE, SIZE) == (FP32, twin)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=8))
def test_front_is_what_its_definition_says(points: list[tuple[int, int]]) -> None:
    entries = [make_entry(str(index), size, bits, 1e-3) for index, (bits, size) in enumerate(points)]
    front = find_front(entries, BITS_PER_BYTE, SIZE)
    assert front
    for entry, (bits, size) in zip(entries, points, strict=True):
        beaten = any(b <= bits and s <= size and (b < bits or s < size) for b, s in points)
        assert (entry in front) is not beaten


def test_losses_and_costs_are_those_that_were_measured() -> None:
    assert [measure.title for measure in list_costs(FULL)] == [
        "time of 2048 tokens",
        "time of a decode step",
        "size of the graph",
    ]
    untimed = make_trade_off(*map(make_untimed, (FP32, INT8)), reference_score=None, score=None)
    assert list_costs(untimed) == (SIZE,)
    assert [loss.title for loss in list_losses(untimed)] == [DIVERGENCE.title]
    (plots,) = (one.block for one in describe_trade_off(make_trade_off(FP8)).sections if isinstance(one.block, Plots))
    assert not plots


def test_worse_is_higher_dearer_is_further_right_and_the_beaten_are_rings() -> None:
    plot = build_trade_off_plot(FULL, BITS_PER_BYTE, list_costs(FULL)[0])
    assert plot is not None
    best, beaten = plot.series
    points = {point.label: point for one in plot.series for point in one.points}
    assert [point.label for point in best.points] == ["int8", "fp32"]  # as the line goes
    assert {point.kind for point in beaten.points} == {"ring"}
    assert {name: (point.x, point.y) for name, point in points.items()} == {
        "fp32": (80, 1.5), "fp16": (112, 1.5003), "int8": (48, 1.504), "int4": (64, 1.53)
    }  # fmt: skip
    assert plot.caption.endswith("Not measured: fp8.")
    assert points["int8"].title == "int8: bits per byte 1.504, time of 2048 tokens 48 ms"


def test_divergence_of_zero_is_drawn_on_its_logarithmic_axis() -> None:
    exact = replace(FP32, quality=replace(FP32.quality, measures={"kl_bits": 0.0}))
    plot = build_trade_off_plot(make_trade_off(exact, INT8), DIVERGENCE, SIZE)
    assert plot is not None
    assert plot.y.scale == "decades"
    drawing = draw_plot(plot)
    assert max(mark.y for one in drawing.strokes for mark in one.marks) == drawing.y_ticks[0].position
