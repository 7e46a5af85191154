"""Tuning: the fastest way within the budget is chosen, and every other one has a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from flash_export.cli.main import main
from flash_export.errors import CheckpointError, ConfigError
from flash_export.study.schedule import Found
from flash_export.study.tuning import TuneConfig, make_config, plan_tuning
from flash_export.study.tuning_results import collect_tuning, describe_tuning

if TYPE_CHECKING:
    from pathlib import Path

CPU = TuneConfig("/model", "id", threads=(1, 2), variants=("fp32", "int8", "fp16"))


def find(config: TuneConfig, losses: dict[str, float], times: dict[tuple[str, int], float]) -> dict[str, Found]:
    """Return what tuning found, given losses by variant and milliseconds by variant and threads."""
    found = {}
    for planned in plan_tuning(config):
        task = planned.task
        if task.kind == "make":
            value: dict[str, Any] = {"bytes": 100}
        elif task.kind == "validate":
            value = {"is_right": True, "reason": None}
        elif task.kind == "judge":
            loss = losses.get(task.model, 0.0)
            value = {"loss": loss, "data": "held-out text", "is_right": loss <= config.budget}
        else:
            ms = times.get((task.model, task.threads), 50.0) * task.seq_len
            spread = {"p50": ms, "p90": ms, "p99": ms, "p50_low": ms, "p50_high": ms, "runs": 3}
            value = {"latency_ms": spread, "memory_bytes": 5, "reason": None}
        found[task.name] = Found(value)
    return found


def test_fastest_within_the_budget_is_chosen_and_the_others_have_a_reason() -> None:
    times = {("fp32", 1): 4.0, ("fp32", 2): 3.0, ("int8", 1): 2.0, ("int8", 2): 1.5}
    tuning = collect_tuning(CPU, find(CPU, {"int8": 0.004}, times))
    assert tuning.best is not None
    assert (tuning.best.name, tuning.best.loss) == ("int8 on ort-cpu, 2 threads", 0.004)
    assert tuning.best.speedup == pytest.approx(4.0 / 1.5)
    reasons = {way.name: way.reason for way in tuning.ways}
    assert reasons == {
        "fp32 on ort-cpu, 1 thread": "takes 2.67 times as long as int8 on ort-cpu, 2 threads",
        "fp32 on ort-cpu, 2 threads": "takes 2.00 times as long as int8 on ort-cpu, 2 threads",
        "int8 on ort-cpu, 1 thread": "takes 1.33 times as long as int8 on ort-cpu, 2 threads",
        "int8 on ort-cpu, 2 threads": None,
        "fp16 on ort-cpu": "fp16 and fp8 are tried on GPUs alone",
    }
    page = describe_tuning(tuning, "folder")
    assert page.lead == (
        "int8 on ort-cpu, 2 threads is the fastest within 0.50%, 2.67 times as fast as fp32, and loses 0.40%."
    )


@given(st.floats(0.0, 0.02), st.floats(0.5, 8.0))
def test_what_loses_more_than_the_budget_is_never_chosen(loss: float, ms: float) -> None:
    tuning = collect_tuning(CPU, find(CPU, {"int8": loss}, {("fp32", 1): 4.0, ("fp32", 2): 4.5, ("int8", 1): ms}))
    assert tuning.best is not None
    assert tuning.best.variant == ("int8" if loss <= 0.005 and ms < 4.0 else "fp32")


@pytest.mark.parametrize(
    ("task", "value", "reason"),
    [
        ("validate~int8~ort-cpu", Found({"is_right": False, "reason": "off by 3"}), "fails validation: off by 3"),
        ("validate~int8~ort-cpu", Found(reason="no memory"), "no memory"),
        ("make~int8", Found(reason="nothing can be int8"), "nothing can be int8"),
        ("time~int8~ort-cpu~1t~2048", Found(reason="killed"), "killed"),
    ],
)
def test_way_that_did_not_work_says_why(task: str, value: Found, reason: str) -> None:
    tuning = collect_tuning(CPU, {**find(CPU, {}, {("int8", 1): 1.0, ("int8", 2): 60.0}), task: value})
    assert tuning.best is not None
    assert tuning.best.variant == "fp32"
    assert reason in {way.reason for way in tuning.ways if way.variant == "int8"}


def test_nothing_is_made_that_no_backend_would_run() -> None:
    made = {planned.task.model for planned in plan_tuning(CPU) if planned.task.kind == "make"}
    assert made == {"fp32", "int8"}


@pytest.mark.parametrize(("is_native", "expected"), [(True, {"fp32", "bf16", "int8-bf16"}), (False, {"fp32"})])
def test_bf16_is_tried_in_openvino_where_the_processor_has_it(
    is_native: bool, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = None if is_native else "OpenVINO computes bf16 in fp32 here."
    monkeypatch.setattr("flash_export.runtime.openvino.describe_openvino_arithmetic", lambda _: said)
    config = replace(CPU, backends=("openvino", "ort-cpu"), variants=("fp32", "bf16", "int8-bf16", "int8-token"))
    tried = {(one.task.model, one.task.backend) for one in plan_tuning(config) if one.task.kind == "validate"}
    assert {model for model, backend in tried if backend == "openvino"} == expected
    assert {model for model, backend in tried if backend == "ort-cpu"} == {"fp32", "int8-token"}


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; give a checkpoint folder or a bundle"):
        make_config(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"unknown variant 'int7'; there are .*int8"):
        make_config(tmp_path, variants=("int7",))
    with pytest.raises(ConfigError, match=r"is no checkpoint folder with config\.json"):
        make_config(tmp_path)
    result = CliRunner().invoke(main, ["tune", str(tmp_path), "-o", str(tmp_path / "out"), "--budget", "5"])
    assert result.exit_code == 2
    assert "'5' is no share above 0 and below 1; write it like 0.5% or 0.005" in result.output
    assert not (tmp_path / "out").exists()
