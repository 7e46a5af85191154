"""The process of an original model: its messages, its precision, and what it imports."""

from __future__ import annotations

import io
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flash_export.originals import process, serve
from flash_export.originals.installed import ModelFiles, Original, load_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

EXAMPLE = {"x": np.ones((2, 3), dtype=np.float32)}


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., serve.Server]:
    """Serve a linear layer whose output goes through a function."""
    weights = tmp_path / "weights.pt"
    torch.save({"weight": torch.full((1, 3), 0.1)}, weights)

    def run(function: Callable[[Tensor], Tensor], precision: str) -> serve.Server:
        def build(config: Mapping[str, Any], arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Original:
            module = nn.Linear(3, 1, bias=False)
            load_weights(module, tensors, "torch")
            return Original(module, lambda inputs: (function(module(inputs["x"])),))

        library: Any = types.ModuleType("flash_export.originals.linear")
        library.build, library.DISTRIBUTION = build, "torch"
        monkeypatch.setitem(sys.modules, library.__name__, library)
        monkeypatch.setitem(serve.LIBRARIES, "linear", "linear")
        request = {"library": "linear", "config": {}, "arguments": {}, "weights": str(weights)}
        return serve.Server({**request, "precision": precision, "threads": None}, EXAMPLE)

    return run


def test_a_model_runs_in_float64_where_its_code_does(start: Callable[..., serve.Server]) -> None:
    server = start(torch.relu, "fp64")
    (found,) = server.run(EXAMPLE)
    assert found.dtype == np.float64
    assert server.facts["dtype"] == "float64"
    assert found == pytest.approx(3 * float(np.float32(0.1)), abs=1e-15)


@pytest.mark.parametrize(
    "function", [lambda x: x.float(), lambda x: x @ torch.ones(1, 1)], ids=["casts", "refuses float64"]
)
def test_a_model_whose_code_has_a_precision_of_its_own_keeps_it(
    start: Callable[..., serve.Server], function: Callable[[Tensor], Tensor]
) -> None:
    server = start(function, "fp64")
    assert server.facts["dtype"] == "float32"
    assert server.run(EXAMPLE)[0].dtype == np.float32


def test_fp32_is_what_was_asked_for(start: Callable[..., serve.Server]) -> None:
    assert start(torch.relu, "fp32").facts["dtype"] == "float32"


def test_weights_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"the weights do not fit torch 2\..* as it is installed: .*\"bias\""):
        load_weights(nn.Linear(3, 1), {"weight": torch.zeros(1, 3)}, "torch")


def test_messages_come_back_as_they_were() -> None:
    stream = io.BytesIO()
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.zeros((0, 2), dtype=np.int64)}
    serve.write_message(stream, {"text": "ä", "none": None}, arrays)
    stream.seek(0)
    values, found = serve.read_message(stream)
    assert values == {"text": "ä", "none": None}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    stream.truncate(40)
    stream.seek(0)
    with pytest.raises(EOFError):
        serve.read_message(stream)


def test_the_process_imports_nothing_of_ours_but_what_serves(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('imported from the current folder')")
    script = process.BOOTSTRAP.replace(
        "main()", "print(*(name for name in sys.modules if name.startswith('flash_export.')))"
    )
    command = [sys.executable, "-I", "-c", script, process.PACKAGE_FOLDER]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert set(found) == {f"flash_export.originals{name}" for name in ("", ".serve", ".installed")}


def test_stand_ins_are_for_what_is_missing_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "of_others"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('it pulls in everything')")
    (package / "model.py").write_text("import json\nimport not_there\nfrom of_others.heavy import x\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("of_others", "of_others.model", "of_others.heavy", "not_there"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    stand_ins: dict[str, dict[str, Any]] = {"json": {"mine": 1}, "not_there": {"y": 2}, "of_others.heavy": {"x": 3}}
    (model,), missing = ModelFiles("of_others", ("model",), stand_ins=stand_ins).load()
    assert (model.x, model.not_there.y, hasattr(model.json, "mine")) == (3, 2, False)
    assert missing == ("not_there",)
    for name in ("of_others", "of_others.model", "of_others.heavy", "not_there"):
        del sys.modules[name]
    with pytest.raises(ModuleNotFoundError, match="No module named 'nobody_s'"):
        ModelFiles("nobody_s", ("model",)).load()
