from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flash_export.bundle.manifest import AxisRange, GraphSpec, ProfileShapes
from flash_export.errors import ProfileError
from flash_export.exporters.profile import derive_profiles, parse_profile
from flash_export.interface import TensorSpec

OUTPUTS = (TensorSpec("logits", "float32", (1, 80)),)


def make_graph(max_batch: int = 64, max_seq_len: int = 65536, min_seq_len: int = 1) -> GraphSpec:
    return GraphSpec(
        file="model.onnx",
        opset=20,
        precision="fp32",
        inputs=(
            TensorSpec("input_ids", "int64", ("batch", "seq")),
            TensorSpec("attention_mask", "int64", ("batch", "seq")),
            TensorSpec("state", "float32", ("batch", 4, 128, "seq")),
        ),
        outputs=(TensorSpec("logits", "float32", ("batch", "seq", 16)),),
        axes={"batch": AxisRange(1, max_batch), "seq": AxisRange(min_seq_len, max_seq_len)},
    )


def join(*shapes: tuple[int, ...]) -> str:
    return ":".join("x".join(map(str, shape)) for shape in shapes)


def test_every_input_gets_its_shapes() -> None:
    profile = parse_profile("1x1:2x512:4x4096", make_graph())
    assert profile == {
        "input_ids": ProfileShapes((1, 1), (2, 512), (4, 4096)),
        "attention_mask": ProfileShapes((1, 1), (2, 512), (4, 4096)),
        "state": ProfileShapes((1, 4, 128, 1), (2, 4, 128, 512), (4, 4, 128, 4096)),
    }


@given(st.lists(st.integers(1, 64), min_size=3, max_size=3), st.lists(st.integers(1, 65536), min_size=3, max_size=3))
def test_every_rising_profile_in_range_is_accepted(batches: list[int], lengths: list[int]) -> None:
    shapes = list(zip(sorted(batches), sorted(lengths), strict=True))
    parsed = parse_profile(join(*shapes), make_graph())["input_ids"]
    assert [parsed.min, parsed.opt, parsed.max] == shapes


@given(st.text(alphabet="0123456789x:-+ .Xab²", max_size=24))
def test_any_other_text_is_a_profile_error_with_the_text_in_it(text: str) -> None:
    try:
        parsed = parse_profile(text, make_graph())["input_ids"]
    except ProfileError as error:
        message = str(error)
        parsed = None
    if parsed is None:
        assert text in message
    else:
        assert re.fullmatch(r"\d+x\d+:\d+x\d+:\d+x\d+", text.strip(), re.ASCII)
        for low, optimum, high, limit in zip(parsed.min, parsed.opt, parsed.max, (64, 65536), strict=True):
            assert 1 <= low <= optimum <= high <= limit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1x1:1x512:4x99999",
            "profile 1x1:1x512:4x99999: seq 99999 exceeds the graph's maximum 65536; "
            "export again with --max-seq-len or lower it",
        ),
        ("1x1:1x512:65x512", "batch 65 exceeds the graph's maximum 64; export again with --max-batch or lower it"),
        (
            "1x1:1x512",
            "2 part(s) where MIN:OPT:MAX has 3; write BATCHxSEQ:BATCHxSEQ:BATCHxSEQ, such as 1x1:1x1:64x65536",
        ),
        ("1:1x512:4x4096", "'1' has 1 size(s) where the graph has 2 axes; write BATCHxSEQ"),
        ("1x1x1:1x512:4x4096", "'1x1x1' has 3 size(s)"),
        (":1x512:4x4096", "'' has 0 size(s)"),
        ("1x1:1xfive:4x4096", "seq 'five' is not a whole number"),
        ("1x1:1x-5:4x4096", "seq '-5' is not a whole number"),
        ("0x1:1x512:4x4096", "batch 0 is an empty axis; use at least 1"),
        ("2x1:1x512:4x4096", "batch has min 2 above opt 1"),
        ("1x1:1x8192:4x4096", "seq has opt 8192 above max 4096"),
    ],
)
def test_malformed_profile_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=re.escape(message)):
        parse_profile(text, make_graph())


def test_size_below_the_graphs_minimum_is_refused() -> None:
    with pytest.raises(ProfileError, match="seq 1 is below the graph's minimum 16; raise it"):
        parse_profile("1x1:1x512:4x4096", make_graph(min_seq_len=16))


@given(st.integers(1, 1000), st.integers(1, 100_000), st.integers(1, 2048))
def test_derived_profile_is_valid_and_covers_every_length(max_batch: int, max_seq_len: int, chunk_size: int) -> None:
    graph = make_graph(max_batch, max_seq_len)
    (profile,) = derive_profiles(graph, chunk_size)
    shapes = profile["input_ids"]
    assert parse_profile(join(shapes.min, shapes.opt, shapes.max), graph) == profile
    assert shapes.min == (1, 1)
    assert shapes.max == (min(max_batch, 8), max_seq_len)
    assert shapes.opt[0] == 1
    assert shapes.opt[1] % chunk_size == 0 or shapes.opt[1] == max_seq_len


@pytest.mark.parametrize(("chunk_size", "tuned"), [(128, 512), (256, 512), (200, 400), (1024, 1024)])
def test_derived_profile_is_tuned_for_whole_chunks(chunk_size: int, tuned: int) -> None:
    assert derive_profiles(make_graph(), chunk_size)[0]["input_ids"].opt == (1, tuned)


def test_axis_without_a_range_is_refused() -> None:
    with pytest.raises(ValueError, match="axis 'frames' has no range"):
        GraphSpec("model.onnx", 20, "fp32", (TensorSpec("x", "float32", ("frames", 80)),), OUTPUTS, {})


def test_a_graph_of_fixed_shapes_has_a_profile_of_them() -> None:
    graph = GraphSpec("model.onnx", 20, "fp32", (TensorSpec("x", "float32", (1, 80)),), OUTPUTS, {})
    assert derive_profiles(graph, 128) == ({"x": ProfileShapes((1, 80), (1, 80), (1, 80))},)
