"""The extend graph with Triton's implicit state: a text piece by piece, and no Python in the server.

The server keeps the state of each sequence between its requests; a client sends the prompt in pieces and then token by
token, and chooses the tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.bundle.manifest import NEW_STATE_PREFIX, STATE_PREFIX
from flash_export.config import EXTEND
from flash_export.errors import BundleError
from flash_export.generation.batcher import DEFAULT_SLOTS
from flash_export.interface import BATCH
from flash_export.serving.folder import ModelFolder, check_precision, describe_run, take_graph
from flash_export.serving.forward import ONNX_PLATFORM
from flash_export.serving.model_config import (
    Config,
    describe_instances,
    describe_parameters,
    describe_tensor,
    get_data_type,
    has_batch_axis,
)
from flash_export.serving.options import SEQUENCE

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import GraphSpec
    from flash_export.interface import TensorSpec
    from flash_export.serving.options import TritonOptions


def describe_sequence(bundle: Bundle, name: str, options: TritonOptions) -> ModelFolder:
    """Describe a model that is told by correlation ids which request goes on from which.

    Raises:
        BundleError: The bundle has no extend graph, or onnxruntime cannot compute it.
    """
    graph = _get_extend(bundle)
    check_precision(bundle, graph, options)
    state_names = {spec.name for spec in graph.state_inputs}
    slots = options.slots or DEFAULT_SLOTS
    limit = min(graph.axes[BATCH].max, slots)
    config = {
        "name": name,
        "platform": ONNX_PLATFORM,
        "default_model_filename": graph.file,
        "max_batch_size": min(limit, options.max_batch or limit),
        "input": [
            describe_tensor(spec, graph.axes, is_batched=True) for spec in graph.inputs if spec.name not in state_names
        ],
        "output": [
            describe_tensor(spec, graph.axes, is_batched=True)
            for spec in graph.outputs
            if not spec.name.startswith(NEW_STATE_PREFIX)
        ],
        "sequence_batching": {
            "max_sequence_idle_microseconds": round(1e6 * options.timeout_s),
            "oldest": {
                "max_candidate_sequences": slots,
                "max_queue_delay_microseconds": options.queue_delay_us,
            },
            "state": [_describe_state(spec) for spec in graph.state_inputs],
        },
        "instance_group": describe_instances(options),
        "parameters": describe_parameters(describe_run(bundle, EXTEND, options)),
    }
    return ModelFolder(name, SEQUENCE, config, take_graph(bundle, EXTEND))


def _get_extend(bundle: Bundle) -> GraphSpec:
    """Return the graph that goes on from any position, for any batch.

    Raises:
        BundleError: There is none.
    """
    if EXTEND not in bundle.manifest.graphs:
        raise BundleError(
            f"{bundle.path} has no graph {EXTEND}, which alone takes a text in pieces from any position with a state "
            "of constant size; export a causal flash model, with all graphs"
        )
    graph = bundle.get_graph(EXTEND)
    if not has_batch_axis(graph):
        raise BundleError(f"{graph.file} takes one batch alone; export it again without --batch")
    return graph


def _describe_state(spec: TensorSpec) -> Config:
    """Return what the server keeps of a tensor from run to run; zeros are a text that has not begun."""
    data_type, dims = get_data_type(spec.dtype), list(spec.shape[1:])
    return {
        "input_name": spec.name,
        "output_name": f"{NEW_STATE_PREFIX}{spec.name.removeprefix(STATE_PREFIX)}",
        "data_type": data_type,
        "dims": dims,
        "initial_state": [{"name": "zeros", "data_type": data_type, "dims": dims, "zero_data": True}],
    }
