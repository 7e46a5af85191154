"""Reading a model and a graph at their probes, both in the reference's terms.

Axes: b batch, n sequence, g chunk, c position in a chunk, s query/key width, e hidden width, w any width.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from flash_export.probes import LOGITS, QUANTITIES, Point
from flash_export.validators.backends import GRAPH
from flash_export.validators.plan import build_graph_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from flash_export.bundle import Bundle
    from flash_export.models.base import ModelConfig, ReferenceModel
    from flash_export.probes import Probe, ProbeMap
    from flash_export.runtime.runner import Runner
    from flash_export.validators.plan import Cell, CellInputs


class Reading:
    """The probes of one run. Each is let go of when it is taken: together they are many times the model's memory."""

    def __init__(self, arrays: Mapping[str, np.ndarray], restore: Callable[[str, np.ndarray], np.ndarray]) -> None:
        """Keep what was read, and how to bring it into the reference's terms."""
        self._arrays, self._restore = dict(arrays), restore

    @property
    def names(self) -> set[str]:
        """Names of the probes that are still there."""
        return set(self._arrays)

    def take(self, name: str) -> np.ndarray:
        """Return a probe in fp64, in the reference's terms and layout, and forget it."""
        return self._restore(name, self._arrays.pop(name))


class Source(Protocol):
    """Something that can be read at its probes."""

    def read(self, cell: Cell, inputs: CellInputs) -> Reading:
        """Run once."""
        ...


class ModelSource:
    """The reference model, in the precision that it has."""

    def __init__(self, model: ReferenceModel, runner: Runner) -> None:
        """Take a model and the runner that runs it."""
        self._model, self._runner = model, runner

    def read(self, cell: Cell, inputs: CellInputs) -> Reading:
        """Run the model and keep what its probes show."""
        arrays: dict[str, np.ndarray] = {}

        def store(name: str, values: Tensor) -> None:
            arrays[name] = (values.float() if values.dtype.itemsize < 4 else values).cpu().numpy()  # numpy has no bf16

        with self._model.read_probes(store):
            feeds = {"input_ids": inputs.input_ids}
            if cell.masked:
                feeds["attention_mask"] = inputs.valid.astype(np.int64)
            arrays[LOGITS] = self._runner.run(feeds)[LOGITS]
        return Reading(arrays, partial(_restore_layout, seq_len=cell.seq_len))


class GraphSource:
    """The forward graph of a bundle in onnxruntime, with its probes as further outputs.

    What is read cannot be fused away, so the logits are taken from a run of the graph as it is, and those that come
    with the probes are kept as ``read_logits``.
    """

    def __init__(self, bundle: Bundle, probes: ProbeMap, config: ModelConfig, plain: Runner, probed: Runner) -> None:
        """Take a bundle and the two runners of its graph."""
        self._specs, self._probes, self._config = bundle.get_graph(GRAPH).inputs, probes, config
        self._plain, self._probed = plain, probed
        self.read_logits: np.ndarray | None = None

    def read(self, cell: Cell, inputs: CellInputs) -> Reading:
        """Run the graph once without and once with the probes."""
        feeds = build_graph_inputs(self._specs, inputs)
        logits = self._plain.run(feeds)[LOGITS]
        outputs = self._probed.run(feeds)
        self.read_logits = outputs[LOGITS]
        probes = self._probes.probes
        found = {probe.name: outputs[probe.tensor] for probe in probes if probe.tensor in outputs}
        return restore_reading({**found, LOGITS: logits}, self._probes, self._config, inputs)


def restore_reading(
    arrays: Mapping[str, np.ndarray], probes: ProbeMap, config: ModelConfig, inputs: CellInputs
) -> Reading:
    """Return what a graph computed, by the names of its probes, as a reading in the reference's terms."""
    seq_len = inputs.input_ids.shape[1]
    by_name = {probe.name: probe for probe in probes.probes}
    inverse_orders = {name: np.argsort(order) for name, order in probes.orders.items()}
    divides_by_valid = getattr(config, "mask_divisor", "valid") == "valid"
    counts = inputs.lengths if divides_by_valid else np.full_like(inputs.lengths, seq_len)

    def restore(name: str, values: np.ndarray) -> np.ndarray:
        return _restore_layout(name, restore_terms(values, by_name[name], inverse_orders, counts), seq_len)

    return Reading(arrays, restore)


def restore_terms(
    values: np.ndarray, probe: Probe, inverse_orders: Mapping[str, np.ndarray], counts: np.ndarray
) -> np.ndarray:
    """Bring values of a graph into the reference's terms.

    Args:
        values: What the graph computed.
        probe: How it is to be understood.
        inverse_orders: By the name of an order, where each index of the reference stands in the graph.
        counts: Number of tokens of each row, ``(b,)``.
    """
    restored = values.astype(np.float64) * probe.scale
    if probe.length_power:
        divisors = counts.astype(np.float64) ** probe.length_power
        restored *= divisors.reshape(-1, *[1] * (values.ndim - 1))
    return np.take(restored, inverse_orders[probe.order], axis=probe.axis) if probe.order else restored


def _restore_layout(name: str, values: np.ndarray, seq_len: int) -> np.ndarray:
    """Return tokens as ``(b, n, w)`` without the padding to whole chunks, the others without an axis for the head."""
    values, kind = values.astype(np.float64, copy=False), QUANTITIES[Point.parse(name).quantity].kind
    if kind == "tokens":
        joined = values.reshape(values.shape[0], -1, values.shape[-1])
        return joined[:, :seq_len]
    if kind == "sums" and values.ndim == len("bse"):  # of a bundle of an older version
        return values[:, None]
    return values.squeeze(2) if values.ndim == len("bghcw") else values
