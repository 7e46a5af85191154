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

# Neither 0, 1, a power of two nor a multiple of a chunk: nothing can be specialised to it unseen.
EXAMPLE_BATCH, EXAMPLE_SEQ_LEN = 3, 37
SCOPE_PROPERTY = "pkg.torch.onnx.name_scopes"


def trace_model(lowered: nn.Module, *, mask: bool, options: ExportOptions) -> ir.Model:
    """Trace ``forward(input_ids[, attention_mask]) -> logits`` with symbolic ``batch`` and ``seq``.

    Args:
        lowered: A lowered model in evaluation mode.
        mask: Whether the graph takes ``attention_mask``.
        options: Opset and the ranges of the axes.

    Returns:
        The graph, its nodes named after the submodule they come from (``layers.3.quadratic/MatMul_2``).
    """
    names = ["input_ids", "attention_mask"] if mask else ["input_ids"]
    shape = (min(EXAMPLE_BATCH, options.max_batch), min(EXAMPLE_SEQ_LEN, options.max_seq_len))
    examples = tuple(torch.ones(shape, dtype=torch.int64) for _ in names)
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
            dynamic_shapes={name: axes for name in names},
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
    for node in graph:
        scopes = re.findall(r"'([^']*)'", node.metadata_props.get(SCOPE_PROPERTY, ""))
        scope = next((name for name in reversed(scopes[:-1]) if name), "graph")
        key = f"{scope}/{node.op_type}"
        node.name = f"{key}_{counts[key]}"
        counts[key] += 1
        for index, value in enumerate(node.outputs):
            if id(value) not in outputs:
                value.name = f"{node.name}:{index}"


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
