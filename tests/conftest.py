from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx
import pytest

from flash_export.bundle import Bundle
from flash_export.files import hash_file
from flash_export.manifest import AxisRange, GraphSpec, Manifest, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

# Small models on busy machines: threads cost more than they give. Read when PyTorch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

BundleFactory = Callable[..., Bundle]


@pytest.fixture
def write_graph_bundle(tmp_path: Path) -> BundleFactory:
    """Write a bundle around any ONNX model; the contract is read from the model unless ``outputs`` overrides it."""

    def write(
        model: onnx.ModelProto,
        *,
        max_batch: int = 64,
        max_seq_len: int = 65536,
        config: str = '{"model_type": "flash", "chunk_size": 128, "depth": 2}',
        external_data: bool = False,
        outputs: tuple[TensorSpec, ...] | None = None,
    ) -> Bundle:
        folder = tmp_path / "bundle"
        folder.mkdir()
        (folder / "config.json").write_text(config)
        onnx.save_model(
            model,
            folder / "model.onnx",
            save_as_external_data=external_data,
            location="model.onnx.data",
            size_threshold=0,
        )
        spec = GraphSpec(
            file="model.onnx",
            opset=20,
            precision="fp32",
            inputs=_read_specs(model.graph.input),
            outputs=outputs or _read_specs(model.graph.output),
            axes={"batch": AxisRange(1, max_batch), "seq": AxisRange(1, max_seq_len)},
        )
        files = {path.name: hash_file(path) for path in folder.iterdir()}
        (folder / "manifest.json").write_text(Manifest({}, {"forward": spec}, {}, files).to_json())
        return Bundle.open(folder)

    return write


def _read_specs(values: list[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            value.name,
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    )
