"""Each graph promise is broken on purpose, and the check says which node broke it."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from flash_export.config import ExportOptions
from flash_export.errors import GraphError
from flash_export.exporters.graphs import describe_graphs
from flash_export.exporters.lowering.registry import lower_model
from flash_export.exporters.promises import check_promises, check_traced_sizes
from flash_export.exporters.traced_sizes import TracedSizes, choose_traced_sizes
from flash_export.interface import TensorSpec
from flash_export.models.flash import FlashConfig, FlashModel

TRACED = TracedSizes(batch=11, seq_len=100, telltales=frozenset({11, 100, 104, 13}))
INPUTS = (TensorSpec("input_ids", "int64", ("batch", "seq")),)
OUTPUTS = (TensorSpec("logits", "float32", ("batch", "seq")),)


def make_model(
    *nodes: onnx.NodeProto, shape: list[int] | None = None, opsets: tuple[str, ...] = ("",)
) -> onnx.ModelProto:
    """Build a graph from ``input_ids`` to ``logits`` through ``x``, a float of the same shape."""
    constants = [helper.make_tensor("shape", TensorProto.INT64, [len(shape)], shape)] if shape else []
    graph = helper.make_graph(
        [helper.make_node("Cast", ["input_ids"], ["x"], name="cast", to=TensorProto.FLOAT), *nodes],
        "test",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "seq"])],
        constants,
    )
    imports = [helper.make_opsetid(domain, 20 if not domain else 1) for domain in opsets]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def check(model: onnx.ModelProto) -> None:
    check_traced_sizes(ir.from_proto(model), TRACED)
    check_promises(model, INPUTS, OUTPUTS)


def test_a_plain_graph_passes() -> None:
    check(make_model(helper.make_node("Relu", ["x"], ["logits"], name="relu")))


def test_a_foreign_operator_is_named() -> None:
    node = helper.make_node("FusedGelu", ["x"], ["logits"], name="layers.0/gelu", domain="com.microsoft")
    model = make_model(node, opsets=("", "com.microsoft"))
    with pytest.raises(GraphError, match=r"com\.microsoft"):
        check(model)


def test_a_local_function_is_named() -> None:
    model = make_model(helper.make_node("Relu", ["x"], ["logits"], name="relu"))
    body = helper.make_node("Relu", ["a"], ["b"])
    model.functions.append(helper.make_function("", "Left", ["a"], ["b"], [body], [helper.make_opsetid("", 20)]))
    with pytest.raises(GraphError, match="Left"):
        check(model)


def test_control_flow_is_named() -> None:
    def branch(name: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "seq"])
        return helper.make_graph([helper.make_node("Relu", ["x"], [name])], name, [], [output])

    condition = helper.make_node(
        "Constant", [], ["yes"], name="yes", value=helper.make_tensor("v", TensorProto.BOOL, [], [True])
    )
    node = helper.make_node(
        "If", ["yes"], ["logits"], name="layers.1/branch", then_branch=branch("a"), else_branch=branch("b")
    )
    with pytest.raises(GraphError, match=r"layers\.1/branch"):
        check(make_model(condition, node))


@pytest.mark.parametrize("baked", sorted(TRACED.telltales))
def test_a_baked_shape_is_named(baked: int) -> None:
    nodes = (
        helper.make_node("Reshape", ["x", "shape"], ["y"], name="layers.2/reshape"),
        helper.make_node("ReduceSum", ["y"], ["z"], name="sum"),
        helper.make_node("Add", ["x", "z"], ["logits"], name="add"),
    )
    with pytest.raises(GraphError, match=rf"layers\.2/reshape.*{baked}"):
        check(make_model(*nodes, shape=[-1, baked]))
    check(make_model(*nodes, shape=[-1, 8]))


def test_a_baked_intermediate_size_is_named() -> None:
    model = make_model(helper.make_node("Relu", ["x"], ["logits"], name="relu"))
    model.graph.value_info.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 104]))
    with pytest.raises(GraphError, match=r"value 'x' has the fixed sizes .*104"):
        check(model)


@pytest.mark.parametrize("change", ["name", "axis", "dtype"])
def test_a_changed_interface_is_told(change: str) -> None:
    model = make_model(helper.make_node("Relu", ["x"], ["logits"], name="relu"))
    if change == "name":
        model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"
    elif change == "axis":
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64
    else:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    with pytest.raises(GraphError, match="wanted"):
        check(model)


def test_a_truncated_graph_is_refused() -> None:
    model = make_model(helper.make_node("Relu", ["missing"], ["logits"], name="relu"))
    with pytest.raises(GraphError, match="checker"):
        check(model)


def test_telltales_are_no_numbers_of_the_model() -> None:
    config = FlashConfig(vocab_size=13, dim=22, depth=2, hidden_dim=33, chunk_size=17, qk_dim=37)
    traced = choose_traced_sizes(
        lower_model(FlashModel(config)), config.interface, describe_graphs(config, ExportOptions())["forward"]
    )
    assert traced.seq_len % config.chunk_size
    assert traced.seq_len > config.chunk_size
    assert not traced.telltales & {4, 5, 11, 13, 17, 22, 32, 33, 37, 66}
    assert {traced.batch, traced.seq_len} <= traced.telltales
    assert -(-traced.seq_len // 17) * 17 in traced.telltales


def test_widths_of_splits_are_no_telltales() -> None:
    """A head of 44 channels, 32 of them rotated, is split into 32, 12 and 32: 12 is the model's own size."""
    config = FlashConfig(vocab_size=91, dim=150, depth=2, hidden_dim=330, chunk_size=61, qk_dim=44, causal=True)
    traced = choose_traced_sizes(
        lower_model(FlashModel(config)), config.interface, describe_graphs(config, ExportOptions())["forward"]
    )
    assert 12 not in traced.telltales
