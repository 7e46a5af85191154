"""Validating a bundle: every backend against the reference in float64, over a range of batches and lengths."""

from __future__ import annotations

import contextlib
import copy
import logging
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from flash_export.bundle.bundle import MANIFEST_FILE, reads_bundles
from flash_export.config import ORIGINAL
from flash_export.data.heldout import open_heldout
from flash_export.data.sources import Data, RandomSource
from flash_export.errors import BackendUnavailableError, ConfigError
from flash_export.files import hash_file
from flash_export.interface import SEQ
from flash_export.limits import ERROR_BUDGETS, refuse_retired
from flash_export.printable import format_path
from flash_export.tasks.registry import get_task
from flash_export.validators.backends import GRAPH, list_backends
from flash_export.validators.diagnosis import diagnose_rows
from flash_export.validators.environment import describe_environment
from flash_export.validators.failures import FailureFolder
from flash_export.validators.footprint import measure_footprint, plan_footprint
from flash_export.validators.heldout_score import compare_scores
from flash_export.validators.invariances import check_invariances
from flash_export.validators.journal import Journal, StepResult
from flash_export.validators.lengths import RECORDED, Cell, Plan, check_lengths, make_plan
from flash_export.validators.results import HELDOUT_SCORE, Row, ValidationReport
from flash_export.validators.shape_checks import CellChecker, OpenBackend, describe_exception
from flash_export.validators.symbolic_shapes import SYMBOLIC_SHAPE, check_symbolic_shapes
from flash_export.validators.validation_options import INVARIANCE_CHECKS, ValidationOptions
from flash_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import GraphSpec
    from flash_export.data.heldout import Heldout
    from flash_export.limits import Limit
    from flash_export.models.base import ReferenceModel
    from flash_export.progress import ProgressCallback
    from flash_export.runtime.runner import Runner
    from flash_export.validators.backends import Backend
    from flash_export.validators.footprint import FootprintRequest

logger = logging.getLogger(__name__)
# Files are in the key of a journal by their hashes, and what is kept changes no row.
_NOT_IN_KEY = ("onnx_files", "data", "failures", "checkpoint", "original_python")


@dataclass(frozen=True)
class Step:
    """A part of a validation that is done as a whole.

    Attributes:
        label: What it is, unique in its validation.
        work: How much it is, in positions.
        run: Does it.
    """

    label: str
    work: int
    run: Callable[[], StepResult]


@reads_bundles
def validate_bundle(
    bundle: Bundle,
    options: ValidationOptions | None = None,
    progress: ProgressCallback | None = None,
    *,
    journal_path: Path | None = None,
    resume: bool = False,
) -> ValidationReport:
    """Compare every backend with the reference.

    Args:
        bundle: The exported model.
        options: What is compared; None: the defaults.
        progress: Called before each step.
        journal_path: File that finished steps are kept in while the validation runs; the caller removes it once the
            report is safe.
        resume: Take finished steps from that file.

    Raises:
        InputError: A length or batch that was asked for lies outside of the graph's range.
        ConfigError: A backend or plan that was asked for does not exist, the journal is of another validation, or the
            bundle is in a scheme that is no longer judged.
        BundleError: A file of the bundle cannot be used.
    """
    options = options or ValidationOptions()
    graph = bundle.get_graph(GRAPH)
    refuse_retired(graph.precision)
    quantization = bundle.read_quantization()
    limit = options.get_limit(graph.precision, quantization)
    precision = graph.precision if graph.precision in ERROR_BUDGETS else "fp32"
    check_lengths(graph, options.seq_lens, options.batches)
    if options.max_seq_len is not None:
        check_lengths(graph, (options.max_seq_len,), None)
    backends = list_backends(bundle, options.backends, onnx_files=options.onnx_files, threads=options.threads)
    interface = bundle.manifest.interface
    heldout = open_heldout(bundle, options.data)
    data = Data(RandomSource(interface), None if heldout is None else heldout.source)
    plan = _plan(bundle, backends, options, 0 if data.recorded is None else data.recorded.rows.seq_len)
    _check_named(options.checks, graph, data)
    with contextlib.ExitStack() as stack:
        model = bundle.load_model()
        reference, eager, facts = _open_models(stack, bundle, model, precision, options)
        journal = Journal(journal_path, _identify(bundle, options, plan, backends), resume=resume)
        opened, skipped = _open_backends(stack, bundle, backends, eager, limit, options)
        failures = None if options.failures is None else FailureFolder(options.failures, logger)
        checker = CellChecker(
            model.config, reference, eager, plan.latency_budget_s, plan.is_default, data=data, failures=failures
        )
        steps = list(_list_steps(plan, checker, opened, heldout, graph))
        steps += _list_footprints(plan, checker, opened, bundle, options)
        results = list(_run_steps(steps, journal, progress))
        if opened:
            _check_promised(options.checks, results)
        environment = describe_environment(bundle, model, options.threads) | facts
        environment |= {"plan": plan.name} | limit.describe()
        if computed := dict.fromkeys(said for one in opened if (said := one.backend.describe_arithmetic())):
            environment["computed"] = " ".join(computed)
        if quantization is not None:
            environment["loss_when_quantized"] = f"{quantization.loss:.2%} on {quantization.data}"
    order = {backend.name: index for index, backend in enumerate(backends)}
    rows = sorted((row for result in results for row in result.rows), key=lambda row: order[row.backend])
    scores = next((result.scores for result in results if result.scores), None)
    return ValidationReport(
        format_path(bundle.path),
        environment,
        (*rows, *skipped),
        get_task(interface.task).measures,
        interface.unit,
        scores,
        # Few bits are wrong here and there; what they were made from was validated, and traced as this was.
        () if quantization is not None else diagnose_rows(rows, interface.chunk_size),
        tuple(result.footprint for result in results if result.footprint is not None),
        options.list_arguments(),
        tuple(map(format_path, options.onnx_files)),
    )


