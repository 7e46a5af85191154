"""Which graphs a model is exported as, their contracts, and the modules that are traced for them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import numpy as np

from flash_export.bundle import GRAPH_FILE
from flash_export.config import DECODE, FORWARD, PREFILL
from flash_export.errors import ConfigError
from flash_export.exporters.lowering.flash_state import DecodeFlash, PrefillFlash, describe_state
from flash_export.exporters.lowering.precision import FP32
from flash_export.manifest import (
    LENGTHS,
    NEW_STATE_PREFIX,
    STATE_PREFIX,
    AxisRange,
    Content,
    GraphSpec,
    TensorSpec,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from flash_export.config import ExportOptions
    from flash_export.exporters.lowering.flash import LoweredFlash
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.base import ModelConfig
    from flash_export.models.flash import FlashConfig

GRAPH_FILES = {FORWARD: GRAPH_FILE, PREFILL: "prefill.onnx", DECODE: "decode.onnx"}
_STATEFUL: dict[str, Callable[[LoweredFlash], nn.Module]] = {PREFILL: PrefillFlash, DECODE: DecodeFlash}


def describe_graphs(config: ModelConfig, options: ExportOptions, precision: Precision = FP32) -> dict[str, GraphSpec]:
    """Return the contracts of the graphs that are asked for; of all that the model can have if none was named.

    Raises:
        ConfigError: The model has no state of constant size, which prefill and decode would carry.
    """
    refusal = config.state_refusal
    names = options.graphs or (tuple(GRAPH_FILES) if refusal is None else (FORWARD,))
    if refusal is not None and (stateful := [name for name in names if name in _STATEFUL]):
        raise ConfigError(f"no graph {', '.join(stateful)} for this model: {refusal}; export the graph forward alone")
    return {name: _describe_graph(name, config, options, precision) for name in GRAPH_FILES if name in names}


def build_graph_module(name: str, lowered: nn.Module) -> nn.Module:
    """Return the module to trace for a graph; it shares the weights of the lowered model."""
    if name == FORWARD:
        return lowered
    return _STATEFUL[name](cast("LoweredFlash", lowered)).requires_grad_(requires_grad=False).eval()


def count_state_bytes(graph: GraphSpec) -> int:
    """Return the size of the state that a graph carries for one row; 0 if it carries none."""
    return sum(math.prod(map(int, spec.shape[1:])) * np.dtype(spec.dtype).itemsize for spec in graph.state_inputs)


def _describe_graph(name: str, config: ModelConfig, options: ExportOptions, precision: Precision) -> GraphSpec:
    axes = {"batch": AxisRange(options.batch or 1, options.batch or options.max_batch)}
    if name != DECODE:
        axes["seq"] = AxisRange(1, options.max_seq_len)
    sizes: dict[str, int | str] = {
        axis: axis if bounds.min < bounds.max else bounds.max for axis, bounds in axes.items()
    }
    batch, seq = sizes["batch"], sizes.get("seq", 1)
    vocab_size = int(config.to_dict()["vocab_size"])
    inputs = [TensorSpec("input_ids", "int64", (batch, seq), Content.from_vocabulary(vocab_size))]
    outputs = [TensorSpec("logits", "float32", (batch, seq, vocab_size))]
    if name == FORWARD and (config.sees_padding if options.mask is None else options.mask):
        inputs.append(TensorSpec("attention_mask", "int64", (batch, seq)))
    if name == PREFILL:
        inputs.append(TensorSpec("lengths", "int64", (batch,), Content(LENGTHS, 1, seq)))
    if name in _STATEFUL:
        inputs.extend(describe_state(cast("FlashConfig", config), batch, STATE_PREFIX, precision))
        outputs.extend(describe_state(cast("FlashConfig", config), batch, NEW_STATE_PREFIX, precision))
    return GraphSpec(GRAPH_FILES[name], options.opset, precision.name, tuple(inputs), tuple(outputs), axes)
