"""Reading a model and a graph that carries a state at one run of it, both in the reference's terms.

Axes: b batch, n token, w any width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from flash_export.bundle.manifest import NEW_STATE_PREFIX, STATE_PREFIX
from flash_export.probes import Point
from flash_export.validators.bisect.quantities import find_output, get_quantity
from flash_export.validators.bisect.readings import restore_terms
from flash_export.validators.lengths import Cell

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.data.batch import Batch
    from flash_export.models.base import ModelConfig
    from flash_export.models.carried_state import CarriedState
    from flash_export.probes import Probe, ProbeMap
    from flash_export.runtime.runner import Runner
    from flash_export.validators.bisect.readings import Reader
    from flash_export.validators.bisect.steps import Step

STATE_POSITION = f"{STATE_PREFIX}position"


class TextReading:
    """What a model computes for every token of some texts, by which a state after any number of them is known."""

    def __init__(self, config: ModelConfig, carried: CarriedState, reader: Reader, texts: Batch) -> None:
        """Run the model once."""
        reading = reader.read(Cell(texts.size, texts.seq_len, masked=False), texts)
        names = [name for name in reading.names if get_quantity(config, name).kind == "tokens"]
        self._tokens = {name: reading.take(name) for name in names}
        self._config, self._carried = config, carried

    @property
    def tokens(self) -> Mapping[str, np.ndarray]:
        """Quantities ``(b, n, w)`` of whole texts, by name."""
        return self._tokens

    def read(self, step: Step) -> dict[str, np.ndarray]:
        """Return what a run of a graph computes, by the names of its probes."""
        found = {name: step.cut(values) for name, values in self._tokens.items() if Point.parse(name).block is None}
        for block in range(self._config.num_blocks):
            tokens = self._get_block(block)
            cut = {name: step.cut(values) for name, values in tokens.items()}
            state = self._carried.settle(self._carried.derive(tokens, step.ends), step.ends)
            for name, values in {**self._carried.complete(cut), **state}.items():
                found[f"layers.{block}.{name}"] = values
        return found

    def derive_state(self, step: Step) -> dict[str, np.ndarray]:
        """Return what the blocks carry before a run, by the names of probes."""
        return {
            f"layers.{block}.{name}": values
            for block in range(self._config.num_blocks)
            for name, values in self._carried.derive(self._get_block(block), step.starts).items()
        }

    def _get_block(self, block: int) -> dict[str, np.ndarray]:
        points = {name: Point.parse(name) for name in self._tokens}
        return {point.quantity: self._tokens[name] for name, point in points.items() if point.block == block}


class StepReader(Protocol):
    """Something that can be read at a run."""

    def read(self, step: Step, texts: Batch, before: TextReading) -> dict[str, np.ndarray]:
        """Return quantities of the run's tokens and of the state after it, by the names of probes."""
        ...


class GraphStepReader:
    """A graph that carries a state, with its probes as further outputs."""

    def __init__(
        self,
        graph: GraphSpec,
        probes: ProbeMap,
        config: ModelConfig,
        carried: CarriedState,
        runners: tuple[Runner, ...],
    ) -> None:
        """Take a graph and two runners of it: as it is, and with its probes as outputs."""
        self._graph, self._config, self._carried = graph, config, carried
        self._probes = {probe.name: probe for probe in probes.probes}
        self._orders = {name: np.array(order) for name, order in probes.orders.items()}
        self._inverse_orders = {name: np.argsort(order) for name, order in self._orders.items()}
        self._plain, self._probed = runners

    def read(self, step: Step, texts: Batch, before: TextReading) -> dict[str, np.ndarray]:
        """Run the graph once without and once with the probes, from what the reference says of the text before."""
        feeds = self._build_feeds(step, texts, before)
        outputs, read = self._plain.run(feeds), self._probed.run(feeds)
        arrays = {**read, **outputs}
        found = {
            name: restore_terms(arrays[probe.tensor], probe, self._inverse_orders, step.lengths)
            for name, probe in self._probes.items()
            if probe.tensor in arrays
        }
        return self._settle(found, step)

    def _build_feeds(self, step: Step, texts: Batch, before: TextReading) -> dict[str, np.ndarray]:
        (ids,) = texts.arrays.values()
        feeds = {
            self._graph.inputs[0].name: step.cut(ids),
            "lengths": step.lengths,
            STATE_POSITION: step.starts[:, None],
        }
        for name, values in before.derive_state(step).items():
            if (probe := self._probes.get(name)) is not None:
                feeds[probe.tensor.replace(NEW_STATE_PREFIX, STATE_PREFIX, 1)] = self._take_terms(values, probe)
        return {
            spec.name: np.ascontiguousarray(feeds[spec.name].astype(spec.dtype, copy=False))
            for spec in self._graph.inputs
        }

    def _take_terms(self, values: np.ndarray, probe: Probe) -> np.ndarray:
        """Bring values of the reference into the graph's terms."""
        ordered = np.take(values, self._orders[probe.order], axis=probe.axis) if probe.order else values
        return ordered / probe.scale

    def _settle(self, found: dict[str, np.ndarray], step: Step) -> dict[str, np.ndarray]:
        """Return tokens as ``(b, n, w)``, and states in their one form."""
        settled: dict[str, np.ndarray] = {}
        carried: dict[int, dict[str, np.ndarray]] = {}
        for name, values in found.items():
            point = Point.parse(name)
            if find_output(self._config, name) is None and self._probes[name].tensor.startswith(NEW_STATE_PREFIX):
                carried.setdefault(point.block or 0, {})[point.quantity] = values
            else:
                settled[name] = values.reshape(len(values), -1, values.shape[-1])[:, : step.num_tokens]
        for block, state in carried.items():
            for name, values in self._carried.settle(state, step.ends).items():
                settled[f"layers.{block}.{name}"] = values
        return settled
