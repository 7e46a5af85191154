"""Tracing a lowered model with ``torch.export`` into an ONNX graph whose nodes carry the model's own names."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from flash_export.exporters.decomposition import COMPOSITES, decompose_only_if_needed
from flash_export.exporters.marks import MARK_TRANSLATIONS, set_marks_aside, take_marks
from flash_export.exporters.scopes import GRAPH_SCOPE, read_scope
from flash_export.exporters.simplification import simplify_graph
from flash_export.exporters.spelling import TRANSLATIONS
from flash_export.interface import BATCH, PAST, SEQ

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir
    from torch import Tensor, nn

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.exporters.traced_sizes import TracedSizes
    from flash_export.interface import TensorSpec
    from flash_export.probes import Probe


@dataclass(frozen=True)
class TracedGraph:
    """A traced graph, and which of its values the lowered model marked as which quantity."""

    model: ir.Model
    probes: tuple[Probe, ...] = ()


def trace_model(module: nn.Module, graph: GraphSpec, example: TracedSizes) -> TracedGraph:
    """Trace a module into a graph whose symbolic axes stay symbolic.

    Args:
        module: A module in evaluation mode. It takes the graph's inputs by position, those of a state as one tuple.
        graph: The contract that the graph is to fulfil.
        example: Sizes of the example inputs.

    Returns:
        The graph, its nodes named after the submodule they come from (``layers.3.quadratic/MatMul_2``).
    """
    sizes = {BATCH: example.batch, SEQ: example.seq_len, PAST: example.past}
    dims = {
        name: torch.export.Dim(name, min=bounds.min, max=bounds.max)
        for name, bounds in graph.axes.items()
        if bounds.min < bounds.max
    }
    examples = [_make_example(spec, sizes) for spec in graph.inputs]
    shapes = [{axis: dims[n] for axis, n in enumerate(spec.shape) if isinstance(n, str)} for spec in graph.inputs]
    num_plain = len(graph.inputs) - len(graph.state_inputs)
    with quiet_exporter(), decompose_only_if_needed():
        program = torch.onnx.export(
            module,
            _group_state(examples, num_plain),
            dynamo=True,
            opset_version=graph.opset,
            input_names=[spec.name for spec in graph.inputs],
            output_names=[spec.name for spec in graph.outputs],
            dynamic_shapes=_group_state(shapes, num_plain),
            custom_translation_table={**TRANSLATIONS, **COMPOSITES, **MARK_TRANSLATIONS},
            optimize=False,  # simplify_graph does, without the rules that never match
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    set_marks_aside(program.model.graph)
    simplify_graph(program.model)
    marked = take_marks(program.model)
    _name_nodes(program.model.graph, {name for name, _ in (*module.named_parameters(), *module.named_buffers())})
    _drop_metadata(program.model)
    program.model.producer_name, program.model.producer_version = "flash-export", metadata.version("flash-export")
    return TracedGraph(program.model, tuple(value.name_probe() for value in marked))


def _make_example(spec: TensorSpec, sizes: dict[str, int]) -> Tensor:
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
    return torch.empty(shape, dtype=getattr(torch, spec.dtype))  # never read, so never resident: states are large


def _group_state(values: list[Any], num_plain: int) -> tuple[Any, ...]:
    """Return one value an argument of the module: the plain inputs, then all tensors of the state as one."""
    plain, state = tuple(values[:num_plain]), tuple(values[num_plain:])
    return (*plain, state) if state else plain


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep PyTorch's ONNX exporters' progress chatter, and their warnings about themselves, away from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_nodes(graph: ir.Graph, weights: set[str]) -> None:
    """Name each node, and the values it makes, ``SCOPE/OP_NUMBER``; constants after the node that reads them first.

    The exporter numbers what is no weight of the module by what it saw on the way, which is not the same in two traces
    of one model: two graphs would have different constants of one name.
    """
    counts: Counter[str] = Counter()
    outputs = {id(value) for value in graph.outputs}
    scopes = {node: read_scope(node) for node in graph}
    for node in graph:
        consumer = next((user for output in node.outputs for user, _ in output.uses()), None)
        # Nodes that the exporter's optimizer made carry no scope: they belong to whoever uses them first.
        scope = scopes[node] or (scopes.get(consumer) if consumer else None) or GRAPH_SCOPE
        key = f"{scope}/{node.op_type}"
        node.name = f"{key}_{counts[key]}"
        counts[key] += 1
        for index, value in enumerate(node.outputs):
            if id(value) not in outputs:
                value.name = f"{node.name}:{index}"
    for node in graph:
        for index, constant in enumerate(node.inputs):
            if constant and constant.is_initializer() and constant.name not in weights:
                weights.add(name := f"{node.name}.{index}")
                constant.name = name


def _drop_metadata(model: ir.Model) -> None:
    """Remove what differs between two exports or tells of the machine: stack traces, source paths."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
