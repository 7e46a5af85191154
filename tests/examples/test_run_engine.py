"""The example that runs an engine without this package, driven against a stand-in for TensorRT."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from flash_export.runtime.ort import OrtRunner
from tests.runtime.trt_stub import HostStream, Plan, describe_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flash_export.bundle.bundle import Bundle

SCRIPT = Path(__file__).resolve().parent.parent.parent / "examples" / "run_engine.py"


class Stream(HostStream):
    def wait_stream(self, other: Any) -> None:
        """Work on the host is done in order."""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("run_engine", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    return module


@pytest.fixture
def manifest(causal_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    engine = describe_engine(causal_bundle, "forward")
    with OrtRunner(causal_bundle.get_graph(), causal_bundle.get_graph_path(), threads=1) as runner:
        monkeypatch.setitem(sys.modules, "tensorrt", Plan(engine, runner.run).make_module())
        (tmp_path / "forward.engine").write_bytes(b"plan")
        (tmp_path / "forward.json").write_text(json.dumps(asdict(engine)))
        yield tmp_path / "forward.json"


def test_it_imports_nothing_of_ours() -> None:
    tree = ast.parse(SCRIPT.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name.startswith(("flash_export", "exporters", "validators"))}


def test_it_prints_the_token_that_the_model_expects(
    example: Any,
    manifest: Path,
    causal_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ids = [3, 14, 15, 9, 2, 6, 5, 3, 5, 8, 9]
    monkeypatch.setattr(sys, "argv", ["run_engine.py", str(manifest), *map(str, ids)])
    example.main()
    with torch.no_grad():
        expected = causal_bundle.load_model()(torch.tensor([ids]))[0, -1].argmax()
    assert int(capsys.readouterr().out) == int(expected)


def test_what_must_not_be_run_is_refused(example: Any, manifest: Path) -> None:
    manifest.with_suffix(".engine").write_bytes(b"plan of somebody else")
    with pytest.raises(SystemExit, match="not the file that its manifest names"):
        example.load(manifest)
    manifest.with_suffix(".engine").write_bytes(b"plan")
    manifest.write_text(manifest.read_text().replace('"0.0"', '"10.0"'))
    with pytest.raises(SystemExit, match=r"built by tensorrt 10.0, here is 0.0"):
        example.load(manifest)


def test_shapes_out_of_range_are_refused(example: Any, manifest: Path) -> None:
    loaded, engine, _ = example.load(manifest)
    with pytest.raises(SystemExit, match="fits no profile"):
        example.run(loaded, engine, {"input_ids": torch.from_numpy(np.zeros((1, 61), np.int64))})
