"""The benchmark for a GPU runs on the CPU, at a size at which its numbers mean nothing; rows survive being cut off."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flash_export.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
RUN_ON_CPU = {
    *(("forward", name) for name in ("eager", "Transformer", "onnxruntime")),
    *(("decode", name) for name in ("onnxruntime", "Transformer")),
    ("branch", "eager"),
}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import a module of the benchmark as ``python -m gpu`` does."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return lambda name: importlib.import_module(f"gpu.{name}")


@pytest.fixture
def run(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Run it with every candidate in this process, and return what was written."""
    main = load("__main__")

    def measure(candidate: Any, place: Any, file: Any, budget: Any, _: argparse.Namespace) -> None:
        main.measure_candidate(candidate, place, file, budget)

    monkeypatch.setattr(main, "_measure_apart", measure)
    monkeypatch.setattr(main, "ask", lambda way: {"way": way, "runs": False, "reason": "no GPU"})

    def start(*arguments: str) -> Any:
        code = main.main(["--device", "cpu", "--quick", "--output", str(tmp_path / "out"), *arguments])
        assert code == 0
        return json.loads((tmp_path / "out" / "results.json").read_text())

    return start


def find(results: Any, kind: str, candidate: str) -> list[Any]:
    return [row for row in results["rows"] if (row["kind"], row["candidate"]) == (kind, candidate)]


