"""Bundles as older versions quantized them, with a scheme that is no longer made."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from flash_export.bundle.bundle import MANIFEST_FILE, QUANTIZATION_FILE, Bundle
from flash_export.bundle.quantization_record import QuantizationRecord
from flash_export.files import hash_file, write_file

if TYPE_CHECKING:
    from pathlib import Path

RETIRED = "int8-dynamic"


def write_retired_bundle(bundle: Bundle, folder: Path) -> None:
    """Write an fp32 bundle again with the head in ``int8-dynamic``: one scale for all tokens of a run."""
    copy = Bundle.open(shutil.copytree(bundle.path, folder))
    for name in copy.manifest.graphs:
        path = copy.get_graph_path(name)
        model = onnx.load(path)
        _quantize_head(model.graph)
        onnx.save(model, path)
    record = QuantizationRecord(RETIRED, "", "text", "", (96,), 1, 0.02, 0.01, {"kl_bits": 0.01}, None, 1.0, None, ())
    write_file(folder / QUANTIZATION_FILE, record.to_json().encode())
    graphs = {name: dataclasses.replace(graph, precision=RETIRED) for name, graph in copy.manifest.graphs.items()}
    files = {name: hash_file(folder / name) for name in (*copy.manifest.files, QUANTIZATION_FILE)}
    manifest = dataclasses.replace(copy.manifest, graphs=graphs, files=files)
    write_file(folder / MANIFEST_FILE, manifest.to_json().encode())


def _quantize_head(graph: onnx.GraphProto) -> None:
    index, product = next((i, node) for i, node in enumerate(graph.node) if "head.weight" in node.input)
    (weight,) = (tensor for tensor in graph.initializer if tensor.name == "head.weight")
    values = numpy_helper.to_array(weight)
    step = np.float32(np.abs(values).max() / 127)
    constants = {"head.int8": np.rint(values / step).astype(np.int8), "head.zero": np.zeros((), np.int8)}
    constants["head.step"] = step
    graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items())
    nodes = [
        helper.make_node("DynamicQuantizeLinear", [product.input[0]], ["head.x", "head.scale", "head.offset"]),
        helper.make_node("MatMulInteger", ["head.x", "head.int8", "head.offset", "head.zero"], ["head.sum"]),
        helper.make_node("Cast", ["head.sum"], ["head.float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["head.scale", "head.step"], ["head.factor"]),
        helper.make_node("Mul", ["head.float", "head.factor"], list(product.output)),
    ]
    graph.node.remove(product)
    for offset, node in enumerate(nodes):
        graph.node.insert(index + offset, node)
