"""Which graphs a model is exported as, their contracts, and the modules that are traced for them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from flash_export.bundle.bundle import GRAPH_FILE
from flash_export.bundle.manifest import NEW_STATE_PREFIX, STATE_PREFIX, AxisRange, GraphSpec
from flash_export.config import DECODE, DEFAULT_MAX_SECONDS, DEFAULT_MAX_SEQ_LEN, EXTEND, FORWARD, PREFILL
from flash_export.errors import ConfigError
from flash_export.exporters.lowering.precision import FP32
from flash_export.exporters.lowering.registry import LOWERINGS
from flash_export.interface import BATCH, PAST, SEQ, Lengths, Positions, TensorSpec, Waveform

if TYPE_CHECKING:
    from torch import nn

    from flash_export.config import ExportOptions
    from flash_export.exporters.lowering.base import LoweredModel
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.interface import Interface
    from flash_export.models.base import ModelConfig

GRAPH_FILES = {FORWARD: GRAPH_FILE, PREFILL: "prefill.onnx", EXTEND: "extend.onnx", DECODE: "decode.onnx"}


def describe_graphs(config: ModelConfig, options: ExportOptions, precision: Precision = FP32) -> dict[str, GraphSpec]:
    """Return the contracts of the graphs that are asked for; of all that the model can have if none was named.

    Raises:
        ConfigError: The model has no state that a graph would carry, or needs no such graph; or it does not take the
            longest sequence.
    """
    refusal = config.state_refusal
    stateful = tuple(name for name in options.graphs if name != FORWARD)
    if refusal is not None and stateful:
        raise ConfigError(f"no graph {', '.join(stateful)} for this model: {refusal}; export the graph {FORWARD} alone")
    state = LOWERINGS[config.model_type].state
    known = (FORWARD, *(state.modules if state is not None and refusal is None else ()))
    if unneeded := [name for name in options.graphs if name not in known]:
        raise ConfigError(
            f"no graph {', '.join(unneeded)} for this model: it has no chunks, and {PREFILL} reads on from any "
            f"position; export {', '.join(known)}"
        )
    names = options.graphs or known
    return {name: _describe_graph(name, config, options, precision) for name in GRAPH_FILES if name in names}


def find_longest(interface: Interface, options: ExportOptions) -> int:
    """Return the longest length of the graphs.

    Raises:
        ConfigError: What was asked for is shorter than the shortest that the model takes, or longer than the longest.
    """
    if interface.fixed_len is not None:
        return interface.fixed_len
    asked, unit = options.max_seq_len, interface.unit
    if asked is None:
        contents = (spec.content for spec in interface.inputs)
        rate = next((content.sample_rate for content in contents if isinstance(content, Waveform)), None)
        default = DEFAULT_MAX_SEQ_LEN if rate is None else DEFAULT_MAX_SECONDS * rate
        return min(default, interface.max_len or default)
    if asked < interface.min_len:
        raise ConfigError(
            f"max_seq_len={asked} is below the {interface.min_len} {unit} that the model needs at least; use "
            f"{interface.min_len} or more"
        )
    if interface.max_len is not None and asked > interface.max_len:
        raise ConfigError(
            f"max_seq_len={asked} is above the {interface.max_len} {unit} that the model takes at most; use "
            f"{interface.max_len} or less"
        )
    return asked


def build_graph_module(name: str, lowered: LoweredModel) -> nn.Module:
    """Return the module to trace for a graph; it shares the weights of the lowered model."""
    state = LOWERINGS[lowered.config.model_type].state
    if name == FORWARD or state is None:
        return lowered
    return state.modules[name](lowered).requires_grad_(requires_grad=False).eval()


def count_state_bytes(graph: GraphSpec) -> tuple[int, int]:
    """Return the size of the state that a graph carries for one row, and what each token adds; 0 if it carries none."""
    constant = growing = 0
    for spec in graph.state_inputs:
        item_bytes = np.dtype(spec.dtype).itemsize
        size = math.prod(one for one in spec.shape[1:] if isinstance(one, int)) * item_bytes
        constant, growing = (constant, growing + size) if PAST in spec.shape else (constant + size, growing)
    return constant, growing


def _describe_graph(name: str, config: ModelConfig, options: ExportOptions, precision: Precision) -> GraphSpec:
    interface = config.interface
    axes = {BATCH: AxisRange(options.batch or 1, options.batch or options.max_batch)}
    if name != DECODE:
        longest = interface.window if name == EXTEND else find_longest(interface, options)
        axes[SEQ] = AxisRange(interface.fixed_len or interface.min_len, longest)
    lowering = LOWERINGS[config.model_type]
    state = None if name == FORWARD else lowering.state
    inputs, outputs = list(interface.inputs), list(interface.outputs)
    carried = () if state is None else state.describe(config, BATCH, STATE_PREFIX, precision)
    if any(PAST in spec.shape for spec in carried):
        axes[PAST] = AxisRange(1, find_longest(interface, options))
    sizes = {axis: axis if bounds.min < bounds.max else bounds.max for axis, bounds in axes.items()}
    sizes.setdefault(SEQ, 1)  # decode takes one token

    def fill(spec: TensorSpec) -> TensorSpec:
        return replace(spec, shape=tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape))

    if name == FORWARD and interface.mask is not None:
        takes_mask = interface.needs_mask if options.mask is None else options.mask
        inputs += [interface.mask] if takes_mask else []
    if name in (PREFILL, EXTEND):
        inputs.append(TensorSpec("lengths", "int64", (BATCH,), Lengths(sizes[SEQ], min=int(name == PREFILL))))
    if state is not None:
        starts = Positions(interface.window if name == PREFILL else 1)
        inputs.extend(replace(spec, content=starts) if spec.content == Positions() else spec for spec in carried)
        outputs.extend(state.describe(config, BATCH, NEW_STATE_PREFIX, precision))
    return GraphSpec(
        GRAPH_FILES[name],
        options.opset,
        precision.name,
        tuple(map(fill, inputs)),
        tuple(map(fill, outputs)),
        axes,
        fused_attention=lowering.fuses_attention(options.opset, name),
    )
