from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flash_export.bundle.manifest import AxisRange, GraphSpec
from flash_export.data.batch import Batch
from flash_export.data.sources import Data, RandomSource, RecordedSource
from flash_export.errors import ConfigError
from flash_export.interface import Interface, TensorSpec, Waveform
from flash_export.models.token_model import describe_token_model
from flash_export.validators.lengths import (
    DEFAULT_CELL_POSITIONS,
    RECORDED,
    Cell,
    build_batch,
    describe_default_omission,
    make_plan,
    plan_cells,
    plan_lengths,
)

if TYPE_CHECKING:
    from pathlib import Path

INTERFACE = describe_token_model(11, needs_mask=False, is_causal=False, window=8)
# Frames of 16 samples, one every 8, in chunks of 32 frames.
SOUND = Interface(
    inputs=(TensorSpec("waveform", "float32", ("batch", "seq"), Waveform(8000)),),
    outputs=(TensorSpec("sources", "float32", ("batch", 2, "seq"), Waveform(8000)),),
    task="signal",
    unit="samples",
    padding="refused",
    window=32,
    min_len=24,
    frame_len=16,
    frame_hop=8,
)
DATA = Data(RandomSource(INTERFACE))


def make_graph(*, mask: bool, max_seq_len: int = 4096, shape: tuple[int | str, ...] = ("batch", "seq")) -> GraphSpec:
    specs = (*INTERFACE.inputs, INTERFACE.mask) if mask else INTERFACE.inputs
    return GraphSpec(
        "model.onnx",
        20,
        "fp32",
        tuple(replace(spec, shape=shape) for spec in specs if spec is not None),
        (TensorSpec("logits", "float32", ("batch", "seq", 11)),),
        {"batch": AxisRange(1, 8), "seq": AxisRange(1, max_seq_len)},
    )


@given(chunk=st.integers(2, 512), low=st.integers(1, 50), size=st.integers(0, 70000))
def test_lengths_are_sorted_unique_and_within_the_range(chunk: int, low: int, size: int) -> None:
    axis = AxisRange(low, low + size)
    lengths = plan_lengths(replace(INTERFACE, window=chunk), axis)

    assert list(lengths) == sorted(set(lengths))
    assert all(length in axis for length in lengths)


def test_lengths_cross_the_chunk_boundary_and_reach_the_maximum() -> None:
    lengths = set(plan_lengths(replace(INTERFACE, window=256), AxisRange(1, 65536)))

    assert {1, 2, 255, 256, 257, 512, 1027, 65536} <= lengths
    assert 769 in lengths  # the prime


def test_lengths_of_frames_cross_the_chunk_boundary_with_every_kind_of_remainder() -> None:
    lengths = plan_lengths(SOUND, AxisRange(24, 2048))
    assert {24, 25, 31} <= set(lengths)  # two frames, with none, one and seven samples left over
    assert {256, 264, 265, 271, 272} <= set(lengths)  # 31, 32 and 33 frames
    assert SOUND.find_length(4 * 32 + 3) in lengths
    assert min(lengths) == 24


def test_full_plan_of_frames_sweeps_over_every_remainder_of_the_chunk() -> None:
    graph = replace(make_graph(mask=False), axes={"batch": AxisRange(1, 8), "seq": AxisRange(24, 4096)})
    sweep = make_plan("full", graph, SOUND).sweep
    assert [SOUND.count_frames(length) % 32 for length in sweep] == list(range(32))
    assert {length % 8 for length in sweep} == set(range(8))


def test_quick_plan_of_frames_passes_the_first_chunk() -> None:
    graph = replace(make_graph(mask=False), axes={"batch": AxisRange(1, 8), "seq": AxisRange(24, 65536)})
    interface = replace(SOUND, window=256)
    longest = max(make_plan("quick", graph, interface).seq_lens)
    assert interface.count_frames(longest) == 4 * 256 + 3


def test_maximum_that_is_no_power_of_two_limits_the_plan() -> None:
    assert max(plan_lengths(INTERFACE, AxisRange(1, 100))) == 64


