from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flash_export.data.batch import Batch, iterate_blocks
from flash_export.data.sources import RandomSource, RecordedSource, draw_padded, join_rows
from flash_export.errors import InputError
from flash_export.interface import Features, Interface, Logits, Mask, TensorSpec, Waveform
from flash_export.models.token_model import describe_token_model
from flash_export.typed_json import build

TOKENS = describe_token_model(50, needs_mask=True, is_causal=False)
FRAMES = Interface(
    inputs=(TensorSpec("features", "float32", ("batch", 6, "seq"), Features(2.0)),),
    outputs=(TensorSpec("mask", "float32", ("batch", 9, "seq"), Features()),),
    task="signal",
    unit="frames",
    padding="refused",
    min_len=3,
)
SOUND = Interface(
    inputs=(TensorSpec("mixture", "float32", ("batch", "seq"), Waveform(8000)),),
    outputs=(TensorSpec("voices", "float32", ("batch", "seq", 2), Waveform(8000)),),
    task="signal",
    unit="samples",
    padding="refused",
)
POSE = Interface(
    inputs=(TensorSpec("features", "float32", ("batch", 4, 3, 3), Features()),),
    outputs=(TensorSpec("simcc_x", "float32", ("batch", 17, 8), Logits()),),
    task="keypoints",
    unit="keypoints",
    padding="refused",
    fixed_len=17,
)


@given(
    interface=st.sampled_from([TOKENS, FRAMES, SOUND]),
    batch=st.integers(1, 4),
    seq_len=st.integers(3, 20),
    seed=st.integers(0, 9),
)
def test_rows_of_a_padded_batch_are_taken_apart_without_their_padding(
    interface: Interface, batch: int, seq_len: int, seed: int
) -> None:
    padded = draw_padded(RandomSource(interface), batch, seq_len, seed=seed)
    spec = interface.inputs[0]
    axis = spec.shape.index("seq")
    assert padded.lengths.min() >= interface.min_len
    assert padded.is_padded == (seq_len > interface.min_len)
    for row, alone in enumerate(padded.take_apart()):
        length = int(padded.lengths[row])
        assert alone.arrays[spec.name].shape[axis] == length == alone.seq_len
        assert not alone.is_padded
        whole = np.moveaxis(padded.arrays[spec.name], axis, 1)[row]
        np.testing.assert_array_equal(np.moveaxis(alone.arrays[spec.name], axis, 1)[0], whole[:length])


def test_the_mask_follows_from_the_lengths() -> None:
    batch = Batch(TOKENS, {"input_ids": np.arange(6).reshape(2, 3)}, np.array([3, 1]), 3)
    inputs = batch.to_model_inputs(masked=True)
    np.testing.assert_array_equal(inputs["attention_mask"], [[1, 1, 1], [1, 0, 0]])
    assert inputs["attention_mask"].dtype == np.int64
    assert batch.to_model_inputs(masked=False).keys() == {"input_ids"}


def test_a_head_without_a_sequence_axis_has_its_one_length() -> None:
    batch = RandomSource(POSE).draw(2, 17)
    assert batch.arrays["features"].shape == (2, 4, 3, 3)
    again = Batch.full(POSE, batch.arrays)
    assert (again.seq_len, again.lengths.tolist()) == (17, [17, 17])
    assert again.take_rows([1]).arrays["features"].shape == (1, 4, 3, 3)


@pytest.mark.parametrize("interface", [TOKENS, FRAMES, SOUND, POSE])
def test_random_inputs_repeat_and_have_the_stated_scale(interface: Interface) -> None:
    source, spec = RandomSource(interface), interface.inputs[0]
    seq_len = interface.fixed_len or 4000
    first, second = (source.draw(2, seq_len).arrays[spec.name] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first != source.draw(2, seq_len, seed=1).arrays[spec.name]).any()
    scale = getattr(spec.content, "scale", None)
    if scale is not None and first.size > 1000:
        assert first.std() == pytest.approx(scale, rel=0.1)


