from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from flash_export.validators.trade_off.candidates import measure_graph_bytes

if TYPE_CHECKING:
    from tests.conftest import BundleFactory


def test_external_weights_count_once_and_only_those_that_the_graph_reads(write_graph_bundle: BundleFactory) -> None:
    weights = np.ones((4, 4), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(weights, name) for name in ("first", "second")]
    graph = helper.make_graph(nodes, "tied", values[:1], values[1:], tensors)
    bundle = write_graph_bundle(helper.make_model(graph))
    inline = measure_graph_bytes(bundle)["forward"]
    path = bundle.get_graph_path()
    assert inline == path.stat().st_size

    model = onnx.load(path)
    for tensor in model.graph.initializer:  # both are the same piece of a file that holds more
        set_external_data(tensor, "model.onnx.data", offset=64, length=weights.nbytes)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    (bundle.path / "model.onnx.data").write_bytes(bytes(4096))
    path.write_bytes(model.SerializeToString())
    assert measure_graph_bytes(bundle)["forward"] == path.stat().st_size + weights.nbytes
