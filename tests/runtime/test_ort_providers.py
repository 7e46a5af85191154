"""What the providers that build engines are told, and where they keep what they built."""

from __future__ import annotations

import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from flash_export.bundle.default_profile import derive_profile
from flash_export.bundle.manifest import AxisRange, GraphSpec
from flash_export.config import DECODE, FORWARD
from flash_export.errors import BackendUnavailableError
from flash_export.interface import TensorSpec
from flash_export.runtime.backends import BACKENDS, find_target
from flash_export.runtime.ort_providers import CPU, CUDA, TENSORRT, TENSORRT_RTX, EngineNeeds, make_options
from flash_export.user_cache import FOLDER_VARIABLE

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

GRAPH = GraphSpec(
    "model.onnx",
    20,
    "fp16",
    (
        TensorSpec("input_ids", "int64", ("batch", "seq")),
        TensorSpec("state.0.kv", "float32", ("batch", 8, 16)),
        TensorSpec("step", "int64", (1,)),
    ),
    (TensorSpec("logits", "float32", ("batch", "seq")),),
    {"batch": AxisRange(1, 64), "seq": AxisRange(1, 4096)},
)
NEEDS = EngineNeeds(GRAPH, (derive_profile(GRAPH, 256),), {"model.onnx": "a" * 64})
VERSIONS = ("1.31.1", "10.13.3", "NVIDIA L4")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_tensorrt_is_told_profile_and_caches_and_no_precision(cache: Path) -> None:
    options = make_options(TENSORRT, NEEDS, VERSIONS)
    (entry,) = (cache / "ort-tensorrt").iterdir()
    assert options == {
        "trt_fp16_enable": "0",
        "trt_int8_enable": "0",
        "trt_profile_min_shapes": "input_ids:1x1,state.0.kv:1x8x16",
        "trt_profile_opt_shapes": "input_ids:1x512,state.0.kv:1x8x16",
        "trt_profile_max_shapes": "input_ids:8x4096,state.0.kv:8x8x16",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(entry),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(entry),
    }
    assert stat.S_IMODE(entry.stat().st_mode) == 0o700


def test_tensorrt_rtx_is_told_the_same_in_its_own_names(cache: Path) -> None:
    options = make_options(TENSORRT_RTX, NEEDS, VERSIONS)
    (entry,) = (cache / "ort-tensorrt-rtx").iterdir()
    assert options == {
        "nv_profile_min_shapes": "input_ids:1x1,state.0.kv:1x8x16",
        "nv_profile_opt_shapes": "input_ids:1x512,state.0.kv:1x8x16",
        "nv_profile_max_shapes": "input_ids:8x4096,state.0.kv:8x8x16",
        "nv_runtime_cache_path": str(entry),
    }


def test_several_profiles_are_the_names_several_times(cache: Path) -> None:
    long = derive_profile(GRAPH, 256, lengths=(513, 1024, 4096))
    needs = replace(NEEDS, profiles=(derive_profile(GRAPH, 256, lengths=(1, 256, 512)), long))
    options = make_options(TENSORRT_RTX, needs, VERSIONS)
    assert options["nv_multi_profile_enable"] == "1"
    assert options["nv_profile_min_shapes"] == "input_ids:1x1,state.0.kv:1x8x16,input_ids:1x513,state.0.kv:1x8x16"


def test_graph_of_fixed_sizes_has_no_profile(cache: Path) -> None:
    fixed = replace(GRAPH, inputs=(TensorSpec("x", "float32", (1, 8)),), axes={})
    options = make_options(TENSORRT, EngineNeeds(fixed, (derive_profile(fixed, 256),)), VERSIONS)
    assert not [name for name in options if "profile" in name]


@pytest.mark.parametrize("provider", [TENSORRT, TENSORRT_RTX])
def test_another_model_profile_or_version_has_another_folder(cache: Path, provider: object) -> None:
    assert provider in (TENSORRT, TENSORRT_RTX)
    chosen = TENSORRT if provider is TENSORRT else TENSORRT_RTX
    others = (
        (NEEDS, VERSIONS),
        (NEEDS, VERSIONS),  # the same once more
        (replace(NEEDS, sha256={"model.onnx": "b" * 64}), VERSIONS),
        (replace(NEEDS, profiles=(derive_profile(GRAPH, 256, max_batch=1),)), VERSIONS),
        (NEEDS, (*VERSIONS[:2], "NVIDIA L40S")),
    )
    for needs, versions in others:
        make_options(chosen, needs, versions)
    assert len(list((cache / f"ort-{chosen.name}").iterdir())) == 4


def test_nothing_is_kept_of_a_graph_that_was_changed(cache: Path) -> None:
    assert make_options(TENSORRT, None, VERSIONS) == {"trt_fp16_enable": "0", "trt_int8_enable": "0"}
    assert make_options(TENSORRT_RTX, None, VERSIONS) == {}
    assert not cache.exists()


def test_others_are_told_of_tensorfloat_alone() -> None:
    assert make_options(CPU, None, ()) == {}
    assert make_options(CUDA, None, ()) == {"use_tf32": "0"}


@pytest.mark.parametrize("name", ["ort-tensorrt", "ort-tensorrt-rtx"])
@pytest.mark.parametrize("graph", [FORWARD, DECODE])
def test_backend_is_built_for_the_default_profile_where_there_is_no_engine(
    causal_byte_bundle: Bundle, name: str, graph: str
) -> None:
    (target,) = BACKENDS[name].find(causal_byte_bundle, graph)
    spec = causal_byte_bundle.get_graph(graph)
    assert target.profiles == (derive_profile(spec, causal_byte_bundle.manifest.interface.chunk_size),)
    assert target.path == causal_byte_bundle.get_graph_path(graph)
    assert not BACKENDS[name].is_default(causal_byte_bundle, graph)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ort-tensorrt", "has no TensorrtExecutionProvider"),
        ("ort-tensorrt-rtx", "onnxruntime_ep_nv_tensorrt_rtx is not installed; pip install"),
    ],
)
def test_missing_provider_is_one_line_with_its_cure(causal_byte_bundle: Bundle, name: str, message: str) -> None:
    with pytest.raises(BackendUnavailableError, match=message) as caught:
        find_target(causal_byte_bundle, name, FORWARD).open()
    assert "\n" not in str(caught.value)
