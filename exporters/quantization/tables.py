"""Tables of a quantized graph: the token embedding in int8, and relative biases by distance.

Axes: c position in a chunk, d model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flash_export.exporters.quantization.nodes import (
    add_constant,
    get_input,
    insert_nodes,
    read_constant,
    replace_value,
)
from flash_export.exporters.quantization.numbers import round_to_int8
from flash_export.exporters.quantization.products import EMBEDDING, EMBEDDING_TABLE

if TYPE_CHECKING:
    import onnx_ir as ir
    from jaxtyping import Float

_TABLE_SUFFIX = "quadratic.bias"


def quantize_embedding(graph: ir.Graph) -> None:
    """Keep the token table in int8, with a scale for each channel; real numbers are made of the rows that are read."""
    table = graph.initializers.get(EMBEDDING_TABLE)
    if table is None:
        return
    quantized = round_to_int8(read_constant(table))
    values = add_constant(graph, f"{EMBEDDING_TABLE}_quantized", quantized.values)
    scale = add_constant(graph, f"{EMBEDDING_TABLE}_scale", quantized.scale)
    zero = add_constant(graph, f"{EMBEDDING_TABLE}_zero_point", np.zeros(quantized.scale.shape, np.int8))
    for gather, _ in table.uses():
        output, index = gather.outputs[0], get_input(gather, 1)
        (rows,) = insert_nodes(graph, gather, f"{EMBEDDING}.quantized/Gather_0", "Gather", [values, index], axis=0)
        name = f"{EMBEDDING}.quantized/DequantizeLinear_0"
        last = -1 if output.shape is None else len(output.shape) - 1
        (tokens,) = insert_nodes(graph, gather, name, "DequantizeLinear", [rows, scale, zero], axis=last)
        replace_value(graph, output, tokens)


def shorten_tables(graph: ir.Graph) -> None:
    """Keep of a relative bias ``(c, c)`` what it is made of, a number for each distance.

    It is exact: the numbers are put back into the table by a Gather of constants, which runtimes do when they load the
    graph. In a graph of few bits the tables would be a tenth of the file.
    """
    tables = {name: value for name, value in graph.initializers.items() if name.endswith(_TABLE_SUFFIX)}
    first = graph[0]
    indices: dict[int, ir.Value] = {}
    for name, value in tables.items():
        table = read_constant(value)
        distances = read_distances(table)
        users = [user for user, _ in value.uses()]
        if distances is None or not users:
            continue
        short = add_constant(graph, f"{name}_by_distance", distances)
        if len(table) not in indices:
            indices[len(table)] = _compute_distances(graph, first, len(table))
        inputs = [short, indices[len(table)]]
        (whole,) = insert_nodes(graph, first, f"{name}/Gather_0", "Gather", inputs, axis=0)
        whole.shape, whole.type = value.shape, value.type
        for user in users:
            for position, item in enumerate(user.inputs):
                if item is value:
                    user.replace_input_with(position, whole)


def read_distances(table: Float[np.ndarray, "c c"]) -> Float[np.ndarray, " 2c-1"] | None:
    """Return the bias by distance ``key - query + c - 1``, or None where it does not depend on that alone."""
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        return None
    distances = np.concatenate((table[::-1, 0], table[0, 1:]))
    index = np.arange(len(table)) - np.arange(len(table))[:, None] + len(table) - 1
    return distances if np.array_equal(distances[index], table) else None


def _compute_distances(graph: ir.Graph, first: ir.Node, chunk_size: int) -> ir.Value:
    """Return the index ``key - query + c - 1``, ``(c, c)``, which all blocks share."""
    keys = add_constant(graph, "distances.keys", np.arange(chunk_size - 1, 2 * chunk_size - 1, dtype=np.int32))
    queries = add_constant(graph, "distances.queries", np.arange(chunk_size, dtype=np.int32)[:, None])
    return insert_nodes(graph, first, "distances/Sub_0", "Sub", [keys, queries])[0]
