"""Tables of a quantized graph: the token embedding in fp16, and relative biases by distance.

Axes: c position in a chunk, d model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from flash_export.exporters.quantization.nodes import (
    add_constant,
    get_input,
    insert_nodes,
    read_constant,
    replace_value,
)

if TYPE_CHECKING:
    from jaxtyping import Float

EMBEDDING = "embedding"
EMBEDDING_TABLE = f"{EMBEDDING}.table"
_TABLE_SUFFIX = "quadratic.bias"


def halve_embedding(graph: ir.Graph) -> None:
    """Keep the token table in fp16; the rows that are read are made fp32.

    int8 would halve it again, but TensorRT takes int8 only where real numbers are made of it at once, and onnxruntime
    would then do that with the whole table in every run.
    """
    table = graph.initializers.get(EMBEDDING_TABLE)
    if table is None or table.dtype != ir.DataType.FLOAT:
        return
    with np.errstate(over="ignore"):
        halved = read_constant(table).astype(np.float16)
    if not np.isfinite(halved).all():
        return
    half = add_constant(graph, f"{EMBEDDING_TABLE}_half", halved)
    for gather, _ in table.uses():
        inputs = [half, get_input(gather, 1)]
        (rows,) = insert_nodes(graph, gather, f"{EMBEDDING}.half/Gather_0", "Gather", inputs, axis=0)
        cast = {"to": int(ir.DataType.FLOAT)}
        (tokens,) = insert_nodes(graph, gather, f"{EMBEDDING}.half/Cast_0", "Cast", [rows], **cast)
        replace_value(graph, gather.outputs[0], tokens)


def shorten_tables(graph: ir.Graph) -> None:
    """Keep of a relative bias ``(c, c)`` what it is made of, a number for each distance.

    It is exact: the numbers are put back into the table by a Gather of constants, which runtimes do when they load the
    graph. In int8 graphs of the bundled models the tables would be a fifth of the file.
    """
    tables = {name: value for name, value in graph.initializers.items() if name.endswith(_TABLE_SUFFIX)}
    first = graph[0]
    indices: dict[int, ir.Value] = {}
    for name, value in tables.items():
        table = read_constant(value)
        distances = read_distances(table)
        if distances is None or not value.uses():
            continue
        short = add_constant(graph, f"{name}_by_distance", distances)
        if len(table) not in indices:
            indices[len(table)] = _compute_distances(graph, first, len(table))
        inputs = [short, indices[len(table)]]
        (whole,) = insert_nodes(graph, first, f"{name}/Gather_0", "Gather", inputs, axis=0)
        whole.shape, whole.type = value.shape, value.type
        ir.convenience.replace_all_uses_with(value, whole)


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
