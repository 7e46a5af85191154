"""Exports of every dialect, run in onnxruntime and compared with the reference model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import pytest
import torch

from flash_export.bundle.bundle import Bundle
from flash_export.config import ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.models.base import ModelConfig, ReferenceModel

onnxruntime = pytest.importorskip("onnxruntime")

SIZES: dict[str, Any] = {"vocab_size": 29, "dim": 22, "depth": 2, "hidden_dim": 33, "qk_dim": 37}
# https://github.com/onnx/onnx/blob/main/docs/Versioning.md
IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
MAX_NODES = {"bidirectional": 45, "causal": 50, "chunk-sums": 49}
CASES: dict[str, tuple[ModelConfig, ExportOptions]] = {
    "flash": (FlashConfig(**SIZES, chunk_size=8), ExportOptions()),
    "flash-causal-mask": (
        FlashConfig(**SIZES, chunk_size=8, causal=True),
        ExportOptions(mask=True, opset=18, graphs=("forward",)),
    ),
    "flash-no-mask": (FlashConfig(**SIZES, chunk_size=8), ExportOptions(mask=False, opset=19)),
    "flash-laplace-layernorm": (
        FlashConfig(**SIZES, chunk_size=8, attention_fn="laplace", norm_type="layernorm"),
        ExportOptions(opset=21),
    ),
    "flash-causal-laplace": (
        FlashConfig(**SIZES, chunk_size=8, causal=True, attention_fn="laplace_wide", shift_tokens=False),
        ExportOptions(opset=22, graphs=("forward",)),
    ),
    "flash-chunk-sums": (
        FlashConfig(**SIZES, chunk_size=8, sum_over_chunks=False, mask_divisor="padded"),
        ExportOptions(opset=23),
    ),
    "gau": (GauConfig(**SIZES), ExportOptions()),
    "gau-causal": (GauConfig(**SIZES, causal=True, norm_type="scalenorm"), ExportOptions(opset=18)),
    "gau-laplace": (GauConfig(**SIZES, attention_fn="laplace_wide"), ExportOptions(opset=23)),
}


def build_model(config: ModelConfig) -> ReferenceModel:
    torch.manual_seed(0)
    model = FlashModel(config) if isinstance(config, FlashConfig) else GauModel(cast("GauConfig", config))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(requires_grad=False).eval()


SHARED = "flash-causal"  # the bundle of tests/conftest.py
SLOW = {"gau-laplace", "flash-no-mask", "flash-chunk-sums", "flash-causal-laplace"}  # one of each kind stays


@pytest.fixture(
    scope="module",
    params=[SHARED, *(pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES)],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, ReferenceModel]:
    if request.param == SHARED:
        bundle: Bundle = request.getfixturevalue("causal_bundle")
        return bundle, bundle.load_model()
    config, options = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model = build_model(config)
    model.save_pretrained(folder / "checkpoint")
    return export_onnx(folder / "checkpoint", folder / "bundle", options=options), model


def test_graph_agrees_with_the_reference_at_every_length(exported: tuple[Bundle, ReferenceModel]) -> None:
    bundle, model = exported
    session = onnxruntime.InferenceSession(bundle.get_graph_path(), providers=["CPUExecutionProvider"])
    has_mask = bundle.get_graph().has_mask
    generator = torch.Generator().manual_seed(1)
    for seq_len in (*range(1, 27), 131, 300):  # all residues modulo the chunk, several times
        for batch in (1, 3):
            input_ids = torch.randint(0, SIZES["vocab_size"], (batch, seq_len), generator=generator)
            lengths = torch.randint(1, seq_len + 1, (batch, 1), generator=generator)
            mask = (torch.arange(seq_len) < lengths).long()
            feeds = {"input_ids": input_ids.numpy()}
            if has_mask:
                feeds["attention_mask"] = mask.numpy()
            actual = session.run(None, feeds)[0]
            expected = model(input_ids, mask if has_mask else None).numpy()
            valid = mask.bool().numpy() if has_mask else np.ones((batch, seq_len), bool)
            assert actual.shape == expected.shape
            error = np.abs(actual - expected)[valid].max() / np.abs(expected).max()
            assert error < 1e-5, f"batch {batch}, length {seq_len}"


def test_blocks_stay_within_the_node_budget(exported: tuple[Bundle, ReferenceModel]) -> None:
    bundle, model = exported
    graph = onnx.load(bundle.get_graph_path()).graph
    blocks = Counter(match[0] for node in graph.node if (match := re.match(r"layers\.\d+", node.name)))
    config = model.config.to_dict()
    kind = "causal" if config["causal"] else "bidirectional" if config.get("sum_over_chunks", True) else "chunk-sums"
    assert set(blocks) == {"layers.0", "layers.1"}
    assert max(blocks.values()) <= MAX_NODES[kind]


def test_values_inside_the_graph_have_no_declared_shape(exported: tuple[Bundle, ReferenceModel]) -> None:
    """With declared shapes onnxruntime takes twice the memory, see ``export_onnx``."""
    assert not onnx.load(exported[0].get_graph_path()).graph.value_info


def test_blocks_hold_no_shape_arithmetic(exported: tuple[Bundle, ReferenceModel]) -> None:
    graph = onnx.load(exported[0].get_graph_path()).graph
    in_blocks = {node.op_type for node in graph.node if node.name.startswith("layers.")}
    assert not in_blocks & {"Shape", "Range", "Sin", "Cos", "ConstantOfShape", "Expand", "Where", "Cast", "Einsum"}


def test_graph_holds_standard_operators_and_symbolic_axes(exported: tuple[Bundle, ReferenceModel]) -> None:
    bundle, _ = exported
    model = onnx.load(bundle.get_graph_path())
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", bundle.get_graph().opset)]
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        assert [dims[0].dim_param, dims[1].dim_param] == ["batch", "seq"]


def test_nodes_carry_the_model_s_names_and_nothing_of_the_machine(exported: tuple[Bundle, ReferenceModel]) -> None:
    data = exported[0].get_graph_path().read_bytes()
    names = [node.name for node in onnx.load_from_string(data).graph.node]
    assert len(set(names)) == len(names)
    assert all(re.match(r"(graph|embedding|rotary|head|layers\.\d+)[./]", name) for name in names)
    assert b"site-packages" not in data
    assert b".py" not in data


def test_two_exports_give_identical_bytes(masked_byte_bundle: Bundle, tmp_path: Path) -> None:
    """The second one with another order of sets, and with PyTorch's caches as users have them."""
    first = masked_byte_bundle
    code = textwrap.dedent("""
        import sys
        from flash_export.config import ExportOptions
        from flash_export.exporters.export import export_onnx

        export_onnx(*sys.argv[1:], options=ExportOptions(max_seq_len=96, max_batch=4))
    """)
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, first.path.with_name("checkpoint"), tmp_path / "second"],
        check=True,
        env={"PYTHONHASHSEED": "7"},
    )
    second = Bundle.open(tmp_path / "second")
    for name in first.manifest.files:
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes(), name
    assert first.manifest == second.manifest


