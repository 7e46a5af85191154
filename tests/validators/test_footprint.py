from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest

from flash_export.bundle.manifest import AxisRange, GraphSpec, ProfileShapes
from flash_export.interface import TensorSpec
from flash_export.models.flash import FlashConfig
from flash_export.typed_json import build
from flash_export.validators import footprint
from flash_export.validators.backends import Backend
from flash_export.validators.footprint import (
    BUDGET_S,
    QUICK_BUDGET_S,
    Footprint,
    FootprintRequest,
    ShapeCost,
    choose_lengths,
    measure_footprint,
    plan_footprint,
)
from flash_export.validators.journal import Journal, StepResult
from flash_export.validators.lengths import FULL, QUICK, Plan

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

INPUTS = (TensorSpec("input_ids", "int64", ("batch", "seq")),)
OUTPUTS = (TensorSpec("logits", "float32", ("batch", "seq", 17)),)
GRAPH = GraphSpec("model.onnx", 20, "fp32", INPUTS, OUTPUTS, {"batch": AxisRange(2, 4), "seq": AxisRange(1, 4096)})
CONFIG = FlashConfig(17, 12, 2, 24, chunk_size=16, qk_dim=20)


def refuse() -> object:
    raise AssertionError("planning opens nothing")


def make_backend(name: str = "ort-cpu", profiles: tuple[dict[str, ProfileShapes], ...] = ()) -> Backend:
    return Backend(name, "forward", "cpu", INPUTS, (), refuse, profiles)  # type: ignore[arg-type]


def make_request(bundle: Bundle, backend: str = "ort-cpu", seq_lens: tuple[int, ...] = (9, 30, 90)) -> FootprintRequest:
    return FootprintRequest(str(bundle.path), backend, (), 1, 1, seq_lens, 60.0)


@pytest.mark.parametrize(
    ("lengths", "chosen"),
    [
        ([], ()),
        ([7], (7,)),
        ([1, 2], (2,)),
        ([1, 64, 128, 256, 1024], (128, 256, 1024)),
        ([1, 64, 250, 900, 1000, 4096], (250, 1000, 4096)),
    ],
)
def test_lengths_are_far_apart_and_no_shorter_than_a_chunk(lengths: list[int], chosen: tuple[int, ...]) -> None:
    assert choose_lengths(lengths, 128) == chosen


def test_plan_takes_the_smallest_batch_and_what_the_backend_can_take(tmp_path: Path) -> None:
    plan = Plan(QUICK, (1, 16, 64, 256, 1024, 4096))
    request = plan_footprint(tmp_path, make_backend(), GRAPH, CONFIG, plan, threads=2)
    assert (request.batch, request.seq_lens) == (2, (256, 1024, 4096))
    assert (request.budget_s, request.threads, request.onnx_files) == (QUICK_BUDGET_S, 2, ())

    engine = make_backend("trt:small", ({"input_ids": ProfileShapes((2, 1), (2, 8), (2, 64))},))
    full = replace(plan, name=FULL)
    request = plan_footprint(tmp_path, engine, GRAPH, CONFIG, full, onnx_files=(tmp_path / "a.onnx",))
    assert (request.seq_lens, request.budget_s, request.onnx_files) == ((16, 64), BUDGET_S, ())
    request = plan_footprint(tmp_path, make_backend("onnx:a"), GRAPH, CONFIG, plan, onnx_files=(tmp_path / "a.onnx",))
    assert request.onnx_files == (str(tmp_path / "a.onnx"),)


def test_lengths_that_do_not_fit_into_memory_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        footprint, "describe_lack_of_memory", lambda _, cell: "too large" if cell.seq_len > 100 else None
    )
    request = plan_footprint(tmp_path, make_backend(), GRAPH, CONFIG, Plan(QUICK, (16, 64, 256)))
    assert request.seq_lens == (16, 64)


def test_no_length_is_no_process(pristine_bundle: Bundle) -> None:
    found = measure_footprint(make_request(pristine_bundle, seq_lens=()))
    assert found == Footprint("ort-cpu", "not measured: the backend takes no length of the plan")


def test_fresh_process_measures_the_real_backend(pristine_bundle: Bundle) -> None:
    found = measure_footprint(make_request(pristine_bundle))

    assert found.open_ms is not None
    assert found.open_ms > 0
    assert [shape.seq_len for shape in found.shapes] == [9, 30, 90]
    assert found.first_call_ms == found.shapes[0].first_ms
    assert found.shape_change_ms is not None
    if sys.platform == "linux":
        assert found.reason is None
        assert found.session_bytes is not None
        assert found.peak_bytes is not None
        assert 0 <= found.peak_bytes < 200 << 20
        assert found.peak_seq_len == 90


def test_module_of_the_users_folder_is_not_imported(
    pristine_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(tmp_path)
    assert measure_footprint(make_request(pristine_bundle)).shapes


def test_what_goes_wrong_is_the_reason(bundle: Bundle) -> None:
    bundle.get_graph_path().write_bytes(b"no graph")
    found = measure_footprint(make_request(bundle))
    assert found.open_ms is None
    assert str(found.reason).startswith("not measured: its process ended with exit code 1 (")
    assert "was changed after the export" in str(found.reason)


def test_process_that_hangs_is_given_up(pristine_bundle: Bundle) -> None:
    found = measure_footprint(make_request(pristine_bundle), timeout_s=0.01)
    assert found.reason == "not measured: it took more than 0.01 s"


def test_it_is_a_step_that_can_be_resumed(tmp_path: Path) -> None:
    found = Footprint("ort-cpu", None, 1.0, 2, (ShapeCost(8, 1.0, 0.5),), 1.0, 0.0, 3, 8)
    Journal(tmp_path / "journal", {}).record("footprint of ort-cpu", StepResult(footprint=found))
    resumed = Journal(tmp_path / "journal", {}, resume=True)
    assert resumed.find("footprint of ort-cpu") == StepResult(footprint=found)


def test_json_and_back() -> None:
    found = Footprint("ort-cpu", None, 1.0, 2, (ShapeCost(8, 1.0, 0.5),), 1.0, 0.0, 3, 8)
    assert build(json.loads(json.dumps(asdict(found))), Footprint) == found
