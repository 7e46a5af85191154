"""Bundles of one small model, some of them changed, and a text for them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto, numpy_helper

from flash_export.bundle.bundle import Bundle
from flash_export.files import write_file
from tests.validators.conftest import sign_files

if TYPE_CHECKING:
    from pathlib import Path

BundleMaker = Callable[..., Bundle]
TEXT = bytes(range(97, 123)) * 10


@pytest.fixture
def make_bundle(pristine_bundle: Bundle, tmp_path: Path) -> BundleMaker:
    """Copy the good bundle under a name; ``change`` edits its graph, ``seq_len`` gives it a text in such windows."""

    def make(
        name: str, change: Callable[[onnx.ModelProto], None] | None = None, *, seq_len: int | None = None
    ) -> Bundle:
        bundle = Bundle.open(shutil.copytree(pristine_bundle.path, tmp_path / name))
        if change is not None:
            path = bundle.get_graph_path()
            model = onnx.load(path)
            change(model)
            onnx.save(model, path)
        if seq_len is not None:
            (bundle.path / "heldout.txt").write_bytes(TEXT)
            settings = {"objective": "masked", "tokenizer": "bytes", "seq_len": seq_len}
            settings |= {"mask_token_id": 256, "mask_fraction": 0.25, "seed": 3}
            (bundle.path / "heldout.json").write_text(json.dumps(settings))
        return sign_files(bundle)

    return make


def limit_seq_len(bundle: Bundle, longest: int) -> Bundle:
    """Let a bundle promise shorter texts alone."""
    graphs = {
        name: dataclasses.replace(
            graph, axes={**graph.axes, "seq": dataclasses.replace(graph.axes["seq"], max=longest)}
        )
        for name, graph in bundle.manifest.graphs.items()
    }
    manifest = dataclasses.replace(bundle.manifest, graphs=graphs)
    write_file(bundle.path / "manifest.json", manifest.to_json().encode())
    return Bundle.open(bundle.path)


def scale_weights(factor: float) -> Callable[[onnx.ModelProto], None]:
    """Spoil every matrix of a graph a little, or a lot."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * factor, tensor.name))

    return change


def use_unknown_operator(model: onnx.ModelProto) -> None:
    """Make a graph that no runtime has a kernel for."""
    model.graph.node[-1].op_type = "Nonsense"
