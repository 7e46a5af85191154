from __future__ import annotations

from pathlib import Path

import pytest

from flash_export.bundle.manifest import AxisRange, GraphSpec, ProfileShapes
from flash_export.config import TENSORRT, TENSORRT_RTX, BuildOptions, Flavour
from flash_export.errors import ConfigError, InputError, ProfileError
from flash_export.exporters.profile_use import ProfileUse, choose_profiles
from flash_export.interface import TensorSpec
from flash_export.models.token_model import describe_token_model

INTERFACE = describe_token_model(256, needs_mask=False, is_causal=True, window=128)
GRAPH = GraphSpec(
    "model.onnx",
    20,
    "fp32",
    (TensorSpec("input_ids", "int64", ("batch", "seq")),),
    (TensorSpec("logits", "float32", ("batch", "seq", 256)),),
    {"batch": AxisRange(1, 64), "seq": AxisRange(1, 65536)},
)
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def choose(flavour: Flavour, **options: object) -> tuple[list[Shapes], ProfileUse | None]:
    profiles, use = choose_profiles(GRAPH, INTERFACE, BuildOptions(**options), flavour)  # type: ignore[arg-type]
    return [(one["input_ids"].min, one["input_ids"].opt, one["input_ids"].max) for one in profiles], use


def test_without_lengths_there_is_one_profile_of_all() -> None:
    assert choose(TENSORRT, max_batch=3) == ([((1, 1), (1, 512), (3, 65536))], None)


def test_profiles_that_were_written_out_are_taken() -> None:
    assert choose(TENSORRT, profiles=("1x1:1x2:1x3",)) == ([((1, 1), (1, 2), (1, 3))], None)


def test_a_range_is_cut_without_gaps_from_the_shortest_length_of_the_graph() -> None:
    profiles, use = choose(TENSORRT, length_range="100:1024", num_profiles=2)
    assert use is not None
    assert use.chosen == len(profiles) == 2
    assert use.unit == "tokens"
    assert use.mean_length == pytest.approx(562)
    (first, second) = profiles
    assert first[0] == (1, 1)
    assert first[2] == (8, 512)
    assert second[0] == (1, 513)
    assert second[2] == (8, 1024)
    assert all(opt[0] == 1 for _, opt, _ in profiles)


def test_the_flavour_is_part_of_the_choice() -> None:
    many, use = choose(TENSORRT, length_range="1:4096")
    assert use is not None
    assert len(many) == use.chosen > 2
    assert "none more would save a twentieth" in use.reason
    one, use = choose(TENSORRT_RTX, length_range="1:4096")
    assert use is not None
    assert len(one) == use.chosen == 1
    assert "makes the engine larger" in use.reason
    assert len(use.candidates) == 8  # what more would save is shown
    three, _ = choose(TENSORRT_RTX, length_range="1:4096", num_profiles=3)
    assert len(three) == 3


def test_fewer_chunks_than_profiles_are_told() -> None:
    profiles, use = choose(TENSORRT, length_range="1:200", num_profiles=5)
    assert len(profiles) == 2
    assert use is not None
    assert use.reason == "5 asked for, but there are no more chunks"


def test_a_graph_without_lengths_has_none_to_cut() -> None:
    graph = GraphSpec("decode.onnx", 20, "fp32", (TensorSpec("x", "int64", ("batch", 1)),), GRAPH.outputs, GRAPH.axes)
    with pytest.raises(ProfileError, match=r"decode.onnx takes one length only"):
        choose_profiles(graph, INTERFACE, BuildOptions(length_range="1:5"), TENSORRT)
    (profile,), _ = choose_profiles(graph, INTERFACE, BuildOptions(), TENSORRT)
    assert profile == {"x": ProfileShapes((1, 1), (1, 1), (8, 1))}


def test_lengths_beyond_the_graph_are_refused() -> None:
    with pytest.raises(InputError, match="has the length 65537, the graph takes 1 to 65536"):
        choose(TENSORRT, length_range="1:65537")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length_range": "1:5", "length_histogram": Path("x")}, "length_histogram and length_range all say"),
        ({"length_range": "1:5", "profiles": ("1x1:1x1:1x1",)}, "profiles and length_range all say"),
        ({"num_profiles": 3}, "say which lengths"),
        ({"change_cost": 3.0}, "say which lengths"),
        ({"length_range": "1:5", "num_profiles": 17}, "num_profiles=17 is not usable; use at most 16"),
        ({"length_range": "1:5", "num_profiles": 0}, "num_profiles=0 is not usable"),
        ({"length_range": "1:5", "change_cost": float("nan")}, "change_cost=nan is no cost"),
        ({"max_batch": 0}, "max_batch=0 is not usable"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BuildOptions(**options)  # type: ignore[arg-type]
