"""The order of tasks, what is done again and what is not, and what a failure stops."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flash_export.study.comparing import plan_study
from flash_export.study.config import ModelEntry, StudyConfig, Training
from flash_export.study.executors import Outcome
from flash_export.study.schedule import run_tasks

if TYPE_CHECKING:
    from flash_export.study.request import Request

CONFIG = StudyConfig(
    models=(ModelEntry("flash"), ModelEntry("linformer", "masked")),
    training=Training(tokens=4096),
    latency_lens=(512, 8192),
    validated_on=("trt-network",),
)
TASKS = {planned.task.name: planned for planned in plan_study(CONFIG, Path())}


class FakeExecutor:
    """Ends tasks one at a time, with what it was told that they find."""

    def __init__(self, jobs: int = 2, values: dict[str, Any] | None = None) -> None:
        self.jobs, self.values = jobs, values or {}
        self.running: list[Request] = []
        self.begun: list[str] = []
        self.most = 0
        self.is_closed = False

    def has_room(self, *, is_timed: bool) -> bool:
        if is_timed:
            return not self.running
        return len(self.running) < self.jobs and not any(one.task.is_timed for one in self.running)

    def submit(self, request: Request) -> None:
        self.running.append(request)
        self.begun.append(request.task.name)
        self.most = max(self.most, len(self.running))
        assert len(self.running) == 1 or not any(one.task.is_timed for one in self.running)

    def wait(self) -> list[Outcome]:
        task = self.running.pop(0).task
        value = self.values.get(task.name, self.values.get(task.kind, {"found": task.name}))
        if isinstance(value, str):
            return [Outcome(task.name, reason=value)]
        return [Outcome(task.name, share=0.5), Outcome(task.name, value)]

    def close(self) -> None:
        self.is_closed = True


def run(folder: Path, executor: FakeExecutor, config: StudyConfig = CONFIG) -> dict[str, Any]:
    found = run_tasks(config, plan_study(config, Path()), folder, Path(), executor)
    assert executor.is_closed
    return found


def test_tasks_wait_for_what_they_need_and_timing_runs_alone(tmp_path: Path) -> None:
    executor = FakeExecutor(jobs=3)
    found = run(tmp_path, executor)
    assert set(executor.begun) == set(TASKS) == set(found)
    places = {name: index for index, name in enumerate(executor.begun)}
    for name, planned in TASKS.items():
        assert all(places[need] < places[name] for need in planned.needs)
    assert executor.most == 3
    timed = [TASKS[name].task.is_timed for name in executor.begun]
    assert timed == sorted(timed)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    run(tmp_path, FakeExecutor())
    again = FakeExecutor()
    found = run(tmp_path, again)
    assert again.begun == []
    assert found["train~flash-causal-0"].value == {"found": "train~flash-causal-0"}


def test_what_depends_on_a_change_is_done_again(tmp_path: Path) -> None:
    run(tmp_path, FakeExecutor())
    timed = FakeExecutor()
    run(tmp_path, timed, replace(CONFIG, budget_s=9.0))
    assert sorted(timed.begun) == sorted(name for name, planned in TASKS.items() if planned.task.kind == "time")
    trained = FakeExecutor()
    run(tmp_path, trained, replace(CONFIG, training=Training(tokens=8192)))
    kept = {name for name, planned in TASKS.items() if planned.task.kind == "export-long"}
    assert set(trained.begun) == set(TASKS) - kept


def test_damaged_result_is_done_again(tmp_path: Path) -> None:
    run(tmp_path, FakeExecutor())
    (tmp_path / "results" / "score~flash-causal-0~ort-cpu.json").write_text("{")
    again = FakeExecutor()
    run(tmp_path, again)
    assert again.begun == ["score~flash-causal-0~ort-cpu"]


def test_failure_stops_what_needs_it_and_is_tried_again(tmp_path: Path) -> None:
    executor = FakeExecutor(values={"export~flash-causal-0": "no room on the disk"})
    found = run(tmp_path, executor)
    stopped = {name for name, one in found.items() if one.value is None}
    assert stopped == {
        name for name in TASKS if "flash-causal-0" in name and not name.startswith(("train", "export-long"))
    }
    assert all("no room on the disk" in str(found[name].reason) for name in stopped)
    again = FakeExecutor()
    run(tmp_path, again)
    assert set(again.begun) == stopped


def test_model_that_fails_validation_is_neither_scored_nor_timed(tmp_path: Path) -> None:
    executor = FakeExecutor(values={"validate~flash-causal-0~trt-network": {"is_right": False}})
    found = run(tmp_path, executor)
    for kind in ("score~flash-causal-0~ort-cpu", "time~flash-causal-0~ort-cpu~512"):
        assert found[kind].value is None
        assert found[kind].reason == "it failed validation on trt-network"
    assert found["score~linformer-masked-0~ort-cpu"].value is not None
    # Nor is it after an interruption, from what was kept.
    assert FakeExecutor().begun == []
    later = FakeExecutor()
    assert run(tmp_path, later)["score~flash-causal-0~ort-cpu"].value is None
    assert later.begun == []


def test_results_name_what_they_depend_on(tmp_path: Path) -> None:
    run(tmp_path, FakeExecutor())
    values = json.loads((tmp_path / "results" / "train~flash-causal-0.json").read_text())
    assert values["key"] == TASKS["train~flash-causal-0"].key
    assert len({planned.key for planned in TASKS.values()}) == len(TASKS)


@pytest.mark.parametrize("jobs", [1, 4])
def test_interrupt_closes_the_executor_and_keeps_what_was_found(tmp_path: Path, jobs: int) -> None:
    class Interrupted(FakeExecutor):
        def wait(self) -> list[Outcome]:
            if len(self.begun) > 5:
                raise KeyboardInterrupt
            return super().wait()

    executor = Interrupted(jobs)
    with pytest.raises(KeyboardInterrupt):
        run_tasks(CONFIG, tuple(TASKS.values()), tmp_path, Path(), executor)
    assert executor.is_closed
    kept = {path.stem for path in (tmp_path / "results").iterdir()}
    again = FakeExecutor()
    run(tmp_path, again)
    assert kept
    assert set(again.begun) == set(TASKS) - kept
