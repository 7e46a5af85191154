"""Processes and a cluster: tasks end, fail in words, and outlive what kills their process."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flash_export.errors import BackendUnavailableError, ConfigError
from flash_export.study.comparing import plan_study
from flash_export.study.config import ModelEntry, StudyConfig, Training
from flash_export.study.executors import LocalExecutor, RayExecutor
from flash_export.study.request import Request
from flash_export.study.results import collect_study
from flash_export.study.schedule import run_tasks
from flash_export.study.systems import Size
from flash_export.study.tasks import Task

if TYPE_CHECKING:
    from flash_export.study.executors import Executor, Outcome
    from flash_export.study.results import Study

CONFIG = StudyConfig(
    models=(ModelEntry("flash"), ModelEntry("linformer", "masked")),
    size=Size(dim=16, depth=1, num_heads=2, qk_dim=8, chunk_size=16, max_positions=128),
    training=Training(tokens=64 * 60, batch_tokens=64, lengths={"32": 0.5, "64": 0.5}, heldout_bytes=8192),
    max_seq_len=128,
    quality_lens=(32, 64),
    latency_lens=(32, 256),
    budget_s=0.1,
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {index} of a text\n" for index in range(40_000)))
    return path


def make_config(text: Path, tokens: int = CONFIG.training.tokens) -> StudyConfig:
    return replace(CONFIG, training=replace(CONFIG.training, text=str(text), tokens=tokens))


def run_one(executor: Executor, request: Request) -> list[Outcome]:
    executor.submit(request)
    outcomes: list[Outcome] = []
    while not any(outcome.share is None for outcome in outcomes):
        outcomes += executor.wait()
    executor.close()
    return outcomes


def make_request(config: StudyConfig, folder: Path, task: Task) -> Request:
    return Request(config, str(folder), str(folder), task)


def test_task_that_cannot_be_done_says_why(tmp_path: Path) -> None:
    config = replace(CONFIG, models=(ModelEntry("flash", checkpoint="nowhere"),))
    executor = LocalExecutor(1, tmp_path / "logs")
    *_, outcome = run_one(executor, make_request(config, tmp_path, Task("export", "flash-causal-0")))
    assert outcome.value is None
    assert outcome.reason is not None
    assert "nowhere" in outcome.reason


def test_fault_of_ours_names_the_log(tmp_path: Path) -> None:
    executor = LocalExecutor(1, tmp_path / "logs")
    *_, outcome = run_one(executor, make_request(CONFIG, tmp_path, Task("export", "no such model")))
    assert outcome.reason is not None
    assert outcome.reason.endswith("see logs/export~no such model.log")
    assert "Traceback" in (tmp_path / "logs" / "export~no such model.log").read_text()


@pytest.mark.slow
def test_killed_training_goes_on_where_it_was(tmp_path: Path, text: Path) -> None:
    config = make_config(text, tokens=64 * 4000)
    executor = LocalExecutor(1, tmp_path / "logs")
    executor.submit(make_request(config, tmp_path, Task("train", "flash-causal-0")))
    state = tmp_path / "models" / "flash-causal-0" / "checkpoint.run" / "state.pt"
    while not state.exists():
        time.sleep(0.05)
    (process,) = executor._processes.values()
    os.kill(process.pid, signal.SIGKILL)
    outcomes: list[Outcome] = []
    while not any(outcome.share is None for outcome in outcomes):
        outcomes += executor.wait()
    assert outcomes[-1].value["tokens_seen"] == 64 * 4000
    assert process.returncode == -signal.SIGKILL


def test_process_that_is_always_killed_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    monkeypatch.setattr("flash_export.study.executors.build_command", lambda *_: command)
    executor = LocalExecutor(1, tmp_path / "logs")
    *_, outcome = run_one(executor, make_request(CONFIG, tmp_path, Task("export", "flash-causal-0")))
    assert outcome.reason == "its process was killed by SIGKILL, 3 times"


def test_jobs_and_addresses_that_cannot_be_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="jobs=0 is not usable; use 1 or more"):
        LocalExecutor(0, tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendUnavailableError, match=r"not installed; run pip install 'flash-export\[cluster\]'"):
        RayExecutor("local")


def collect(config: StudyConfig, folder: Path, executor: Executor) -> Study:
    return collect_study(config, run_tasks(config, plan_study(config, folder), folder, folder, executor))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cluster_of_two_workers_finds_the_same_and_outlives_a_lost_one(tmp_path: Path, text: Path) -> None:
    ray = pytest.importorskip("ray", reason="the extra cluster is not installed")
    from ray.cluster_utils import Cluster

    config = make_config(text)
    local = collect(config, tmp_path / "local", LocalExecutor(2, tmp_path / "logs"))
    assert local.complete
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    try:
        executor = RayExecutor(cluster.address)
        wait, killed = executor.wait, list[int]()

        def wait_and_kill() -> list[Outcome]:
            outcomes = wait()
            if not killed:
                killed.extend(_kill_a_worker())
            return outcomes

        executor.wait = wait_and_kill  # type: ignore[method-assign]
        clustered = collect(config, tmp_path / "ray", executor)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed
    assert clustered.complete
    for one, other in zip(local.entries, clustered.entries, strict=True):
        assert one.quality == other.quality
        kept = ("name", "parameters", "growing_parameters", "tokens_seen", "recipe_sha256", "bytes", "checks")
        assert all(getattr(one, name) == getattr(other, name) for name in kept)
        assert [(time.backend, time.seq_len) for time in one.times] == [(t.backend, t.seq_len) for t in other.times]
        assert all(timed.latency_ms is not None for timed in other.times)


def _kill_a_worker() -> list[int]:
    """Kill a process that does a task; return which."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if command.startswith(b"ray::training"):
            pid = int(path.parent.name)
            os.kill(pid, signal.SIGKILL)
            return [pid]
    return []
