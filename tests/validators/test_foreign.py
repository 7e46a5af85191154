"""Graphs of torch's legacy exporter, of the original module: one traced the wrong way, one the right way."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from flash_export.config import ExportOptions
from flash_export.errors import BundleError, InputError
from flash_export.exporters.export import export_onnx
from flash_export.exporters.tracing import quiet_exporter
from flash_export.validators.foreign import ForeignRunner, read_foreign_graph
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.validators.results import ValidationReport

flash_pytorch = pytest.importorskip("flash_pytorch")
CHUNK = 16
SEQ_LENS = (1, 7, 15, 16, 17, 32, 33, 48, 50)


class TokensOnly(torch.nn.Module):
    """The original module without its keyword-only mask, which the legacy exporter would pass by position."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        # A new one each time: its rotary embedding remembers the lengths that it has seen.
        self.model = flash_pytorch.FLASHTransformer(
            num_tokens=31, dim=32, depth=2, group_size=CHUNK, query_key_dim=16, causal=True
        )
        for parameter in self.model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        self.eval()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(tokens)
        return logits


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("original")
    torch.save(TokensOnly().model.state_dict(), folder / "model.pt")
    return export_onnx(
        folder / "model.pt",
        folder / "bundle",
        family="flash",
        config={"group_size": CHUNK, "causal": True},
        assume_defaults=True,
        options=ExportOptions(max_seq_len=64, graphs=("forward",)),
    )


def export_legacy(traced_len: int, path: Path) -> Path:
    axes = {0: "batch", 1: "seq"}
    with warnings.catch_warnings(), quiet_exporter():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            TokensOnly(),
            (torch.zeros(1, traced_len, dtype=torch.int64),),
            str(path),
            dynamo=False,
            input_names=["tokens"],
            output_names=["scores"],
            dynamic_axes={"tokens": axes, "scores": axes},
        )
    return path


def validate(bundle: Bundle, path: Path) -> ValidationReport:
    options = ValidationOptions(seq_lens=SEQ_LENS, batches=(1,), onnx_files=(path,), latency_budget_s=0.0, threads=1)
    return validate_bundle(bundle, options)


@pytest.mark.peer
def test_graph_traced_at_a_multiple_of_the_chunk_is_refused_with_the_reason(bundle: Bundle, tmp_path: Path) -> None:
    report = validate(bundle, export_legacy(2 * CHUNK, tmp_path / "legacy.onnx"))

    assert not report
    assert {row.seq_len for row in report.rows if row.status == "passed"} == {16, 32, 48}
    (sentence,) = report.diagnosis
    assert sentence.startswith("onnx:legacy: it fails at the lengths 1, 7, 15, 17, 33, 50 and is right at 16, 32, 48")
    assert "only multiples of the chunk of 16 are right: it was traced at one of them" in sentence


@pytest.mark.peer
def test_graph_traced_with_padding_is_as_good_as_ours(bundle: Bundle, tmp_path: Path) -> None:
    report = validate(bundle, export_legacy(2 * CHUNK + 3, tmp_path / "legacy.onnx"))

    assert report
    assert report.count("passed") == len(SEQ_LENS)
    assert report.diagnosis == ()


def test_weights_from_elsewhere_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.graph.node.add(op_type="Relu", input=["x"], output=["y"])
    model.graph.initializer.add(name="w").external_data.add(key="location", value="../secret")
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(BundleError, match=r"foreign.onnx takes weights from '../secret', which is not part of it"):
        read_foreign_graph(tmp_path / "foreign.onnx", bundle.manifest.interface, bundle.get_graph())


@pytest.mark.parametrize("odd", [-1, 31])
def test_ids_outside_of_the_vocabulary_are_refused(bundle: Bundle, odd: int) -> None:
    path = bundle.get_graph_path()
    foreign = read_foreign_graph(path, bundle.manifest.interface, bundle.get_graph())
    with ForeignRunner(path, foreign) as runner, pytest.raises(InputError, match=f"input_ids has {odd}, token ids"):
        runner.run({"input_ids": np.array([[3, odd]])})


def test_file_that_takes_something_else_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(BundleError, match="cannot be read as ONNX"):
        read_foreign_graph(tmp_path / "text.onnx", bundle.manifest.interface, bundle.get_graph())

    values = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"]) for name in ("a", "b")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "add", values, values[:1])
    onnx.save(helper.make_model(graph), tmp_path / "add.onnx")
    with pytest.raises(BundleError, match="takes a, b and returns a; wanted input_ids and logits, or as many"):
        read_foreign_graph(tmp_path / "add.onnx", bundle.manifest.interface, bundle.get_graph())


@pytest.mark.parametrize("dtype", [TensorProto.STRING, TensorProto.UNDEFINED, 99])
def test_types_that_cannot_be_run_are_refused(bundle: Bundle, tmp_path: Path, dtype: int) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"]) for name in ("a", "b")]
    values[0].type.tensor_type.elem_type = dtype
    graph = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "copy", values[:1], values[1:])
    onnx.save(helper.make_model(graph), tmp_path / "copy.onnx")
    with pytest.raises(BundleError, match=r"copy\.onnx cannot be run: .*; give a graph of input_ids and logits"):
        read_foreign_graph(tmp_path / "copy.onnx", bundle.manifest.interface, bundle.get_graph())
