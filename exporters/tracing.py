"""Tracing a lowered model with ``torch.export`` into an ONNX graph whose nodes carry the model's own names."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections import Counter
from typing import TYPE_CHECKING

import torch

from flash_export.exporters.primitives import TRANSLATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir
    from torch import nn

    from flash_export.config import ExportOptions
    from flash_export.exporters.traced_sizes import TracedSizes

SCOPE_PROPERTY = "pkg.torch.onnx.name_scopes"
SCOPE_PLACEHOLDER = "_empty_nn_module_stack_from_metadata_hook"
GRAPH_SCOPE = "graph"


def trace_model(lowered: nn.Module, *, mask: bool, options: ExportOptions, example: TracedSizes) -> ir.Model:
    """Trace ``forward(input_ids[, attention_mask]) -> logits`` with symbolic ``batch`` and ``seq``.

    Args:
        lowered: A lowered model in evaluation mode.
        mask: Whether the graph takes ``attention_mask``.
        options: Opset and the ranges of the axes.
        example: Sizes of the example inputs.

    Returns:
        The graph, its nodes named after the submodule they come from (``layers.3.quadratic/MatMul_2``).
    """
    names = ["input_ids", "attention_mask"] if mask else ["input_ids"]
    examples = tuple(torch.ones(example.batch, example.seq_len, dtype=torch.int64) for _ in names)
    axes = {
        axis: torch.export.Dim(name, min=1, max=limit) if limit > 1 else None
        for axis, (name, limit) in enumerate((("batch", options.max_batch), ("seq", options.max_seq_len)))
    }
    with _quiet():
        program = torch.onnx.export(
            lowered,
            examples,
            dynamo=True,
            opset_version=options.opset,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(names, axes),
            custom_translation_table=TRANSLATIONS,
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    _name_nodes(program.model.graph)
    _drop_metadata(program.model)
    return program.model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress chatter and its warnings about itself away from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_nodes(graph: ir.Graph) -> None:
    """Name each node, and the values it makes, ``SCOPE/OP_NUMBER``."""
    counts: Counter[str] = Counter()
    outputs = {id(value) for value in graph.outputs}
    scopes = {node: _read_scope(node) for node in graph}
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


def _read_scope(node: ir.Node) -> str | None:
    """Return the dotted name of the innermost submodule that a node was traced in."""
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get(SCOPE_PROPERTY, ""))
    named = [scope for scope in scopes[:-1] if scope not in ("", SCOPE_PLACEHOLDER)]
    return named[-1] if named else (GRAPH_SCOPE if scopes else None)


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
