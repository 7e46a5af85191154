"""Validating a bundle: every backend against the eager model, over a range of batches and lengths."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.config import Tolerance
from flash_export.errors import BackendUnavailableError, ConfigError
from flash_export.manifest import AxisRange
from flash_export.validators.backends import GRAPH, list_backends
from flash_export.validators.bits_per_byte import compare_bits_per_byte
from flash_export.validators.cells import CellChecker, OpenBackend, describe_exception
from flash_export.validators.environment import describe_environment
from flash_export.validators.heldout import Heldout
from flash_export.validators.latency import DEFAULT_BUDGET_S
from flash_export.validators.plan import (
    DEFAULT_BATCHES,
    check_lengths,
    get_axis,
    get_probe_chunk,
    plan_cells,
    plan_lengths,
)
from flash_export.validators.results import Row, ValidationReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flash_export.bundle import Bundle
    from flash_export.manifest import GraphSpec
    from flash_export.models.base import ModelConfig, ReferenceModel
    from flash_export.runtime.runner import Runner
    from flash_export.validators.backends import Backend
    from flash_export.validators.plan import Cell

    # Work done, work in all, and what comes next; the unit is tokens.
    ProgressCallback = Callable[[int, int, str], None]

# What rounding of the graph's own precision explains, as a fraction of the output's scale.
DEFAULT_TOLERANCES = {"fp32": Tolerance(), "fp16": Tolerance(rtol=1e-2), "bf16": Tolerance(rtol=5e-2)}


@dataclass(frozen=True)
class ValidationOptions:
    """What is validated, and how strictly.

    Attributes:
        seq_lens: Lengths to check; None: the default plan.
        max_seq_len: Longest length of the default plan; None: the longest that the graph promises.
        batches: Batch sizes; None: 1 and 3, as far as the graph allows.
        backends: Names of backends; empty: all that the bundle could run on.
        atol: Accepted absolute difference; None: that of the graph's precision.
        rtol: Accepted difference as a fraction of the output's scale; None: that of the graph's precision.
        threads: Threads of one operator on the CPU; None: what each backend chooses.
        latency_budget_s: Time for measuring the latency of one cell; 0: do not measure it.
    """

    seq_lens: tuple[int, ...] | None = None
    max_seq_len: int | None = None
    batches: tuple[int, ...] | None = None
    backends: tuple[str, ...] = ()
    atol: float | None = None
    rtol: float | None = None
    threads: int | None = None
    latency_budget_s: float = DEFAULT_BUDGET_S

    def __post_init__(self) -> None:
        """Check what does not depend on the bundle."""
        if self.seq_lens is not None and self.max_seq_len is not None:
            raise ConfigError("seq_lens and max_seq_len were both given; max_seq_len limits the default plan only")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads={self.threads} is not usable; use at least 1")

    def get_tolerance(self, precision: str) -> Tolerance:
        """Return the tolerance for a graph of this precision."""
        default = DEFAULT_TOLERANCES.get(precision, Tolerance())
        atol = default.atol if self.atol is None else self.atol
        return Tolerance(atol, default.rtol if self.rtol is None else self.rtol)


def validate_bundle(
    bundle: Bundle, options: ValidationOptions | None = None, progress: ProgressCallback | None = None
) -> ValidationReport:
    """Compare every backend with the eager model.

    Args:
        bundle: The exported model.
        options: What is compared; None: the defaults.
        progress: Called before each cell.

    Raises:
        InputError: A length or batch that was asked for lies outside of the graph's range.
        ConfigError: A backend that was asked for does not exist.
        BundleError: A file of the bundle cannot be used.
    """
    options = options or ValidationOptions()
    graph = bundle.get_graph(GRAPH)
    tolerance = options.get_tolerance(graph.precision)
    check_lengths(graph, options.seq_lens, options.batches)
    if options.max_seq_len is not None:
        check_lengths(graph, (options.max_seq_len,), None)
    backends = list_backends(bundle, options.backends, threads=options.threads)
    heldout = Heldout.load(bundle)

    model = bundle.load_model()
    cells = _plan(graph, model.config, options)
    with contextlib.ExitStack() as stack:
        reference = stack.enter_context(_open_eager(model, options.threads))
        opened, skipped = _open_backends(stack, bundle, backends, reference, tolerance)
        checker = CellChecker(
            model.config, reference, options.latency_budget_s, is_default_plan=options.seq_lens is None
        )
        rows = _check_cells(checker, cells, opened, progress)
        bits: dict[str, float] | None = None
        if heldout is not None and opened:
            bits, unanswered = compare_bits_per_byte(heldout, graph, reference, opened)
            rows += unanswered
        environment = describe_environment(bundle, model, options.threads)
    order = {backend.name: index for index, backend in enumerate(backends)}
    rows = sorted([*rows, *skipped], key=lambda row: order[row.backend])
    return ValidationReport(str(bundle.path), environment, tuple(rows), bits)


def _plan(graph: GraphSpec, config: ModelConfig, options: ValidationOptions) -> tuple[Cell, ...]:
    batches = options.batches or [size for size in DEFAULT_BATCHES if size in get_axis(graph, "batch")]
    seq_lens: Sequence[int] | None = options.seq_lens
    if seq_lens is None:
        axis = get_axis(graph, "seq")
        seq_lens = plan_lengths(get_probe_chunk(config), AxisRange(axis.min, options.max_seq_len or axis.max))
    return plan_cells(graph, seq_lens, batches or [get_axis(graph, "batch").min])


def _open_eager(model: ReferenceModel, threads: int | None, device: str = "cpu") -> Runner:
    from flash_export.runtime.eager import EagerRunner

    return EagerRunner(model, device=device, threads=threads)


def _open_backends(
    stack: contextlib.ExitStack,
    bundle: Bundle,
    backends: Sequence[Backend],
    reference: Runner,
    tolerance: Tolerance,
) -> tuple[list[OpenBackend], list[Row]]:
    """Open what can be opened; a backend that cannot be used here becomes one skipped row."""
    opened, skipped = [], []
    timed = {"cpu": reference}
    for backend in backends:
        try:
            runner = stack.enter_context(backend.open())
        except BackendUnavailableError as error:
            skipped.append(Row(backend.name, backend.graph, None, None, False, "skipped", describe_exception(error)))
            continue
        if backend.device not in timed:
            try:  # a GPU backend is timed beside the eager model on the GPU, or the comparison would flatter it
                timed[backend.device] = stack.enter_context(_open_eager(bundle.load_model(), None, backend.device))
            except BackendUnavailableError:
                timed[backend.device] = reference
        opened.append(OpenBackend(backend, runner, timed[backend.device], tolerance))
    return opened, skipped


def _check_cells(
    checker: CellChecker, cells: Sequence[Cell], opened: Sequence[OpenBackend], progress: ProgressCallback | None
) -> list[Row]:
    total, done = sum(cell.tokens for cell in cells), 0
    rows: list[Row] = []
    for cell in cells if opened else ():
        if progress:
            progress(done, total, str(cell))
        rows += checker.check(cell, opened)
        done += cell.tokens
    if progress:
        progress(total, total, "done")
    return rows
