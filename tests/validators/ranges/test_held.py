"""What is said to be held in fp32, against the dtypes of real fp16 graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest
import torch

from flash_export.config import ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel
from flash_export.models.gau_alpha import GauAlphaConfig, GauAlphaModel
from flash_export.validators.ranges.held import find_held

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

MODELS = {
    "causal": FlashModel(FlashConfig(23, 16, 1, 24, chunk_size=8, qk_dim=12, causal=True)),
    "masked": FlashModel(FlashConfig(23, 16, 1, 24, chunk_size=8, qk_dim=12)),
    "gau": GauModel(GauConfig(23, 16, 1, 24, qk_dim=12)),
    "gau_alpha": GauAlphaModel(GauAlphaConfig(23, 16, 1, 24, qk_dim=12)),
}


def read_dtypes(bundle: Bundle) -> dict[str, str]:
    """Return the dtype of each quantity in the forward graph."""
    model = onnx.shape_inference.infer_shapes(onnx.load(bundle.get_graph_path()))
    dtypes = {
        value.name: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        for value in (*model.graph.value_info, *model.graph.output, *model.graph.input)
    }
    # A tensor may be named by the node that makes it and the number of its output.
    for node in model.graph.node:
        for index, output in enumerate(node.output):
            dtypes[f"{node.name}:{index}"] = dtypes.get(output, "")
    return {probe.name: dtypes[probe.tensor] for probe in bundle.read_probes().probes}


@pytest.mark.parametrize(
    ("name", "islands"),
    [
        ("causal", "all"),
        ("masked", "minimal"),
        pytest.param("causal", "minimal", marks=pytest.mark.slow),
        pytest.param("masked", "all", marks=pytest.mark.slow),
        pytest.param("gau", "minimal", marks=pytest.mark.slow),
        pytest.param("gau", "all", marks=pytest.mark.slow),
        pytest.param("gau_alpha", "minimal", marks=pytest.mark.slow),
        pytest.param("gau_alpha", "all", marks=pytest.mark.slow),
    ],
)
def test_held_is_what_the_graph_has_in_fp32(name: str, islands: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    MODELS[name].save_pretrained(tmp_path / "checkpoint")
    options = ExportOptions(precision="fp16", islands=islands, max_seq_len=64, graphs=("forward",))
    bundle = export_onnx(tmp_path / "checkpoint", tmp_path / "bundle", options=options)

    dtypes = read_dtypes(bundle)
    del dtypes["logits"]  # a Cast to fp32 of a product that may have been half
    config = MODELS[name].config
    held = {quantity for quantity in dtypes if find_held(config, quantity, bundle.manifest.precision)}
    assert held == {quantity for quantity, dtype in dtypes.items() if dtype == "FLOAT"}
    always = {quantity for quantity in dtypes if find_held(config, quantity, None)}
    assert always == ({"layers.0.sum"} if name == "gau_alpha" else set())
    assert (held > always) == (islands == "all")


def test_norms_are_held_by_every_export_and_an_fp32_bundle_has_no_islands() -> None:
    config = MODELS["causal"].config
    squares = ("layers.3.norm_squares", "norm_squares")
    assert [find_held(config, name, None) for name in squares] == ["always", "always"]
    assert find_held(config, "layers.3.kv", None) is None
