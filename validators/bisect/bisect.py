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
    from flash_export.probes import Probe
    from flash_export.progress import ProgressCallback
    from flash_export.runtime.runner import Runner
    from flash_export.validators.bisect.readings import Reader
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
    probes = bundle.read_probes(options.graph)
    check_probes(bundle, model.config, probes)
    with contextlib.ExitStack() as stack:
        find_runs = _find_runs if options.graph == FORWARD else _find_state_runs
        runs = find_runs(stack, bundle, against, model, probes.probes, precision, options, progress)
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


def _find_runs(
    stack: contextlib.ExitStack,
    bundle: Bundle,
    against: Bundle | None,
    model: ReferenceModel,
    probes: tuple[Probe, ...],
    precision: str,
    options: BisectOptions,
    progress: ProgressCallback | None,
) -> tuple[Run, ...]:
    """Compare whole texts, up to the first run with a fault."""
    graph = bundle.get_graph()
    inputs = None
    if options.inputs is not None:
        inputs = read_inputs(options.inputs, graph, model.config.interface)
        if inputs.is_padded and not graph.has_mask:
            raise InputError(f"{options.inputs} has padded rows, and the graph takes no mask; bisect without --inputs")
        cells = [Cell(inputs.size, inputs.seq_len, inputs.is_padded)]
    else:
        cells = plan_runs(graph, model.config, options.seq_len, options.batch)
    for cell in cells:
        check_memory(model.config, cell)
    actual = GraphReader(bundle, bundle.read_probes(), model.config, *_open_graph(stack, bundle, options))
    reference: Reader
    eager: Reader | None = None
    if against is None:
        reference = _open_model(stack, model, "fp64", options)
        if precision in ERROR_BUDGETS:  # there is no eager model in few bits
            eager = _open_model(stack, model, precision, options)
    else:
        reference = GraphReader(against, against.read_probes(), model.config, *_open_graph(stack, against, options))
    runs = []
    for index, cell in enumerate(cells):
        if progress:
            progress(index, len(cells), str(cell))
        runs.append(compare_run(cell, model.config, probes, (reference, actual, eager), precision, inputs))
        if not runs[-1]:
            break
    return tuple(runs)


def _find_state_runs(
    stack: contextlib.ExitStack,
    bundle: Bundle,
    against: Bundle | None,
    model: ReferenceModel,
    probes: tuple[Probe, ...],
    precision: str,
    options: BisectOptions,
    progress: ProgressCallback | None,
) -> tuple[Run, ...]:
    """Compare runs from positions inside texts, up to the first with a fault."""
    carried = get_carried_state(model.config, options.graph)

    def open_reader(one: Bundle) -> GraphStepReader:
        known = one.read_probes(options.graph)
        runners = _open_graph(stack, one, options)
        return GraphStepReader(one.get_graph(options.graph), known, model.config, carried, runners)

    has_eager = against is None and precision in ERROR_BUDGETS
    models = (
        _open_model(stack, model, "fp64", options),
        _open_model(stack, model, precision, options) if has_eager else None,
    )
    graphs = (open_reader(bundle), None if against is None else open_reader(against))
    bisection = StateBisection(model.config, carried, probes, precision, models, graphs)
    return bisection.run(options.graph, bundle.get_graph(options.graph), options.seq_len, options.batch, progress)


def _open_model(
    stack: contextlib.ExitStack, model: ReferenceModel, precision: str, options: BisectOptions
) -> ModelReader:
    """Open a copy of the model in a precision."""
    from flash_export.runtime.eager import EagerRunner

    own = copy.deepcopy(model)
    return ModelReader(own, stack.enter_context(EagerRunner(own, threads=options.threads, precision=precision)))


def _open_graph(stack: contextlib.ExitStack, bundle: Bundle, options: BisectOptions) -> tuple[Runner, Runner]:
    """Open the graph twice: as it is, and with its probes as outputs, as far as it has them."""
    from flash_export.runtime.ort import list_values

    graph, path = bundle.get_graph(options.graph), bundle.get_graph_path(options.graph)
    there, outputs = list_values(path), {spec.name for spec in graph.outputs}
    probes = bundle.read_probes(options.graph).probes
    wanted = [probe.tensor for probe in probes if probe.tensor in there and probe.tensor not in outputs]
    if not wanted:
        raise BundleError(f"{path} has none of the values that the bundle says it can be read at; export it again")
    target = find_target(bundle, options.backend, options.graph)
    plain, probed = (
        stack.enter_context(target.open(threads=options.threads, inner_values=names)) for names in ((), tuple(wanted))
    )
    return plain, probed
