"""Finding the first quantity that a graph computes wrongly, by reading it and the reference model block by block."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.bundle.bundle import reads_bundles
from flash_export.config import FORWARD, GRAPHS, MAX_THREADS, check_count
from flash_export.errors import BundleError, ConfigError, InputError
from flash_export.interface import SEQ
from flash_export.limits import ERROR_BUDGETS, refuse_retired
from flash_export.runtime.backends import BACKENDS, TRT, find_target
from flash_export.suggest import describe_unknown
from flash_export.validators.bisect.bisect_state import StateBisection, get_carried_state
from flash_export.validators.bisect.budget import pick_coarser
from flash_export.validators.bisect.quantities import check_probes
from flash_export.validators.bisect.readings import GraphReader, ModelReader
from flash_export.validators.bisect.results import BisectReport
from flash_export.validators.bisect.runs import check_memory, compare_run, plan_runs
from flash_export.validators.bisect.step_readings import GraphStepReader
from flash_export.validators.failures import read_inputs
from flash_export.validators.lengths import Cell, check_lengths

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import GraphSpec
    from flash_export.models.base import ReferenceModel
    from flash_export.progress import ProgressCallback
    from flash_export.runtime.runner import Runner
    from flash_export.validators.bisect.results import Run

DEFAULT_BACKEND = "ort-cpu"
FLOAT64_MODEL = "float64 model"


@dataclass(frozen=True)
class BisectOptions:
    """What is tried.

    Attributes:
        seq_len: Length of the input; None: one at which every part of the model has something to do,
            then 1 and one chunk.
        batch: Number of rows; None: 2, as far as the graph allows.
        backend: ``ort-cpu`` or ``ort-cuda``.
        threads: Threads of one operator on the CPU; None: what each runtime chooses.
        inputs: File with the inputs of a check that failed, in place of lengths and batch; None: random inputs.
        graph: ``forward``, or a graph that carries a state, whose ``seq_len`` are the tokens of a run, and whose rows
            start at positions of their own.
    """

    seq_len: int | None = None
    batch: int | None = None
    backend: str = DEFAULT_BACKEND
    threads: int | None = None
    inputs: Path | None = None
    graph: str = FORWARD

    def __post_init__(self) -> None:
        """Check what does not depend on the bundle."""
        if self.inputs is not None and (self.seq_len is not None or self.batch is not None):
            raise ConfigError(
                "inputs and seq_len or batch were both given; the inputs have a length and a batch already"
            )
        if self.graph not in GRAPHS:
            raise ConfigError(describe_unknown("graph", self.graph, GRAPHS))
        if self.inputs is not None and self.graph != FORWARD:
            raise ConfigError(f"inputs are whole texts, which {self.graph} does not take; leave one of them out")
        check_count("threads", self.threads, MAX_THREADS)
        readable = [name for name, backend in BACKENDS.items() if backend.shows_inside]
        if self.backend.split(":")[0] == TRT:
            raise ConfigError(
                f"backend {self.backend!r} cannot be read inside: an engine shows its outputs alone, and would have to "
                f"be built anew with the probes as outputs; use one of {', '.join(readable)}"
            )
        if self.backend not in readable:
            raise ConfigError(describe_unknown("backend", self.backend, readable))


@reads_bundles
def bisect_bundle(
    bundle: Bundle,
    options: BisectOptions | None = None,
    *,
    against: Bundle | None = None,
    progress: ProgressCallback | None = None,
) -> BisectReport:
    """Find the first quantity that the graph of a bundle computes wrongly.

    The reference is the model in fp64. How far the eager model in the graph's precision is from it tells what rounding
    does at each quantity, and so what is a fault.

    Args:
        bundle: The exported model.
        options: What is tried; None: the defaults.
        against: Another bundle of the same model, whose graph is the reference instead.
        progress: Called before each run.

    Raises:
        InputError: A length or batch lies outside of the graph's range, or does not fit into memory.
        BundleError: A bundle does not say where its graph can be read, or has no value that can be.
        ConfigError: The two bundles hold different models, or one is in a scheme that is no longer judged.
        BackendUnavailableError: onnxruntime, or the provider, cannot be used here.
    """
    options = options or BisectOptions()
    graph = bundle.get_graph(options.graph)
    _check_sizes(graph, options)
    for judged in (bundle, *(() if against is None else (against,))):
        refuse_retired(judged.get_graph(options.graph).precision)
    precision = graph.precision
    if against is not None:
        if against.read_config() != bundle.read_config():
            raise ConfigError(f"{bundle.path} and {against.path} hold different models; compare bundles of one model")
        precision = pick_coarser(precision, against.get_graph(options.graph).precision)

    model = bundle.load_model()
    if options.graph != FORWARD:
        get_carried_state(model.config, options.graph)
    check_probes(bundle, model.config, bundle.read_probes(options.graph))
    with contextlib.ExitStack() as stack:
        runs = _Bisection(stack, bundle, against, model, precision, options, progress).find_runs()
    name = FLOAT64_MODEL if against is None else str(against.path)
    return BisectReport(str(bundle.path), name, options.backend, runs, options.graph)


def _check_sizes(graph: GraphSpec, options: BisectOptions) -> None:
    """Check length and batch that were asked for.

    Raises:
        ConfigError: There is a length, and the graph takes one token.
        InputError: One lies outside of the graph's range.
    """
    if options.seq_len is not None and SEQ not in graph.axes:
        raise ConfigError(f"seq_len={options.seq_len} was given, {graph.file} takes one token; leave seq_len out")
    if options.seq_len is not None:
        check_lengths(graph, (options.seq_len,), None)
    if options.batch is not None:
        check_lengths(graph, None, (options.batch,))


@dataclass(frozen=True)
class _Bisection:
    """What is compared: the graph of a bundle with the model, or with that of another bundle."""

    stack: contextlib.ExitStack
    bundle: Bundle
    against: Bundle | None
    model: ReferenceModel
    precision: str
    options: BisectOptions
    progress: ProgressCallback | None

    def find_runs(self) -> tuple[Run, ...]:
        """Compare runs, up to the first with a fault."""
        return self._find_text_runs() if self.options.graph == FORWARD else self._find_state_runs()

    def _find_text_runs(self) -> tuple[Run, ...]:
        """Compare whole texts."""
        options, config, graph = self.options, self.model.config, self.bundle.get_graph()
        inputs = None
        if options.inputs is not None:
            inputs = read_inputs(options.inputs, graph, config.interface)
            if inputs.is_padded and not graph.has_mask:
                raise InputError(
                    f"{options.inputs} has padded rows, and the graph takes no mask; bisect without --inputs"
                )
            cells = [Cell(inputs.size, inputs.seq_len, inputs.is_padded)]
        else:
            cells = plan_runs(graph, config, options.seq_len, options.batch)
        for cell in cells:
            check_memory(config, cell)
        actual = self._open_text_reader(self.bundle)
        reference = self._open_model("fp64") if self.against is None else self._open_text_reader(self.against)
        readers = (reference, actual, self._open_eager())
        probes, runs = self.bundle.read_probes().probes, []
        for index, cell in enumerate(cells):
            if self.progress:
                self.progress(index, len(cells), str(cell))
            runs.append(compare_run(cell, config, probes, readers, self.precision, inputs))
            if not runs[-1]:
                break
        return tuple(runs)

    def _find_state_runs(self) -> tuple[Run, ...]:
        """Compare runs from positions inside texts."""
        options, config = self.options, self.model.config
        carried = get_carried_state(config, options.graph)

        def open_reader(one: Bundle) -> GraphStepReader:
            known = one.read_probes(options.graph)
            return GraphStepReader(one.get_graph(options.graph), known, config, carried, self._open_graph(one))

        models = (self._open_model("fp64"), self._open_eager())
        graphs = (open_reader(self.bundle), None if self.against is None else open_reader(self.against))
        probes = self.bundle.read_probes(options.graph).probes
        bisection = StateBisection(config, carried, probes, self.precision, models, graphs)
        graph = self.bundle.get_graph(options.graph)
        return bisection.run(options.graph, graph, options.seq_len, options.batch, self.progress)

    def _open_eager(self) -> ModelReader | None:
        """Open the model in the graph's precision; None: against another graph, or there is none in few bits."""
        has_eager = self.against is None and self.precision in ERROR_BUDGETS
        return self._open_model(self.precision) if has_eager else None

    def _open_model(self, precision: str) -> ModelReader:
        """Open a copy of the model in a precision."""
        from flash_export.runtime.eager import EagerRunner

        own = copy.deepcopy(self.model)
        runner = EagerRunner(own, threads=self.options.threads, precision=precision)
        return ModelReader(own, self.stack.enter_context(runner))

    def _open_text_reader(self, bundle: Bundle) -> GraphReader:
        return GraphReader(bundle, bundle.read_probes(), self.model.config, *self._open_graph(bundle))

    def _open_graph(self, bundle: Bundle) -> tuple[Runner, Runner]:
        """Open the graph twice: as it is, and with its probes as outputs, as far as it has them."""
        from flash_export.runtime.ort import list_values

        options = self.options
        graph, path = bundle.get_graph(options.graph), bundle.get_graph_path(options.graph)
        there, outputs = list_values(path), {spec.name for spec in graph.outputs}
        probes = bundle.read_probes(options.graph).probes
        wanted = [probe.tensor for probe in probes if probe.tensor in there and probe.tensor not in outputs]
        if not wanted:
            raise BundleError(f"{path} has none of the values that the bundle says it can be read at; export it again")
        target = find_target(bundle, options.backend, options.graph)
        plain, probed = (
            self.stack.enter_context(target.open(threads=options.threads, inner_values=names))
            for names in ((), tuple(wanted))
        )
        return plain, probed
