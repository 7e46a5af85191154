from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flash_export.validators.report.axes import HEIGHT, LEFT, RIGHT, WIDTH, build_linear_axis
from flash_export.validators.trade_off.measures import (
    SIZE,
    find_front,
    list_costs,
    list_losses,
)
from flash_export.validators.trade_off.plot import build_trade_off_plot, build_trade_off_plots, place_labels
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
    assert build_trade_off_plots(make_trade_off(FP8)) == []


def test_worse_is_higher_dearer_is_further_right_and_the_beaten_are_rings() -> None:
    plot = build_trade_off_plot(FULL, BITS_PER_BYTE, list_costs(FULL)[0])
    assert plot is not None
    best, beaten = plot.series
    marks = {mark.label.text: mark for one in plot.series for mark in one.marks if mark.label}
    assert [mark.label.text for mark in best.marks if mark.label] == ["int8", "fp32"]  # as the line goes
    assert {mark.kind for mark in beaten.marks} == {"ring"}
    assert marks["int8"].x < marks["fp32"].x < marks["fp16"].x
    assert marks["int4"].y < marks["int8"].y < marks["fp32"].y  # SVG counts downwards
    assert plot.caption.endswith("Not measured: fp8.")
    assert marks["int8"].title == "int8: bits per byte 1.504, time of 2048 tokens 48 ms"


def test_divergence_of_zero_is_drawn_on_its_logarithmic_axis() -> None:
    exact = replace(FP32, quality=replace(FP32.quality, measures={"kl_bits": 0.0}))
    plot = build_trade_off_plot(make_trade_off(exact, INT8), DIVERGENCE, SIZE)
    assert plot is not None
    assert plot.y_ticks[0].label.startswith("10")
    assert max(mark.y for one in plot.series for mark in one.marks) == plot.y_ticks[0].position


@given(st.lists(st.tuples(st.floats(LEFT, WIDTH - RIGHT), st.floats(0, HEIGHT)), min_size=1, max_size=7))
def test_names_cover_neither_each_other_nor_a_point(points: list[tuple[float, float]]) -> None:
    labels = place_labels({f"bundle-{index}": point for index, point in enumerate(points)})
    boxes = []
    for label in labels.values():
        width = 6.5 * len(label.text)
        left = label.x - width if label.anchor == "end" else label.x
        boxes.append((left, left + width, label.y))
    for index, (left, right, height) in enumerate(boxes):
        for start, end, other in boxes[:index]:
            assert not (left < end and start < right) or abs(height - other) >= 11.5
        for x, y in points:
            assert not left < x < right or abs(height - 4 - y) >= 11.5


@given(
    st.floats(-1e6, 1e6).map(lambda value: round(value, 3)),
    st.one_of(st.just(0.0), st.floats(1e-3, 1e6)),
    st.booleans(),
)
def test_linear_axis_holds_its_range_and_its_ticks_are_at_their_values(low: float, span: float, down: bool) -> None:
    start, end = (300.0, 20.0) if down else (20.0, 300.0)
    axis, ticks = build_linear_axis(low, low + span, start, end, repr)
    margin = 1e-9 * max(abs(low), abs(low + span))
    assert axis.low <= low + margin
    assert axis.high >= low + span - margin
    assert 2 <= len(ticks) <= 9
    assert (ticks[0].position, ticks[-1].position) == (start, end)
    for tick in ticks:
        assert axis.place(float(tick.label)) == pytest.approx(tick.position, abs=0.11)