def test_cells_are_masked_where_there_is_room_for_padding() -> None:
    cells = plan_cells(make_graph(mask=True), [1, 5], [1, 3])

    assert Cell(1, 1, masked=True) not in cells
    assert {Cell(1, 5, masked=True), Cell(3, 1, masked=True), Cell(3, 5, masked=False)} <= set(cells)
    assert not any(cell.masked for cell in plan_cells(make_graph(mask=False), [1, 5], [1, 3]))


@given(batch=st.integers(1, 5), seq_len=st.integers(1, 60))
def test_masked_inputs_are_ragged_and_repeatable(batch: int, seq_len: int) -> None:
    inputs, again = (build_batch(Cell(batch, seq_len, masked=True), DATA) for _ in range(2))

    assert np.array_equal(inputs.arrays["input_ids"], again.arrays["input_ids"])
    assert np.array_equal(inputs.lengths, again.lengths)
    assert ((inputs.arrays["input_ids"] >= 0) & (inputs.arrays["input_ids"] < 11)).all()
    assert (inputs.lengths >= 1).all()
    if batch > 1:
        assert inputs.lengths[0] == seq_len
    if seq_len > 1:
        assert inputs.lengths.min() < seq_len
    assert np.array_equal(inputs.valid.sum(axis=1), inputs.lengths)


def test_graph_inputs_have_a_mask_of_the_declared_dtype() -> None:
    arrays = build_batch(Cell(3, 9, masked=True), DATA).to_inputs(make_graph(mask=True).inputs)

    assert arrays["attention_mask"].dtype == np.int64
    assert arrays["attention_mask"][0].tolist() == [1] * 9
    unmasked = build_batch(Cell(3, 9, masked=False), DATA)
    assert unmasked.to_inputs(make_graph(mask=False).inputs).keys() == {"input_ids"}


def test_recorded_cells_are_cut_from_the_data() -> None:
    rows = Batch.full(INTERFACE, {"input_ids": np.arange(10)[None]})
    data = Data(DATA.random, RecordedSource(INTERFACE, "held-out text", rows))
    found = build_batch(Cell(1, 4, masked=False, inputs=RECORDED), data).arrays["input_ids"][0]
    assert (np.diff(found) == 1).all()
    drawn = build_batch(Cell(1, 4, masked=False), data).arrays["input_ids"]
    assert np.array_equal(drawn, DATA.random.draw(1, 4).arrays["input_ids"])


@pytest.mark.parametrize(("batch", "seq_len", "left_out"), [(1, 1 << 20, False), (3, 16384, False), (3, 32768, True)])
def test_only_long_batches_are_left_out_by_default(batch: int, seq_len: int, left_out: bool) -> None:
    reason = describe_default_omission(Cell(batch, seq_len, masked=False))

    assert bool(reason) == left_out == (batch > 1 and batch * seq_len > DEFAULT_CELL_POSITIONS)
    assert not left_out or f"--seq-lens {seq_len} --batch {batch}" in str(reason)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is damaged: seq_lens is missing; use a JSON file such as"),
        ('{"seq_lens": [1.5]}', r"is damaged: seq_lens\[0\] is a number, wanted a whole number"),
        ('{"seq_lens": [1], "batches": null, "more": 1}', "is damaged: it has the unknown field 'more'"),
        ('{"seq_lens": [1e999]}', "cannot be read as JSON .*1e999"),
        ("[1, 17]", "holds a list, not a JSON object"),
        ("[" * 100_000, "cannot be read as JSON .*nested deeper"),
    ],
)
def test_a_file_that_is_no_plan_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"plan\.json {message}"):
        make_plan(str(tmp_path / "plan.json"), make_graph(mask=False), INTERFACE)


def test_a_graph_of_one_long_length_has_a_plan() -> None:
    """It is longer than what the quick plan goes to."""
    graph = make_graph(mask=False, max_seq_len=5000)
    graph = replace(graph, axes={**graph.axes, "seq": AxisRange(5000, 5000)})
    assert make_plan("quick", graph, INTERFACE).seq_lens == (5000,)
