"""Finding the first quantity that a graph which carries a state computes wrongly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from flash_export.data.sources import Data, RandomSource
from flash_export.errors import ConfigError
from flash_export.validators.bisect.deviation import build_region, measure_deviation
from flash_export.validators.bisect.quantities import get_quantity, rank_probe
from flash_export.validators.bisect.results import ProbeRow, Run
from flash_export.validators.bisect.runs import check_memory, compare_probe
from flash_export.validators.bisect.step_readings import TextReading
from flash_export.validators.bisect.steps import plan_steps
from flash_export.validators.lengths import Cell, build_batch
from flash_export.validators.shape_checks import describe_exception

if TYPE_CHECKING:
    from flash_export.bundle.manifest import GraphSpec
    from flash_export.models.base import ModelConfig
    from flash_export.models.carried_state import CarriedState
    from flash_export.probes import Probe
    from flash_export.progress import ProgressCallback
    from flash_export.validators.bisect.readings import Reader
    from flash_export.validators.bisect.step_readings import GraphStepReader
    from flash_export.validators.bisect.steps import Step


def get_carried_state(config: ModelConfig, graph: str) -> CarriedState:
    """Return what a family carries.

    Raises:
        ConfigError: It does not say what a state means.
    """
    if config.carried_state is None:
        raise ConfigError(
            f"graph {graph} of family {config.model_type} cannot be read inside; bisect the graph forward, and "
            "validate the others"
        )
    return config.carried_state


class StateBisection:
    """Compares the runs of one graph with the model."""

    def __init__(
        self,
        config: ModelConfig,
        carried: CarriedState,
        probes: tuple[Probe, ...],
        precision: str,
        models: tuple[Reader, Reader | None],
        graphs: tuple[GraphStepReader, GraphStepReader | None],
    ) -> None:
        """Take what is read.

        Args:
            config: Config of the model.
            carried: What its graphs carry.
            probes: What the graph can be read at.
            precision: Precision of the graph.
            models: The model in fp64, and in the graph's precision where there is one.
            graphs: The graph, and another that it is compared with in place of the model; None: the model.
        """
        self._config, self._carried, self._precision = config, carried, precision
        self._probes = sorted(probes, key=lambda probe: rank_probe(config, probe.name))
        self._models, self._graphs = models, graphs

    def run(
        self, name: str, spec: GraphSpec, num_tokens: int | None, batch: int | None, progress: ProgressCallback | None
    ) -> tuple[Run, ...]:
        """Return the runs, up to the first with a fault."""
        steps, runs = plan_steps(name, spec, self._config.interface.window, num_tokens, batch), []
        for step in steps:
            check_memory(self._config, Cell(len(step.starts), step.text_len, masked=False))
        for index, step in enumerate(steps):
            if progress:
                progress(index, len(steps), f"{len(step.starts)} x {step.num_tokens}")
            runs.append(self._compare(step))
            if not runs[-1]:
                break
        return tuple(runs)

    def _compare(self, step: Step) -> Run:
        carried = self._carried
        size = len(step.starts)
        texts = build_batch(Cell(size, step.text_len, masked=False), Data(RandomSource(self._config.interface)))
        model, eager_model = self._models
        exact = TextReading(self._config, carried, model, texts)
        eager = TextReading(self._config, carried, eager_model, texts) if eager_model else None
        graph, other = self._graphs
        starts = tuple(step.starts.tolist())
        try:
            actual = graph.read(step, texts, exact)
            expected = other.read(step, texts, exact) if other else exact.read(step)
        except Exception as error:  # whatever the runtime raises is what is wrong with the graph
            return Run(size, step.num_tokens, False, (), describe_exception(error), starts)
        rounded = eager.read(step) if eager else {}
        rows = []
        for probe in self._probes:
            name, quantity = probe.name, get_quantity(self._config, probe.name)
            if name not in actual or name not in expected:
                note = "the graph has no such value"
                rows.append(ProbeRow(name, probe.tensor, "missing", note=note, label=quantity.label))
                continue
            noise = None
            if eager is not None:
                region = build_region(quantity, expected[name].shape, step.valid)
                noise = measure_deviation(expected[name], rounded[name], region).error
                if name in exact.tokens:  # of a few tokens alone, rounding tells little
                    everywhere = np.ones((1,) * exact.tokens[name].ndim, dtype=bool)
                    whole = measure_deviation(exact.tokens[name], eager.tokens[name], everywhere).error
                    noise = max(noise, whole) if math.isfinite(whole) else noise
            rows.append(
                compare_probe(probe, quantity, expected[name], actual[name], noise, step.valid, self._precision)
            )
        return Run(size, step.num_tokens, False, tuple(rows), "", starts)
