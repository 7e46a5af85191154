"""Texts written in the server, by continuous batching: a request is a prompt, its replies are the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.config import PREFILL
from flash_export.errors import BundleError, ConfigError
from flash_export.generation.batcher import DEFAULT_SLOTS, LENGTH, STOP
from flash_export.generation.state import State
from flash_export.generation.state_graphs import check_state_graphs, list_state_graphs
from flash_export.interface import BATCH
from flash_export.models.token_model import TOKENS as INPUT_IDS
from flash_export.serving.folder import check_precision
from flash_export.serving.model_config import has_batch_axis
from flash_export.serving.options import GENERATE
from flash_export.serving.python_model import describe_python_model

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.generation.batcher import End
    from flash_export.serving.folder import ModelFolder
    from flash_export.serving.options import TritonOptions

TOKENS, END = "tokens", "end"
# What ``end`` says: more tokens will come, or why these were the last. Text would not pass: see tensors.py.
END_CODES: dict[End | None, int] = {None: 0, STOP: 1, LENGTH: 2}
SLOTS, MAX_WAITING, TIMEOUT_S = "slots", "max_waiting", "timeout_s"


def describe_generate(bundle: Bundle, name: str, options: TritonOptions) -> ModelFolder:
    """Describe a model that answers a prompt with new tokens as they come.

    Raises:
        BundleError: The model cannot generate, its state grows with the text, or the graphs take one batch.
    """
    if not bundle.manifest.interface.is_causal:
        raise BundleError(
            f"{bundle.path} holds a model that is not causal: it sees a text as a whole and cannot generate one; serve "
            "it with --form forward"
        )
    check_state_graphs(bundle)
    prefill = bundle.get_graph(PREFILL)
    if not has_batch_axis(prefill):
        raise BundleError(f"{prefill.file} takes one batch alone; export it again without --batch")
    if State.zeros(prefill, 1).growing:
        raise BundleError(
            f"the state of {prefill.file} grows with the text, so that memory for many is not known beforehand; serve "
            "a model whose state has a constant size"
        )
    for graph in list_state_graphs(bundle):
        check_precision(bundle, bundle.get_graph(graph), options)
    limit = prefill.axes[BATCH].max
    slots = min(DEFAULT_SLOTS, limit) if options.slots is None else options.slots
    if slots > limit:
        raise ConfigError(f"slots={slots} is not usable; {prefill.file} takes 1 to {limit} rows")
    config = {
        "name": name,
        "max_batch_size": 0,
        "input": [{"name": INPUT_IDS, "data_type": "TYPE_INT64", "dims": [-1]}],
        "output": [
            {"name": TOKENS, "data_type": "TYPE_INT64", "dims": [-1]},
            {"name": END, "data_type": "TYPE_INT32", "dims": [1]},
        ],
        "model_transaction_policy": {"decoupled": True},
    }
    settings = {SLOTS: slots, MAX_WAITING: options.max_waiting, TIMEOUT_S: options.timeout_s}
    return describe_python_model(
        bundle, PREFILL, config, options, form=GENERATE, module="generate_model", settings=settings
    )