def test_ir_version_is_the_lowest_that_the_opset_has(exported: tuple[Bundle, ReferenceModel]) -> None:
    bundle, _ = exported
    for graph in bundle.manifest.graphs.values():
        model = onnx.load(bundle.path / graph.file, load_external_data=False)
        assert (model.opset_import[0].version, model.ir_version) == (graph.opset, IR_VERSIONS[graph.opset])


@pytest.mark.parametrize("max_seq_len", [1, 5])
def test_fixed_batch_and_short_limits_are_exported(tmp_path: Path, max_seq_len: int) -> None:
    model = build_model(FlashConfig(**{**SIZES, "depth": 1}, chunk_size=8))
    model.save_pretrained(tmp_path / "checkpoint")
    options = ExportOptions(max_batch=1, max_seq_len=max_seq_len)
    bundle = export_onnx(tmp_path / "checkpoint", tmp_path / "bundle", options=options)
    session = onnxruntime.InferenceSession(bundle.get_graph_path(), providers=["CPUExecutionProvider"])
    assert bundle.get_graph().inputs[0].shape == (1, 1 if max_seq_len == 1 else "seq")
    for seq_len in range(1, max_seq_len + 1):
        input_ids = np.arange(seq_len, dtype=np.int64)[None]
        actual = session.run(None, {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)})[0]
        np.testing.assert_allclose(actual, model(torch.from_numpy(input_ids)).numpy(), rtol=0, atol=1e-4)


def test_manifest_says_what_was_exported(exported: tuple[Bundle, ReferenceModel]) -> None:
    bundle, model = exported
    manifest: dict[str, Any] = json.loads((bundle.path / "manifest.json").read_text())
    assert manifest["model"]["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    has_state = "prefill" in manifest["graphs"]  # that is the shared one, whose lengths end at 60
    axes = {"batch": {"min": 1, "max": 64}, "seq": {"min": 1, "max": 60 if has_state else 65536}}
    assert manifest["graphs"]["forward"]["axes"] == axes
    names = ("prefill", "extend", "decode") if has_state else ()
    stateful = {file for name in names for file in (f"{name}.onnx", f"probes.{name}.json")}
    stateful |= {"model.onnx.data"} if has_state else set()
    assert set(manifest["files"]) == {"config.json", "model.onnx", "model.safetensors", "probes.json", *stateful}
    assert manifest["versions"]["torch"] == torch.__version__
