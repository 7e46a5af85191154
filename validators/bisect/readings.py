"""Reading a model and a graph at their probes, both in the reference's terms.

Axes: b batch, n sequence, g chunk, c position in a chunk, s query/key width, e hidden width, w any width.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from flash_export.validators.backends import GRAPH
from flash_export.validators.bisect.quantities import restore_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from flash_export.bundle.bundle import Bundle
    from flash_export.data.batch import Batch, Outputs
    from flash_export.models.base import ModelConfig, ReferenceModel
    from flash_export.probes import Probe, ProbeMap
    from flash_export.runtime.runner import Runner
    from flash_export.validators.lengths import Cell


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


class Reader(Protocol):
    """Something that can be read at its probes."""

    def read(self, cell: Cell, inputs: Batch) -> Reading:
        """Run once."""
        ...


class ModelReader:
    """The reference model, in the precision that it has."""

    def __init__(self, model: ReferenceModel, runner: Runner) -> None:
        """Take a model and the runner that runs it."""
        self._model, self._runner = model, runner

    def read(self, cell: Cell, inputs: Batch) -> Reading:
        """Run the model and keep what its probes show."""
        arrays: dict[str, np.ndarray] = {}

        def store(name: str, values: Tensor) -> None:
            arrays[name] = (values.float() if values.dtype.itemsize < 4 else values).cpu().numpy()  # numpy has no bf16

        with self._model.read_probes(store):
            outputs = self._runner.run(inputs.to_model_inputs(masked=cell.masked))
        return Reading({**arrays, **outputs}, partial(restore_layout, self._model.config, seq_len=cell.seq_len))


class GraphReader:
    """The forward graph of a bundle in onnxruntime, with its probes as further outputs.

    What is read cannot be fused away, so the outputs are taken from a run of the graph as it is, and those that come
    with the probes are kept as ``read_outputs``.
    """

    def __init__(self, bundle: Bundle, probes: ProbeMap, config: ModelConfig, plain: Runner, probed: Runner) -> None:
        """Take a bundle and the two runners of its graph."""
        self._specs, self._probes, self._config = bundle.get_graph(GRAPH).inputs, probes, config
        self._plain, self._probed = plain, probed
        self.read_outputs: Outputs = {}

    def read(self, cell: Cell, inputs: Batch) -> Reading:
        """Run the graph once without and once with the probes."""
        feeds = inputs.to_inputs(self._specs)
        outputs, read = self._plain.run(feeds), self._probed.run(feeds)
        self.read_outputs = {name: read[name] for name in outputs}
        probes = self._probes.probes
        found = {probe.name: read[probe.tensor] for probe in probes if probe.tensor in read}
        return restore_reading({**found, **outputs}, self._probes, self._config, inputs)


def restore_reading(arrays: Mapping[str, np.ndarray], probes: ProbeMap, config: ModelConfig, inputs: Batch) -> Reading:
    """Return what a graph computed, by the names of its probes, as a reading in the reference's terms."""
    by_name = {probe.name: probe for probe in probes.probes}
    inverse_orders = {name: np.argsort(order) for name, order in probes.orders.items()}
    counts_padding = config.interface.padding == "counted"
    counts = np.full_like(inputs.lengths, inputs.seq_len) if counts_padding else inputs.lengths

    def restore(name: str, values: np.ndarray) -> np.ndarray:
        terms = restore_terms(values, by_name[name], inverse_orders, counts)
        return restore_layout(config, name, terms, inputs.seq_len)

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
