"""Comparing bundles of one model: what each costs, and what it loses."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.bundle.bundle import reads_bundles
from flash_export.config import MAX_THREADS, MAX_WINDOWS, check_count
from flash_export.data.heldout import open_heldout
from flash_export.data.sources import RandomSource
from flash_export.errors import ConfigError
from flash_export.progress import Steps
from flash_export.runtime.backends import ORT_CPU, find_target, get_backend
from flash_export.tasks.registry import get_task
from flash_export.validators.backends import GRAPH
from flash_export.validators.environment import describe_environment
from flash_export.validators.footprint import BUDGET_S, Footprint, FootprintRequest, measure_footprint
from flash_export.validators.lengths import Cell, check_lengths
from flash_export.validators.shape_checks import describe_exception
from flash_export.validators.trade_off.candidates import (
    Candidate,
    check_same_model,
    measure_graph_bytes,
    name_bundles,
    order_bundles,
)
from flash_export.validators.trade_off.quality import QualityMeter, list_random_samples
from flash_export.validators.trade_off.results import Entry, TradeOff
from flash_export.validators.trade_off.speed import has_decode, time_decode, time_forward

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import GraphSpec
    from flash_export.progress import ProgressCallback
    from flash_export.runtime.eager import EagerRunner
    from flash_export.validators.trade_off.results import Quality, Timing

DEFAULT_SEQ_LENS = (512, 2048)
DEFAULT_BUDGET_S = 2.0


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, and how.

    Attributes:
        seq_lens: Lengths at which the forward graphs are timed; None: 512 and 2048, as far as the graphs go.
        batch: Rows of a timed run; None: 1, or the one batch that the reference's graph takes.
        backend: Where they run: ``ort-cpu``, ``ort-cuda``, ``ort-tensorrt``, ``ort-tensorrt-rtx``, ``openvino``,
            ``trt`` or ``trt:ENGINE``.
        threads: Threads of one operator; None: what the backend chooses.
        windows: Samples that are read; None: all of the held-out data, or 8 random ones.
        data: A file to read in place of the held-out data of the reference.
        latency_budget_s: Time for one bundle at one length; 0: measure neither latency nor memory.
    """

    seq_lens: tuple[int, ...] | None = None
    batch: int | None = None
    backend: str = ORT_CPU
    threads: int | None = None
    windows: int | None = None
    data: Path | None = None
    latency_budget_s: float = DEFAULT_BUDGET_S

    def __post_init__(self) -> None:
        """Check what does not depend on the bundles."""
        get_backend(self.backend)
        check_count("threads", self.threads, MAX_THREADS)
        check_count("windows", self.windows, MAX_WINDOWS)
        if not 0 <= self.latency_budget_s < float("inf"):
            raise ConfigError(f"latency_budget_s={self.latency_budget_s} is not usable; use seconds, or 0")


@dataclass(frozen=True)
class _Speed:
    """What was timed of one bundle."""

    timings: tuple[Timing, ...] = ()
    decode: Timing | None = None
    footprint: Footprint | None = None


@reads_bundles
def compare_bundles(
    bundles: Sequence[Bundle],
    options: CompareOptions | None = None,
    progress: ProgressCallback | None = None,
    *,
    reference: Bundle | None = None,
) -> TradeOff:
    """Compare bundles of one model on its held-out text, in size and in speed, on one backend.

    Args:
        bundles: The bundles.
        options: What is compared; None: the defaults.
        progress: Called before each step.
        reference: What the others are compared with; None: the first. It is compared even if it is not among them.

    Raises:
        ConfigError: There is no bundle, one was given twice, or two are not the same model.
        InputError: A length or the batch lies outside of the range of the reference's graph.
        BundleError: The held-out text cannot be used.
    """
    options = options or CompareOptions()
    ordered = order_bundles(bundles, reference)
    check_same_model(ordered)
    first = ordered[0]
    cells = _plan_cells(first.get_graph(GRAPH), options)
    model, interface = first.load_model(), first.manifest.interface
    heldout, source = open_heldout(first, options.data), RandomSource(interface)
    names = name_bundles([bundle.path for bundle in ordered])
    candidates = [Candidate(bundle, name) for bundle, name in zip(ordered, names, strict=True)]
    if heldout is not None:
        samples = list(heldout.samples[: options.windows])
    else:
        samples = list(list_random_samples(candidates, source, options.windows))
    timed = bool(options.latency_budget_s)
    steps = Steps(progress, len(samples) + (len(cells) + 1 + len(candidates) if timed else 0))
    with contextlib.ExitStack() as stack:
        for candidate in candidates:
            _open(stack, candidate, options)
        with _open_reference(first, options.threads) as runner:
            meter = QualityMeter(runner, interface, candidates)
            for index, sample in enumerate(samples):
                steps.begin(f"sample {index + 1} of {len(samples)}")
                meter.read(sample)
        qualities = meter.summarise()
        speeds = _measure_speed(candidates, cells, source, options, steps) if timed else [_Speed()] * len(candidates)
    task = get_task(interface.task)
    return TradeOff(
        _build_entries(candidates, qualities, speeds),
        source.label if heldout is None else heldout.label,
        interface.unit,
        task.measures,
        None if meter.reference_score is None else task.describe_score(interface),
        meter.predictions,
        meter.reference_score,
        cells[0].batch,
        options.backend,
        describe_environment(first, model, options.threads),
    )


