"""What a graph says of its own shapes, before it is run: an axis of fixed size was baked in when it was traced."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from flash_export.validators.results import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.validators.backends import Backend

SYMBOLIC_SHAPE = "symbolic-shape"


def check_symbolic_shapes(backend: Backend, graph: GraphSpec) -> list[Row]:
    """Compare the declared axes of a backend's ONNX file with those that the bundle promises.

    Args:
        backend: What is checked; one that runs no single ONNX file has no row.
        graph: Contract of the forward graph.
    """
    if backend.onnx_path is None:
        return []
    from flash_export.graph_files import read_graph

    row = Row(
        backend.name,
        backend.graph,
        None,
        None,
        masked=False,
        status="passed",
        check=SYMBOLIC_SHAPE,
        name=SYMBOLIC_SHAPE,
    )
    model = read_graph(backend.onnx_path)
    if fixed := list(_find_fixed_axes(model, backend, graph)):
        return [replace(row, status="failed", reason=f"{'; '.join(fixed)}: it was traced for that size alone")]
    return [row]


def _find_fixed_axes(model: onnx.ModelProto, backend: Backend, graph: GraphSpec) -> Iterator[str]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    specs, values = (*backend.inputs, *backend.outputs), (*inputs, *model.graph.output)
    for spec, value in zip(specs, values, strict=False):
        for axis, dim in zip(spec.shape, value.type.tensor_type.shape.dim, strict=False):
            if isinstance(axis, str) and dim.HasField("dim_value"):
                yield f"{value.name} has {axis}={dim.dim_value}, promised is any from {graph.axes[axis].min} on"
