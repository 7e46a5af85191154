"""The reference model behind the interface of the state graphs: it reads the whole text again for every token.

Slow, and the yardstick: its state is the text itself, so nothing that a state graph carries could be wrong in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flash_export.bundle.manifest import NEW_STATE_PREFIX, STATE_PREFIX, AxisRange, GraphSpec
from flash_export.errors import InputError
from flash_export.interface import SEQ, Lengths, Positions, TensorSpec, TokenIds
from flash_export.models.token_model import LOGITS, TOKENS
from flash_export.runtime.eager import EagerRunner
from flash_export.runtime.inputs import check_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flash_export.models.base import ReferenceModel


def describe_eager_graph(vocab_size: int, axes: Mapping[str, AxisRange]) -> GraphSpec:
    """Return the contract of a prefill graph whose state is ``position`` and ``tokens``, as long as a text may be."""
    max_seq_len = axes["seq"].max
    ids = TokenIds(vocab_size)
    state = (("position", ("batch", 1), Positions()), ("tokens", ("batch", max_seq_len), ids))
    return GraphSpec(
        file="",
        opset=0,
        precision="fp32",
        inputs=(
            TensorSpec(TOKENS, "int64", ("batch", "seq"), ids),
            TensorSpec("lengths", "int64", ("batch",), Lengths(SEQ)),
            *(TensorSpec(f"{STATE_PREFIX}{name}", "int64", shape, content) for name, shape, content in state),
        ),
        outputs=(
            TensorSpec(LOGITS, "float32", ("batch", "seq", vocab_size)),
            *(TensorSpec(f"{NEW_STATE_PREFIX}{name}", "int64", shape) for name, shape, _ in state),
        ),
        axes={**axes, "batch": AxisRange(1, axes["batch"].max)},
    )


class EagerStateRunner(EagerRunner):
    """Runs prefill and decode with the reference model, every row alone and over its whole text."""

    def __init__(self, model: ReferenceModel, graph: GraphSpec, *, threads: int | None = None) -> None:
        """Wrap a model; ``graph`` is what :func:`describe_eager_graph` says of it."""
        super().__init__(model, threads=threads)
        self._graph = graph

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return ``logits`` of the new tokens and the state; without ``lengths`` every row is full, as in decode.

        Raises:
            InputError: An input does not fit, or a text becomes longer than the bundle's longest sequence.
        """
        batch, seq_len = inputs[TOKENS].shape
        feeds = {"lengths": np.full(batch, seq_len), **inputs}
        check_inputs(self._graph, feeds)
        position, tokens = feeds["state.position"][:, 0], feeds["state.tokens"].copy()
        ends = position + feeds["lengths"]
        if ends.max() > tokens.shape[1]:
            raise InputError(
                f"seq_len={ends.max()} exceeds the bundle's maximum {tokens.shape[1]}, which this backend reads again "
                "for every token; use ort-cpu, or export again with a larger --max-seq-len"
            )
        logits = np.zeros((batch, seq_len, int(self._graph.outputs[0].shape[-1])), np.float32)
        for row, (start, end) in enumerate(zip(position, ends, strict=True)):
            tokens[row, start:end] = feeds[TOKENS][row, : end - start]
            logits[row, : end - start] = super().run({TOKENS: tokens[row : row + 1, :end]})[LOGITS][0, start:]
        return {LOGITS: logits, "new_state.position": ends[:, None], "new_state.tokens": tokens}