def _plan_cells(graph: GraphSpec, options: CompareOptions) -> list[Cell]:
    """Choose the shapes that are timed."""
    axis = graph.axes["seq"]
    batch = graph.axes["batch"].min if options.batch is None else options.batch
    check_lengths(graph, options.seq_lens, (batch,))
    seq_lens = options.seq_lens
    if seq_lens is None:
        seq_lens = tuple(length for length in DEFAULT_SEQ_LENS if length in axis) or (axis.max,)
    return [Cell(batch, seq_len, masked=False) for seq_len in sorted(set(seq_lens))]


def _open(stack: contextlib.ExitStack, candidate: Candidate, options: CompareOptions) -> None:
    """Open a bundle; one that cannot be gets the reason."""
    try:
        target = find_target(candidate.bundle, options.backend, GRAPH)
        candidate.runner = stack.enter_context(target.open(threads=options.threads))
    except Exception as error:
        candidate.reason = f"it cannot be run here: {describe_exception(error, candidate.bundle.path)}"


def _open_reference(bundle: Bundle, threads: int | None) -> EagerRunner:
    from flash_export.runtime.eager import EagerRunner

    return EagerRunner(bundle.load_model(), threads=threads, precision="fp64")


def _measure_speed(
    candidates: Sequence[Candidate], cells: Sequence[Cell], source: RandomSource, options: CompareOptions, steps: Steps
) -> list[_Speed]:
    budget_s, backend, threads = options.latency_budget_s, options.backend, options.threads
    by_length = []
    for cell in cells:
        steps.begin(f"timing {cell}")
        by_length.append(time_forward(candidates, cell, source, budget_s, backend=backend, threads=threads))
    steps.begin("timing decode steps")
    decode: Sequence[Timing | None] = [None] * len(candidates)
    if any(map(has_decode, candidates)):
        decode = time_decode(candidates, cells[0].batch, source, budget_s, backend=backend, threads=threads)
    footprints = []
    for candidate in candidates:
        steps.begin(f"memory of {candidate.name}")
        footprints.append(_measure_footprint(candidate, cells, options))
    return [
        _Speed(tuple(timings), step, footprint)
        for timings, step, footprint in zip(zip(*by_length, strict=True), decode, footprints, strict=True)
    ]


def _measure_footprint(candidate: Candidate, cells: Sequence[Cell], options: CompareOptions) -> Footprint:
    backend = options.backend
    if candidate.reason is not None:
        return Footprint(backend, candidate.reason)
    if candidate.bundle.get_graph(GRAPH).is_half and get_backend(backend).device == "cpu":
        return Footprint(
            backend, "its memory was not measured: on a CPU its predictions are computed in fp32 and rounded"
        )
    axis = candidate.bundle.get_graph(GRAPH).axes["seq"]
    return measure_footprint(
        FootprintRequest(
            os.path.abspath(candidate.bundle.path),
            find_target(candidate.bundle, backend, GRAPH).name,
            (),
            options.threads,
            cells[0].batch,
            tuple(cell.seq_len for cell in cells if cell.seq_len in axis),
            BUDGET_S,
        )
    )


def _build_entries(
    candidates: Sequence[Candidate], qualities: Sequence[Quality], speeds: Sequence[_Speed]
) -> tuple[Entry, ...]:
    sizes = [measure_graph_bytes(candidate.bundle) for candidate in candidates]
    return tuple(
        Entry(
            candidate.name,
            str(candidate.bundle.path),
            candidate.bundle.get_graph(GRAPH).precision,
            size,
            size[GRAPH] / sizes[0][GRAPH],
            quality,
            speed.timings,
            speed.decode,
            speed.footprint,
        )
        for candidate, size, quality, speed in zip(candidates, sizes, qualities, speeds, strict=True)
    )