def _open_models(
    stack: contextlib.ExitStack, bundle: Bundle, model: ReferenceModel, precision: str, options: ValidationOptions
) -> tuple[Runner, Runner, dict[str, str]]:
    """Open the model that accuracy is measured against, and the one whose rounding is the noise floor.

    The former is in float64, and the latter in the precision of the graph; no library's code is run in half precision.

    Returns:
        The two, and what the report is to say of them.
    """
    from flash_export.runtime.eager import EagerRunner

    def open_eager(own: ReferenceModel, rounding: str) -> Runner:
        return stack.enter_context(EagerRunner(own, threads=options.threads, precision=rounding))

    if options.checkpoint is None:
        return open_eager(copy.deepcopy(model), "fp64"), open_eager(model, precision), {}
    from flash_export.originals.process import OriginalCheckpoint, OriginalRunner

    source = OriginalCheckpoint.read(bundle, options.checkpoint, options.original_python)
    reference = stack.enter_context(OriginalRunner(source, precision="fp64", threads=options.threads))
    facts = {"original": reference.description}
    if precision != "fp32":
        return reference, open_eager(model, precision), facts
    return reference, stack.enter_context(OriginalRunner(source, threads=options.threads)), facts


def _plan(bundle: Bundle, backends: Sequence[Backend], options: ValidationOptions, data_len: int) -> Plan:
    graph = bundle.get_graph(GRAPH)
    plan = make_plan(
        options.plan,
        graph,
        bundle.manifest.interface,
        profile_lens=_list_profile_lengths(backends),
        data_len=data_len,
        max_seq_len=options.max_seq_len,
    )
    batches = options.batches or plan.batches
    if options.seq_lens is not None:
        plan = Plan("lengths", options.seq_lens, is_default=False, checks=(HELDOUT_SCORE,))
    if options.checks:
        cells = tuple(cell for name in options.checks if (cell := Cell.parse(name)) is not None)
        for cell in cells:
            check_lengths(graph, (cell.seq_len,), (cell.batch,))
        plan = Plan("checks", (), cells=cells, is_default=False, checks=options.checks)
    budget_s = plan.latency_budget_s if options.latency_budget_s is None else options.latency_budget_s
    if options.against == ORIGINAL:  # it answers through a pipe
        budget_s = 0.0
    return replace(plan, batches=batches, latency_budget_s=budget_s)


def _check_named(names: Sequence[str], graph: GraphSpec, data: Data) -> None:
    """Check that what was asked for by name can be done as it is named.

    Raises:
        ConfigError: It takes a mask or held-out data that is not there.
    """
    for name in names:
        cell = Cell.parse(name)
        if data.recorded is None and (name == HELDOUT_SCORE or (cell is not None and cell.inputs == RECORDED)):
            raise ConfigError(f"check {name} needs held-out data, and the bundle has none; give it with --data FILE")
        if cell is not None and cell.masked and not graph.has_mask:
            raise ConfigError(f"check {name} needs a mask, and the graph takes none; leave -masked out")
        if cell is not None and cell.masked and cell.positions == 1:
            raise ConfigError(f"check {name} has no room for padding; use a length or a batch of 2 or more")


def _check_promised(names: Sequence[str], results: Sequence[StepResult]) -> None:
    """Check that every invariance that was asked for by name was there to be checked.

    Raises:
        ConfigError: No backend promises it, so that nothing was checked.
    """
    done = {row.name for result in results for row in result.rows}
    if missing := [name for name in names if name in INVARIANCE_CHECKS and name not in done]:
        raise ConfigError(
            f"check {missing[0]} does not apply: this model, or the backends that were tried, do not promise it; leave "
            "it out, or name another backend"
        )


def _list_profile_lengths(backends: Sequence[Backend]) -> set[int]:
    """Return the lengths at the corners of the engines' profiles, and those they were tuned for."""
    return {
        shape[axis]
        for backend in backends
        for profile in backend.profiles
        for spec in backend.inputs
        if (axis := spec.find_axis(SEQ)) is not None
        for shapes in (profile[spec.name],)
        for shape in (shapes.min, shapes.opt, shapes.max)
    }


