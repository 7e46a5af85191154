from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flash_export.report.document import Axis, Plot, Point, Series
from flash_export.report.drawing import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    draw_plot,
    lay_out_decades,
    lay_out_linear,
    place_labels,
)


def make_plot(*series: Series, **changes: Any) -> Plot:
    values = {"x": Axis("length", "lengths"), "y": Axis("error", "decades"), **changes}
    return Plot("Title", "Caption.", series=series, **values)


def make_points(*pairs: tuple[float, float | None], **changes: Any) -> tuple[Point, ...]:
    return tuple(Point(x, y, f"at {x}", **changes) for x, y in pairs)


def test_larger_values_are_higher_and_longer_sequences_to_the_right() -> None:
    drawing = draw_plot(
        make_plot(Series("a", "s0", points=make_points((16, 1e-6), (4096, 1e-3))), marker=(128, "here"))
    )
    small, large = drawing.strokes[0].marks
    assert small.x < large.x
    assert small.y > large.y  # SVG counts downwards
    assert drawing.marker is not None
    assert small.x < drawing.marker.x < large.x
    assert [tick.label for tick in drawing.y_ticks] == ["10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³"]
    assert [tick.label for tick in drawing.x_ticks] == ["16", "32", "64", "128", "256", "512", "1k", "2k", "4k"]


def test_what_has_no_number_is_at_the_top_and_zero_at_the_bottom_of_decades() -> None:
    drawing = draw_plot(make_plot(Series("a", "s0", points=make_points((1, None), (2, 0.0), (4, 1e-3)))))
    assert [mark.y for mark in drawing.strokes[0].marks][:2] == [TOP, HEIGHT - BOTTOM]


def test_line_of_one_point_is_a_stub_and_what_lies_below_a_line_is_filled() -> None:
    drawing = draw_plot(make_plot(Series("noise", "noise", ((257, 1e-6),), is_filled=True)))
    (stroke,) = drawing.strokes
    start, end = (float(x) for x in re.findall(r"[ML]\s?([\d.]+) ", stroke.path))
    assert end - start == 16.0
    assert stroke.area.startswith(stroke.path)
    assert stroke.area.endswith("Z")


def test_single_point_of_a_backend_has_no_stub() -> None:
    drawing = draw_plot(make_plot(Series("a", "s0", ((257, 1e-6),), make_points((257, 1e-6)))))
    assert "L" not in drawing.strokes[0].path


def test_spread_is_drawn_and_ticks_of_times_are_durations() -> None:
    points = make_points((1, 20.0), (2, 2000.0), spread=(10.0, 3000.0))
    drawing = draw_plot(make_plot(Series("a", "s0", points=points), y=Axis("time", "decades", "ms")))
    assert [tick.label for tick in drawing.y_ticks] == ["10 ms", "100 ms", "1 s", "10 s"]
    spread = drawing.strokes[0].marks[0].spread
    assert spread is not None
    assert spread[0] == HEIGHT - BOTTOM > spread[1]


def test_marker_on_the_right_has_its_label_on_the_left() -> None:
    points = make_points((0, 1.0), (1, 1.0), (2, 1.0))
    axis = Axis("block", "linear", ticks=((0, "0"), (2, "1")))
    for at, anchor in ((0, "start"), (2, "end")):
        drawing = draw_plot(make_plot(Series("a", "s0", points=points), x=axis, marker=(at, "fault")))
        assert drawing.marker is not None
        assert drawing.marker.anchor == anchor
        assert [tick.label for tick in drawing.x_ticks] == ["0", "1"]


def test_tick_beyond_the_points_widens_the_axis() -> None:
    axis = Axis("bits", "linear", ticks=((-1.5, "1.5"), (-1.6, "1.6"), (-1.7, "1.7")))
    drawing = draw_plot(make_plot(Series("a", "s0", points=make_points((16, -1.6), (32, -1.65))), y=axis))
    assert [tick.position for tick in drawing.y_ticks] == [TOP, (HEIGHT - BOTTOM + TOP) / 2, HEIGHT - BOTTOM]
    assert drawing.strokes[0].marks[0].y == drawing.y_ticks[1].position


def test_axis_with_labels_starts_at_zero_and_leaves_room_for_them() -> None:
    points = (Point(5.0, 1.0, "", label="a rather long name"), Point(10.0, 2.0, "", label="b"))
    linear = Axis("size", "linear")
    drawing = draw_plot(make_plot(Series("a", "s0", points=points), x=linear, y=linear))
    assert drawing.x_ticks[0].label == "0"
    assert max(mark.x for mark in drawing.strokes[0].marks) < WIDTH - RIGHT - 60
    assert {mark.label.text for mark in drawing.strokes[0].marks if mark.label} == {"a rather long name", "b"}


def test_error_too_small_for_a_power_of_ten_is_drawn_at_the_edge() -> None:
    place, decades = lay_out_decades([5e-324, 1e-3], 0.0, 300.0)
    assert place(5e-324) == place(1e-300) == place(0.0) == decades[min(decades)] == 0.0


@given(st.lists(st.floats(0, allow_infinity=True, allow_nan=False), min_size=1, max_size=5), st.booleans())
def test_any_number_has_a_place(values: list[float], in_ms: bool) -> None:
    points = make_points(*((float(index + 1), value) for index, value in enumerate(values)))
    drawing = draw_plot(make_plot(Series("a", "s0", points=points), y=Axis("y", "decades", "ms" if in_ms else "")))
    assert all(TOP <= mark.y <= HEIGHT - BOTTOM for mark in drawing.strokes[0].marks)
    assert all(TOP <= tick.position <= HEIGHT - BOTTOM for tick in drawing.y_ticks)
    assert drawing.y_ticks


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
    place, ticks = lay_out_linear(low, low + span, start, end)
    margin = 1e-9 * max(abs(low), abs(low + span))
    assert ticks[0] <= low + margin
    assert ticks[-1] >= low + span - margin
    assert 2 <= len(ticks) <= 9
    assert (place(ticks[0]), place(ticks[-1])) == (start, end)
    steps = [place(after) - place(before) for before, after in itertools.pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps), abs=0.21)
