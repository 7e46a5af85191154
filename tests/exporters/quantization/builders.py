"""Weights, operators and products to try numbers and schemes on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from flash_export.config import QuantizeOptions
from flash_export.exporters.quantization.recipe import ProductRecipe, QuantizationRecipe
from flash_export.exporters.quantization.rewrite import quantize_graph
from flash_export.exporters.quantization.schemes.registry import SCHEMES_BY_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flash_export.exporters.quantization.rounding import ProductSample, Rounding

BLOCK = 16
NUMBERS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
FLOAT = TensorProto.FLOAT


def draw_weights(*, rows: st.SearchStrategy[int]) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(rows, st.integers(1, 5))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=NUMBERS))


def make_outlier(k: int = 64, n: int = 8) -> np.ndarray:
    weight = np.random.default_rng(0).standard_normal((k, n)).astype(np.float32)
    weight[3] *= 40
    return weight


def evaluate(nodes: list[tuple[str, list[str], str, dict[str, Any]]], **values: tuple[np.ndarray, int]) -> np.ndarray:
    """Run operators of opset 21 in onnx's reference implementation; the last output is returned."""
    graph = helper.make_graph(
        [helper.make_node(op_type, inputs, [output], **attributes) for op_type, inputs, output, attributes in nodes],
        "numbers",
        [helper.make_tensor_value_info(name, kind, array.shape) for name, (array, kind) in values.items()],
        [helper.make_tensor_value_info(nodes[-1][2], FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    (found,) = ReferenceEvaluator(model).run(None, {name: array for name, (array, _) in values.items()})
    return np.asarray(found)


def write_product(weight: np.ndarray, bias: np.ndarray | None = None) -> ir.Model:
    """Make a graph of one product ``x (n, k)`` with a weight called ``out_weight``, and perhaps a bias."""
    k, n = weight.shape
    constants = [numpy_helper.from_array(weight, "out_weight")]
    nodes = [helper.make_node("MatMul", ["x", "out_weight"], ["y" if bias is None else "product"], name="out/MatMul_0")]
    if bias is not None:
        constants.append(numpy_helper.from_array(bias, "out_bias"))
        nodes.append(helper.make_node("Add", ["product", "out_bias"], ["y"], name="out/Add_0"))
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", n])],
        constants,
        value_info=[helper.make_tensor_value_info("product", TensorProto.FLOAT, ["m", n])] if len(nodes) > 1 else [],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def quantize_product(model: ir.Model, recipe: ProductRecipe) -> onnx.ModelProto:
    quantize_graph(model, QuantizationRecipe(recipe.scheme, {"out": recipe}))
    proto = ir.to_proto(model)
    assert isinstance(proto, onnx.ModelProto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def list_roundings(
    sample: ProductSample, name: str, *, block_size: int = 32, smoothing: bool = True
) -> tuple[Rounding, ...]:
    options = QuantizeOptions(name, smoothing=smoothing)
    if SCHEMES_BY_NAME[name].has_blocks:
        options = replace(options, block_size=block_size)
    return SCHEMES_BY_NAME[name].list_roundings(sample, options)


def run(model: onnx.ModelProto | Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")  # without VNNI, sums saturate
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    (found,) = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, dict(inputs))
    return np.asarray(found)


def measure_error(model: onnx.ModelProto, x: np.ndarray, exact: np.ndarray) -> float:
    """Return the root mean square of the error, as a fraction of that of the product."""
    return float(np.sqrt(np.square(run(model, {"x": x}) - exact).mean() / np.square(exact).mean()))


def count_fused(model: Path | onnx.ModelProto, folder: Path) -> Counter[str]:
    """Return the operators of the graph that onnxruntime really runs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(folder / "optimized.onnx", load_external_data=False)
    return Counter(node.op_type for node in optimized.graph.node)