def _identify(bundle: Bundle, options: ValidationOptions, plan: Plan, backends: Sequence[Backend]) -> dict[str, object]:
    """Return everything that the rows of a validation depend on."""
    return {
        "version": __version__,
        "bundle": hash_file(bundle.path / MANIFEST_FILE),
        "engines": [engine.engine_sha256 for engine in bundle.list_engines()],
        "onnx_files": [hash_file(path) for path in options.onnx_files],
        "data": None if options.data is None else hash_file(options.data),
        "original_python": options.original_python and str(options.original_python),
        "options": {name: value for name, value in asdict(options).items() if name not in _NOT_IN_KEY},
        "plan": asdict(plan),
        "backends": [backend.name for backend in backends],
    }


def _open_backends(
    stack: contextlib.ExitStack,
    bundle: Bundle,
    backends: Sequence[Backend],
    eager: Runner,
    limit: Limit,
    options: ValidationOptions,
) -> tuple[list[OpenBackend], list[Row]]:
    """Open what can be opened; a backend that cannot be used here becomes one skipped row."""
    from flash_export.runtime.eager import CompiledRunner, EagerRunner

    opened, skipped = [], []
    timed = {"cpu": eager}
    for backend in backends:
        try:
            runner = stack.enter_context(backend.open())
        except BackendUnavailableError as error:
            logger.debug("%s is skipped", backend.name, exc_info=True)
            skipped.append(Row(backend.name, backend.graph, None, None, False, "skipped", describe_exception(error)))
            continue
        if backend.device not in timed:
            try:  # a GPU backend is timed beside the eager model on the GPU, or the comparison would flatter it
                model = bundle.load_model()
                timed[backend.device] = stack.enter_context(EagerRunner(model, device=backend.device))
            except BackendUnavailableError:
                timed[backend.device] = eager
        compiled = None
        if options.compiled and backend.is_timed:
            model = bundle.load_model()
            compiled = stack.enter_context(CompiledRunner(model, device=backend.device, threads=options.threads))
        opened.append(OpenBackend(backend, runner, timed[backend.device], limit, compiled))
    return opened, skipped


def _list_steps(
    plan: Plan, checker: CellChecker, opened: Sequence[OpenBackend], heldout: Heldout | None, graph: GraphSpec
) -> Iterator[Step]:
    if not opened:
        return
    for one in opened if any(map(plan.includes, INVARIANCE_CHECKS)) else ():
        run = partial(_check_invariances, one, checker, graph, plan)
        yield Step(f"invariances of {one.backend.name}", 10 * checker.interface.chunk_size, run)
    for cell in plan.list_cells(graph):
        yield Step(str(cell), cell.positions, partial(_check_cell, checker, cell, opened))
    if heldout is not None and plan.includes(HELDOUT_SCORE):

        def read_heldout() -> StepResult:
            scores, unanswered = compare_scores(heldout, checker.interface, graph, checker.eager, tuple(opened))
            return StepResult(tuple(unanswered), scores)

        yield Step("held-out data", len(heldout.samples) * heldout.seq_len, read_heldout)


def _list_footprints(
    plan: Plan, checker: CellChecker, opened: Sequence[OpenBackend], bundle: Bundle, options: ValidationOptions
) -> Iterator[Step]:
    graph = bundle.get_graph(GRAPH)
    for one in opened if plan.latency_budget_s and plan.cells is None else ():
        request = plan_footprint(
            bundle.path,
            one.backend,
            graph,
            checker.config,
            plan,
            onnx_files=options.onnx_files,
            threads=options.threads,
        )
        work = 2 * request.batch * sum(request.seq_lens)
        yield Step(f"footprint of {one.backend.name}", work, partial(_measure_footprint, request))


def _measure_footprint(request: FootprintRequest) -> StepResult:
    return StepResult(footprint=measure_footprint(request))


def _check_cell(checker: CellChecker, cell: Cell, opened: Sequence[OpenBackend]) -> StepResult:
    return StepResult(tuple(checker.check(cell, opened)))


def _check_invariances(opened: OpenBackend, checker: CellChecker, graph: GraphSpec, plan: Plan) -> StepResult:
    shapes = check_symbolic_shapes(opened.backend, graph) if plan.includes(SYMBOLIC_SHAPE) else []
    rows = check_invariances(opened, checker, graph, plan.checks)
    return StepResult((*shapes, *rows))


def _run_steps(steps: Sequence[Step], journal: Journal, progress: ProgressCallback | None) -> Iterator[StepResult]:
    total, done = sum(step.work for step in steps), 0
    for step in steps:
        if progress:
            progress(done, total, step.label)
        result = journal.find(step.label)
        if result is None:
            result = step.run()
            journal.record(step.label, result)
        yield result
        done += step.work
    if progress:
        progress(total, total, "done")
