"""Which node and which part of the model a layer counts as, in networks made by hand."""

from __future__ import annotations

from flash_export.exporters.engine_report.network import NetworkLayer, count_bytes
from flash_export.exporters.engine_report.origins import Origins, sort_parts


def make_layer(output: str, *inputs: str | None, node: str = "") -> NetworkLayer:
    return NetworkLayer(
        name=output,
        type="ELEMENTWISE",
        nodes=(node,) if node else (),
        inputs=inputs,
        input_dtypes=("float32",) * len(inputs),
        output=output,
        dtype="float32",
        item_bytes=4,
        shape=(1,),
        decides_size=False,
        weights_bytes=0,
    )


def describe(*layers: NetworkLayer) -> dict[str, tuple[str, tuple[str, ...]]]:
    origins = Origins(layers)
    return {layer.output: (origins.parts[place], origins.nodes[place]) for place, layer in enumerate(layers)}


def test_nodes_outside_of_blocks_are_before_between_or_after_them() -> None:
    found = describe(
        make_layer("e", "x", node="embedding/Gather_0"),
        make_layer("a", "e", node="layers.0/Add_0"),
        make_layer("m", "a", node="graph/Mul_0"),
        make_layer("b", "m", node="layers.1.norm/Add_0"),
        make_layer("y", "b", "l", node="head/MatMul_0"),
        make_layer("l", "x", node="graph/Shape_0"),
    )
    assert {name: part for name, (part, _) in found.items()} == {
        "e": "before",
        "a": "block 0",
        "m": "between",
        "b": "block 1",
        "y": "after",
        "l": "after",  # nothing in a block needs it
    }


def test_helpers_count_as_what_they_are_there_for() -> None:
    found = describe(
        make_layer("a", "x", "broadcast", node="layers.0/Add_0"),  # before what it uses, as networks have it
        make_layer("broadcast", "bias"),
        make_layer("bias"),
        make_layer("y", "a", "weight", node="head/MatMul_0"),
        make_layer("weight"),
    )
    assert found["broadcast"] == found["bias"] == ("block 0", ("layers.0/Add_0",))
    assert found["weight"] == ("after", ("head/MatMul_0",))


def test_helper_of_several_parts_is_shared_and_of_one_part_is_not() -> None:
    found = describe(
        make_layer("one"),
        make_layer("two"),
        make_layer("three"),
        make_layer("a", "x", "one", "two", node="layers.0/Add_0"),
        make_layer("b", "a", "one", "two", node="layers.0/Mul_0"),
        make_layer("c", "b", "two", "three", node="layers.1/Add_0"),
        make_layer("y", "c", "three", node="head/Add_0"),
    )
    assert found["one"] == ("block 0", ("layers.0/Add_0", "layers.0/Mul_0"))
    assert found["two"][0] == found["three"][0] == "shared"
    assert found["three"][1] == ("layers.1/Add_0", "head/Add_0")


def test_helper_at_the_end_counts_as_what_it_uses() -> None:
    found = describe(make_layer("a", "x", node="layers.0/Add_0"), make_layer("y", "a"))
    assert found["y"] == ("block 0", ("layers.0/Add_0",))


def test_graph_without_blocks_is_one_part() -> None:
    assert {part for part, _ in describe(make_layer("w"), make_layer("y", "x", "w", node="MatMul_0")).values()} == {
        "graph"
    }


def test_layers_in_a_circle_end() -> None:
    found = describe(make_layer("a", "b"), make_layer("b", "a"), make_layer("y", "a", node="layers.0/Add_0"))
    assert found["a"] == found["y"] == ("block 0", ("layers.0/Add_0",))


def test_fixed_is_what_no_input_leads_to() -> None:
    layers = (make_layer("w"), make_layer("v", "w"), make_layer("y", "x", "v"), make_layer("z", "y", None))
    assert Origins(layers).list_fixed(["x"]) == {0, 1}


def test_parts_stand_in_the_order_of_the_model() -> None:
    parts = ["shared", "after", "block 10", "block 2", "between", "before", "block 2"]
    assert sort_parts(parts) == ["before", "block 2", "block 10", "between", "after", "shared"]


def test_half_a_byte_each_is_rounded_up() -> None:
    assert [count_bytes((size,), 0.5) for size in (0, 1, 2, 3)] == [0, 1, 1, 2]
    assert count_bytes((), 8) == 8