def test_a_waveform_falls_by_the_frequency() -> None:
    sound = RandomSource(SOUND).draw(1, 8000).arrays["mixture"][0]
    power = np.abs(np.fft.rfft(sound)) ** 2  # a bin a hertz
    low, high = power[20:100].mean(), power[2000:4000].mean()
    assert 100 < low / high < 10000  # amplitudes fall by 30 from 100 to 3,000 hertz, so power by 900


def test_recorded_pieces_follow_each_other_and_shorter_data_is_refused() -> None:
    rows = Batch.full(TOKENS, {"input_ids": np.arange(20).reshape(2, 10)})
    source = RecordedSource(TOKENS, "ids.npy", rows)
    assert source.count_rows(4) == 4
    pieces = source.list_pieces(3, 4)
    np.testing.assert_array_equal(join_rows(pieces).arrays["input_ids"], [[0, 1, 2, 3], [4, 5, 6, 7], [10, 11, 12, 13]])
    drawn = source.draw(5, 7).arrays["input_ids"]
    assert (np.diff(drawn, axis=1) == 1).all()  # each row is a run of one of the two
    with pytest.raises(InputError, match=r"ids.npy has 10 tokens, fewer than the 11"):
        source.draw(1, 11)


@given(seq_axis_last=st.booleans(), lengths=st.lists(st.integers(1, 7), min_size=1, max_size=3))
def test_blocks_are_the_valid_positions(seq_axis_last: bool, lengths: list[int]) -> None:
    shape: tuple[int | str, ...] = ("batch", 3, "seq") if seq_axis_last else ("batch", "seq", 3)
    spec = TensorSpec("y", "float32", shape)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((len(lengths), 3, 7) if seq_axis_last else (len(lengths), 7, 3))
    compared = np.arange(7) < np.array(lengths)[:, None]
    found = np.concatenate([block for (block,) in iterate_blocks(spec, compared, values)])
    assert found.shape == (sum(lengths), 3)
    by_position = np.moveaxis(values, 2, 1) if seq_axis_last else values
    np.testing.assert_array_equal(found, by_position[compared])


def test_an_interface_is_the_same_after_json() -> None:
    for interface in (TOKENS, FRAMES, SOUND, POSE, dataclasses.replace(FRAMES, max_len=3)):
        assert build(json.loads(json.dumps(dataclasses.asdict(interface))), Interface) == interface


def test_lengths_of_an_interface_go_upwards() -> None:
    with pytest.raises(ValueError, match="max_len is 2, wanted at least min_len, 3"):
        dataclasses.replace(FRAMES, max_len=2)
    with pytest.raises(ValueError, match="max_len is 0, wanted 1 to"):
        dataclasses.replace(TOKENS, max_len=0)


def test_padding_is_either_masked_or_refused() -> None:
    with pytest.raises(ValueError, match="refused padding alone"):
        Interface(
            TOKENS.inputs,
            TOKENS.outputs,
            "tokens",
            padding="refused",
            mask=TensorSpec("m", "int64", ("batch", "seq"), Mask()),
        )
    with pytest.raises(ValueError, match="one fixed length"):
        Interface(POSE.inputs, POSE.outputs, "keypoints", padding="refused")


def test_frames_count_where_all_of_them_is_real() -> None:
    sound = dataclasses.replace(SOUND, min_len=16, frame_len=16, frame_hop=8)
    batch = RandomSource(sound).draw(2, 40).mask_from(40)
    assert batch.valid_frames.tolist() == [[True] * 4] * 2
    assert batch.mask_from(31).valid_frames.tolist() == [[True, True, False, False]] * 2
    assert [sound.count_frames(sound.find_length(count)) for count in range(1, 9)] == list(range(1, 9))
    assert sound.count_frames(sound.find_length(3) - 1) == 2
    tokens = RandomSource(TOKENS).draw(2, 5).mask_from(3)
    assert (tokens.valid_frames == tokens.valid).all()


def test_interface_without_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="min_len is 1, wanted at least the frame_len of 16"):
        dataclasses.replace(SOUND, frame_len=16, frame_hop=8)