def test_bf16_runs_on_the_cpu_and_is_not_measured_twice(
    run: Callable[..., Any], load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    main = load("__main__")
    chosen = [one for one in main.list_candidates() if one.name.endswith("bf16") and "compile" not in one.name]
    monkeypatch.setattr(main, "list_candidates", lambda: chosen)
    results = run()
    measured = {(row["kind"], row["candidate"]) for row in results["rows"] if row["latency_ms"] is not None}
    assert {(kind, f"{name} bf16") for kind, name in RUN_ON_CPU} == {one for one in measured if one[0] != "limit"}
    times = [row["latency_ms"] for row in results["rows"]]
    assert [row["latency_ms"] for row in run()["rows"]] == times


@pytest.mark.slow
def test_everything_but_engines_runs_on_the_cpu(run: Callable[..., Any], tmp_path: Path) -> None:
    results = run()
    measured = {(row["kind"], row["candidate"]) for row in results["rows"] if row["latency_ms"] is not None}
    assert measured == {
        ("limit", "bandwidth"),
        *(("limit", f"matrix rate {precision}") for precision in ("bf16", "fp16", "fp32")),
        *(("forward", f"{name} {one}") for name in ("eager", "onnxruntime") for one in ("bf16", "fp16", "fp32")),
        *(("forward", f"{name} {one}") for name in ("Transformer", "compile") for one in ("bf16", "fp16")),
        *(("decode", f"{name} bf16") for name in ("onnxruntime", "Transformer")),
        ("branch", "eager bf16"),
    }
    for row in results["rows"]:
        assert (row["latency_ms"] is None) == bool(row["reason"])
    errors = {row["candidate"]: row["error"] for row in results["rows"] if row["error"] is not None}
    assert errors["onnxruntime fp32"] < 1e-5
    assert errors["onnxruntime fp16"] < 1e-2
    assert errors["compile bf16"] < 5e-2
    (engine, *_) = find(results, "forward", "engine tensorrt-rtx bf16")
    assert engine["reason"].startswith("engines run on an NVIDIA GPU")
    assert {target["status"] for target in results["targets"]} == {"not measured"}
    page = (tmp_path / "out" / "results.html").read_text()
    assert page.count("<svg") >= 3
    assert "these numbers mean nothing" in page


def test_time_that_is_up_leaves_the_rest_for_the_next_run(run: Callable[..., Any]) -> None:
    results = run("--minutes", "0")
    assert not [row for row in results["rows"] if row["kind"] == "forward"]
    results = run("--only", "forward: eager fp32")
    assert len(find(results, "forward", "eager fp32")) == 2


def test_bundles_are_exported_before_without_a_gpu(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = load("__main__")
    monkeypatch.setattr(main, "PRECISIONS", ("bf16",))
    for _ in range(2):  # the second time they are there
        assert main.main(["--prepare", "--quick", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "work" / "bundle-bf16")] * 2


@pytest.mark.slow
def test_candidates_run_in_processes_of_their_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpu", "--device", "cpu", "--quick", "--only", "branch: eager", "--output"]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, str(tmp_path / "out")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["latency_ms"] > 0 for row in find(results, "branch", "eager bf16")] == [True, True]


def test_process_that_ends_is_a_row(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    main, rows, device = load("__main__"), load("rows"), load("device")
    file = rows.RowFile(tmp_path / "rows.jsonl")
    file.begin({"device": "cpu"})
    place = main.Place(main.QUICK, device.Device("cpu"), tmp_path)
    (candidate,) = [one for one in main.list_candidates() if one.name == "eager fp32"]
    options = main.parse_options(["--output", str(tmp_path)])
    monkeypatch.setattr(main.subprocess, "run", lambda *_, **__: argparse.Namespace(returncode=-11))
    main._measure_apart(candidate, place, file, device.Budget(1), options)
    assert [row.reason for row in file.rows] == ["its process ended with -11"] * 2

    def take_too_long(command: Any, timeout: float, check: bool) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(main.subprocess, "run", take_too_long)
    (other,) = [one for one in main.list_candidates() if one.name == "eager fp16"]
    main._measure_apart(other, place, file, device.Budget(1), options)
    assert len(file.rows) == 2  # not measured is not failed


def test_without_a_gpu_one_line_says_so(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = load("__main__")
    monkeypatch.setattr(main.torch.cuda, "is_available", lambda: False)
    assert main.main(["--output", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: torch ")
    assert "sees no CUDA device" in line
    assert not (tmp_path / "out").exists()


def test_gpu_that_a_flavour_does_not_build_for(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    candidates, device = load("candidates"), load("device").Device("cuda")
    place = candidates.Place(load("sizes").QUICK, device, Path())
    monkeypatch.setattr(candidates, "get_device_capability", lambda: "9.0")
    with pytest.raises(BackendUnavailableError, match=r"builds for .*8\.9.*, the GPU here has 9\.0; see gpu\.rtx_on"):
        candidates._check_flavour(place, "tensorrt-rtx")
    monkeypatch.setattr(candidates, "get_device_capability", lambda: "8.9")
    candidates._check_flavour(place, "tensorrt-rtx")


class TestRows:
    def test_line_that_was_not_finished_is_dropped(self, load: Callable[[str], Any], tmp_path: Path) -> None:
        rows, path = load("rows"), tmp_path / "rows.jsonl"
        file = rows.RowFile(path)
        file.begin({"device": "a"})
        file.add(rows.Row("forward", "eager bf16", 512, latency_ms=1.0))
        whole = path.read_bytes()
        path.write_bytes(whole + b'{"kind": "forw')
        again = rows.RowFile(path)
        assert again.rows == file.rows
        again.add(rows.Row("forward", "eager bf16", 1024, latency_ms=2.0))
        assert [row.seq_len for row in rows.RowFile(path).rows] == [512, 1024]

    def test_rows_of_another_card_are_refused(self, load: Callable[[str], Any], tmp_path: Path) -> None:
        rows, path = load("rows"), tmp_path / "rows.jsonl"
        rows.RowFile(path).begin({"device": "NVIDIA L4", "torch": "2.13"})
        with pytest.raises(ConfigError, match="measured with device NVIDIA L4, here it is NVIDIA H200; name another"):
            rows.RowFile(path).begin({"device": "NVIDIA H200", "torch": "2.13"})

    def test_another_file_is_refused(self, load: Callable[[str], Any], tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
        with pytest.raises(ConfigError, match="is no file of results"):
            load("rows").RowFile(tmp_path / "rows.jsonl")


def fill(file: Any, rows: Any, sizes: Any, times: dict[str, float]) -> None:
    for name, time_ms in times.items():
        for seq_len in sizes.seq_lens:
            file.add(rows.Row("forward", name, seq_len, latency_ms=time_ms * seq_len / 512))


def test_targets_are_judged_at_the_worst_length(load: Callable[[str], Any], tmp_path: Path) -> None:
    rows, targets, sizes = load("rows"), load("targets"), load("sizes").FULL
    file = rows.RowFile(tmp_path / "rows.jsonl")
    file.begin({})
    fill(
        file,
        rows,
        sizes,
        {"engine tensorrt bf16": 1.0, "eager bf16": 3.5, "compile bf16": 1.2, "engine tensorrt fp16": 2.0},
    )
    fill(file, rows, sizes, {"eager fp16": 5.0})
    file.add(rows.Row("forward", "Transformer bf16", 2048, latency_ms=4.0))
    work = 2 * sizes.config.count_macs(8192) / (16 * 1e-3)
    file.add(rows.Row("limit", "matrix rate bf16", latency_ms=1.0, value=work / 0.6))
    found = [
        (one.at_least, one.status, one.value and round(one.value, 2), one.where)
        for one in targets.judge_targets(file, sizes)
    ]
    assert found == [
        (3.0, "reached", 3.5, "engine tensorrt bf16, 512 tokens"),
        (1.3, "missed", 1.2, "engine tensorrt bf16, 512 tokens"),
        (1.0, "reached", 1.0, "engine tensorrt bf16, 2,048 tokens"),
        (4.0, "not measured", None, ""),
        (0.5, "reached", 0.6, "engine tensorrt bf16, 8,192 tokens"),
    ]


def test_target_over_all_lengths_needs_all_of_them(load: Callable[[str], Any], tmp_path: Path) -> None:
    rows, targets, sizes = load("rows"), load("targets"), load("sizes").FULL
    file = rows.RowFile(tmp_path / "rows.jsonl")
    file.begin({})
    fill(file, rows, sizes, {"engine tensorrt bf16": 1.0})
    file.add(rows.Row("forward", "eager bf16", 512, latency_ms=9.0))
    assert targets.judge_targets(file, sizes)[0].status == "not measured"


def test_answer_of_the_question_is_one_line(load: Callable[[str], Any]) -> None:
    describe = load("rtx_on_this_gpu").describe_answer
    assert describe({"runs": True, "targets": ["8.9"], "error": 1e-6}) == "yes: targets 8.9, error 1.0e-06"
    said = describe({"runs": False, "reason": "BundleError: x", "capability": "9.0", "deserialized": False})
    assert said == "no: BundleError: x; capability 9.0; deserialized False"


def test_transformer_is_as_large(load: Callable[[str], Any]) -> None:
    models, sizes, device = load("models"), load("sizes").QUICK, load("device").Device("cpu")
    wanted = models.count_parameters(models.build_flash(sizes))
    found = models.count_parameters(models.place_transformer(sizes, "fp32", device))
    assert found == pytest.approx(wanted, rel=2e-2)


def test_steps_of_the_transformer_are_those_of_its_pass(load: Callable[[str], Any]) -> None:
    models, sizes, device = load("models"), load("sizes").QUICK, load("device").Device("cpu")
    model = models.place_transformer(sizes, "fp32", device)
    ids = models.make_ids(sizes, 9, device)
    expected = model(ids)[0, -1]
    steps = models.TransformerSteps(model, 8)
    # The keys and values of the first 8 tokens, by the steps themselves.
    for position in range(9):
        part = models.TransformerSteps(model, position)
        for whole, cache in zip(steps._caches, part._caches, strict=True):
            for mine, theirs in zip(whole, cache, strict=True):
                theirs[:, :, :position] = mine[:, :, :position]
        found = part.step(ids[:, position : position + 1])[0, 0]
        for whole, cache in zip(steps._caches, part._caches, strict=True):
            for mine, theirs in zip(whole, cache, strict=True):
                mine[:, :, position] = theirs[:, :, position]
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_engine_is_run_by_its_session(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in for the loaded engine: what is bound is what runs, once for each call, and is compared."""
    candidates, measure, rows = load("candidates"), load("measure"), load("rows")
    sizes, device = load("sizes").QUICK, load("device")
    model = load("models").place_flash(sizes, "bf16", device.Device("cpu"))
    runs: list[int] = []

    class Session:
        def use(self) -> Any:
            return contextlib.nullcontext()

        def get_binding(self, shapes: dict[str, tuple[int, ...]]) -> Any:
            ids = torch.zeros(shapes["input_ids"], dtype=torch.int64)
            binding = SimpleNamespace(inputs={"input_ids": ids}, outputs={})

            def run() -> None:
                runs.append(ids.shape[1])
                binding.outputs["logits"] = model(ids)

            binding.run = run
            return binding

    @contextlib.contextmanager
    def load_engine(bundle: Any, engine: Any, options: Any) -> Iterator[Any]:
        assert options.cuda_graphs
        yield SimpleNamespace(open_session=Session)

    monkeypatch.setattr(candidates, "export_bundle", lambda *_: None)
    monkeypatch.setattr(candidates, "_check_flavour", lambda *_: None)
    monkeypatch.setattr(candidates, "_build", lambda *_: None)
    monkeypatch.setattr(candidates, "load_engine", load_engine)
    place = candidates.Place(sizes, device.Device("cpu"), tmp_path)
    file = rows.RowFile(tmp_path / "rows.jsonl")
    (candidate,) = [one for one in candidates.list_candidates() if one.name == "engine tensorrt-rtx bf16"][:1]
    measure.measure_candidate(candidate, place, file, device.Budget(1))
    assert [(row.seq_len, row.reason, row.runs) for row in file.rows] == [(24, "", 3), (48, "", 3)]
    assert file.rows[0].error < 5e-2
    assert runs == [24] * 6 + [48] * 5  # two that warm up, three that count, and at the shortest one to compare
