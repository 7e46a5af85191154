"""Finding the first quantity that a graph computes wrongly, by reading it and the reference model block by block."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.bundle.bundle import reads_bundles
from flash_export.config import MAX_THREADS, check_count
from flash_export.errors import BundleError, ConfigError, InputError
from flash_export.limits import ERROR_BUDGETS, refuse_retired
from flash_export.runtime.backends import BACKENDS, TRT, find_target
from flash_export.suggest import describe_unknown
from flash_export.validators.backends import GRAPH
from flash_export.validators.bisect.budget import pick_coarser
from flash_export.validators.bisect.quantities import check_probes
from flash_export.validators.bisect.readings import GraphReader, ModelReader
from flash_export.validators.bisect.results import BisectReport
from flash_export.validators.bisect.runs import check_memory, compare_run, plan_runs
from flash_export.validators.failures import read_inputs
from flash_export.validators.lengths import Cell, check_lengths

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.models.base import ModelConfig, ReferenceModel
    from flash_export.progress import ProgressCallback
    from flash_export.validators.bisect.readings import Reader

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
    """

    seq_len: int | None = None
    batch: int | None = None
    backend: str = DEFAULT_BACKEND
    threads: int | None = None
    inputs: Path | None = None

    def __post_init__(self) -> None:
        """Check what does not depend on the bundle."""
        if self.inputs is not None and (self.seq_len is not None or self.batch is not None):
            raise ConfigError(
                "inputs and seq_len or batch were both given; the inputs have a length and a batch already"
            )
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
    graph, probes = bundle.get_graph(GRAPH), bundle.read_probes()
    for name, value in (("seq", options.seq_len), ("batch", options.batch)):
        if value is not None:
            check_lengths(graph, *((value,), None) if name == "seq" else (None, (value,)))
    for judged in (bundle, *(() if against is None else (against,))):
        refuse_retired(judged.get_graph(GRAPH).precision)
    precision = graph.precision
    if against is not None:
        if against.read_config() != bundle.read_config():
            raise ConfigError(f"{bundle.path} and {against.path} hold different models; compare bundles of one model")
        precision = pick_coarser(precision, against.get_graph(GRAPH).precision)

    model = bundle.load_model()
    check_probes(bundle, model.config, probes)
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
    runs = []
    with contextlib.ExitStack() as stack:
        actual = _open_graph(stack, bundle, model.config, options)
        reference: Reader
        eager: Reader | None = None
        if against is None:
            reference = _open_model(stack, model, "fp64", options)
            if precision in ERROR_BUDGETS:  # there is no eager model in few bits
                eager = _open_model(stack, model, precision, options)
        else:
            reference = _open_graph(stack, against, model.config, options)
        for index, cell in enumerate(cells):
            if progress:
                progress(index, len(cells), str(cell))
            runs.append(compare_run(cell, model.config, probes.probes, (reference, actual, eager), precision, inputs))
            if not runs[-1]:
                break
    name = FLOAT64_MODEL if against is None else str(against.path)
    return BisectReport(str(bundle.path), name, options.backend, tuple(runs))


def _open_model(
    stack: contextlib.ExitStack, model: ReferenceModel, precision: str, options: BisectOptions
) -> ModelReader:
    """Open a copy of the model in a precision."""
    from flash_export.runtime.eager import EagerRunner

    own = copy.deepcopy(model)
    return ModelReader(own, stack.enter_context(EagerRunner(own, threads=options.threads, precision=precision)))


def _open_graph(
    stack: contextlib.ExitStack, bundle: Bundle, config: ModelConfig, options: BisectOptions
) -> GraphReader:
    """Open the graph twice: as it is, and with its probes as outputs, as far as it has them."""
    from flash_export.runtime.ort import list_values

    graph, path, probes = bundle.get_graph(GRAPH), bundle.get_graph_path(GRAPH), bundle.read_probes()
    there, outputs = list_values(path), {spec.name for spec in graph.outputs}
    wanted = [probe.tensor for probe in probes.probes if probe.tensor in there and probe.tensor not in outputs]
    if not wanted:
        raise BundleError(f"{path} has none of the values that the bundle says it can be read at; export it again")
    target = find_target(bundle, options.backend, GRAPH)
    plain, probed = (
        stack.enter_context(target.open(threads=options.threads, inner_values=names)) for names in ((), tuple(wanted))
    )
    return GraphReader(bundle, probes, config, plain, probed)
