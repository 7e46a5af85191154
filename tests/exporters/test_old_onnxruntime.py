"""Which release of onnxruntime takes which opset: what the README says, tried with the real releases."""

from __future__ import annotations

import functools
import subprocess
import venv
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
import torch

from flash_export.bundle.bundle import Bundle
from flash_export.config import MAX_OPSET, MIN_OPSET, ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.models.flash import FlashConfig, FlashModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flash_export.bundle.manifest import GraphSpec

# The highest opset that a release takes. 1.17 is the oldest that has wheels for Python 3.12.
HIGHEST_OPSETS = {"1.17.3": 20, "1.18.1": 21, "1.20.1": 21}

RUN = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
np.savez(sys.argv[3], *session.run(None, dict(np.load(sys.argv[2]))))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=HIGHEST_OPSETS)
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Install a release into an environment of its own, and return its interpreter and highest opset."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    wanted = [f"onnxruntime=={request.param}", "numpy<2"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    return python, HIGHEST_OPSETS[request.param]


@pytest.fixture(scope="module")
def get_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Bundle]:
    """Return the exporter of a small causal model, each opset once."""
    folder = tmp_path_factory.mktemp("opsets")
    torch.manual_seed(0)
    FlashModel(FlashConfig(23, dim=8, depth=2, hidden_dim=12, chunk_size=8, qk_dim=8)).save_pretrained(folder / "model")

    @functools.cache
    def export(opset: int) -> Bundle:
        options = ExportOptions(opset=opset, max_seq_len=64, max_batch=4)
        return Bundle.open(export_onnx(folder / "model", folder / str(opset), options=options).path)

    return export


@pytest.mark.parametrize("opset", range(MIN_OPSET, MAX_OPSET + 1))
def test_release_takes_every_graph_of_the_opsets_that_it_knows(
    opset: int, release: tuple[Path, int], get_bundle: Callable[[int], Bundle], tmp_path: Path
) -> None:
    python, highest = release
    bundle = get_bundle(opset)
    for name, graph in bundle.manifest.graphs.items():
        session = onnxruntime.InferenceSession(bundle.path / graph.file, providers=["CPUExecutionProvider"])
        feeds = build_feeds(graph)
        np.savez(tmp_path / "feeds.npz", **feeds)  # type: ignore[arg-type]
        paths = bundle.path / graph.file, tmp_path / "feeds.npz", tmp_path / f"{name}.npz"
        command = [str(python), "-c", RUN, *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if opset > highest:
            assert "opset" in done.stderr or "IR version" in done.stderr
            continue
        assert done.returncode == 0, done.stderr
        found = np.load(tmp_path / f"{name}.npz")
        for index, expected in enumerate(session.run(None, feeds)):
            np.testing.assert_allclose(found[f"arr_{index}"], expected, atol=1e-5)


def build_feeds(graph: GraphSpec) -> dict[str, np.ndarray]:
    """Return two rows, the first of two chunks and a half; a state of zeros, with which a text begins."""
    sizes: dict[str | int, int] = {"batch": 2, "seq": min(20, graph.axes["seq"].max) if "seq" in graph.axes else 1}
    shapes = {spec.name: [int(sizes.get(size, size)) for size in spec.shape] for spec in graph.inputs}
    feeds = {spec.name: np.zeros(shapes[spec.name], dtype=spec.dtype) for spec in graph.inputs}
    random = np.random.default_rng(0)
    feeds["input_ids"] = random.integers(0, 23, size=feeds["input_ids"].shape, dtype=np.int64)
    if "lengths" in feeds:
        feeds["lengths"] = np.array([sizes["seq"], 1], dtype=feeds["lengths"].dtype)
    return feeds
