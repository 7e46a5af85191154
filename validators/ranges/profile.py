"""Profiling the ranges of a bundle's model over lengths."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.bundle.bundle import reads_bundles
from flash_export.config import MAX_THREADS, MAX_WINDOWS, check_count
from flash_export.data.heldout import load_data
from flash_export.data.sources import count_rows
from flash_export.errors import ConfigError, InputError
from flash_export.printable import format_path
from flash_export.ranges.growth import FP16_MAX, FP32_MAX, fit_growth
from flash_export.validators.backends import GRAPH
from flash_export.validators.lengths import Cell, check_lengths
from flash_export.validators.memory import describe_lack_of_memory
from flash_export.validators.ranges.held import find_held
from flash_export.validators.ranges.measure import Range, describe_quantity, measure_ranges
from flash_export.validators.ranges.results import RangePoint, RangeRow, RangesReport

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.data.sources import Source
    from flash_export.models.base import ModelConfig, ReferenceModel
    from flash_export.probes import Probe
    from flash_export.progress import ProgressCallback
    from flash_export.runtime.runner import Runner
    from flash_export.validators.ranges.results import Held

DEFAULT_SECONDS = 60.0
DEFAULT_WINDOWS = 4
_DOUBLING = 2.5  # times longer that twice the length takes; four where the attention is quadratic in it
_QUADRATIC_DOUBLING = 4.5


@dataclass(frozen=True)
class RangesOptions:
    """What is measured.

    Attributes:
        seq_lens: Lengths; None: twice the chunk and its doublings, as far as text, memory and time go.
        windows: Pieces of text of each length.
        random: Whether random inputs are read even where there is held-out data.
        data: A file to read in place of the bundle's held-out data.
        seconds: Time for the default lengths.
        threads: Threads of one operator; None: what PyTorch chooses.
    """

    seq_lens: tuple[int, ...] | None = None
    windows: int = DEFAULT_WINDOWS
    random: bool = False
    data: Path | None = None
    seconds: float = DEFAULT_SECONDS
    threads: int | None = None

    def __post_init__(self) -> None:
        """Check what does not depend on the bundle."""
        check_count("windows", self.windows, MAX_WINDOWS)
        check_count("threads", self.threads, MAX_THREADS)
        if self.random and self.data is not None:
            raise ConfigError("random and data were both given; leave one of them out")
        if not 0 < self.seconds < math.inf:
            raise ConfigError(f"seconds={self.seconds} is not usable; use a finite number above 0")


@reads_bundles
def profile_ranges(
    bundle: Bundle, options: RangesOptions | None = None, progress: ProgressCallback | None = None
) -> RangesReport:
    """Measure how large each quantity of the model becomes, and where fp16 would overflow in the exported graph.

    Args:
        bundle: The exported model.
        options: What is measured; None: the defaults.
        progress: Called before each length.

    Raises:
        InputError: A length lies outside of the graph's range, is longer than the text, or does not fit into memory.
        BundleError: The bundle does not say in which scale its graph holds the quantities.
    """
    from flash_export.runtime.eager import EagerRunner

    options = options or RangesOptions()
    graph, probes = bundle.get_graph(GRAPH), bundle.read_probes()
    check_lengths(graph, options.seq_lens, None)
    model = bundle.load_model()
    data = load_data(bundle, options.data)
    source = data.random if options.random else data.preferred
    axis = graph.axes["seq"]
    seq_lens = _plan_lengths(model.config, axis.max) if options.seq_lens is None else sorted(set(options.seq_lens))
    with EagerRunner(model, threads=options.threads) as runner:
        found, stopped = _measure_lengths(model, runner, source, seq_lens, options, progress)
    if not found:
        raise InputError(f"nothing was measured: {stopped}; choose shorter lengths with --lengths")
    scales = {probe.name: probe for probe in probes.probes}
    names = list(next(iter(found.values())))
    facts = bundle.manifest.precision
    config = model.config
    rows = [
        _build_row(name, describe_quantity(config, name), found, scales.get(name), find_held(config, name, facts))
        for name in names
    ]
    rows.sort(key=lambda row: row.urgency)
    return RangesReport(
        format_path(bundle.path),
        source.label,
        tuple(found),
        axis.max,
        tuple(rows),
        stopped,
        graph.precision,
        model.config.interface.unit,
    )


def _plan_lengths(config: ModelConfig, longest: int) -> list[int]:
    """Return twice the chunk, doubled as long as the graph allows: within one chunk nothing has a past to sum."""
    lengths = [min(2 * config.interface.chunk_size, longest)]
    while 2 * lengths[-1] <= longest:
        lengths.append(2 * lengths[-1])
    return lengths


def _measure_lengths(
    model: ReferenceModel,
    runner: Runner,
    source: Source,
    seq_lens: list[int],
    options: RangesOptions,
    progress: ProgressCallback | None,
) -> tuple[dict[int, dict[str, Range]], str]:
    """Measure the lengths in turn, until one of the default ones is too much."""
    found: dict[int, dict[str, Range]] = {}
    start = time.perf_counter()
    factor = _DOUBLING if model.config.interface.window > 1 else _QUADRATIC_DOUBLING
    last = 0.0
    for index, seq_len in enumerate(seq_lens):
        windows = count_rows(source, seq_len, options.windows)
        while windows > 1 and describe_lack_of_memory(model.config, Cell(windows, seq_len, masked=False)):
            windows -= 1
        refusal = _refuse_length(model.config, source, seq_len, windows)
        if refusal is not None and options.seq_lens is not None:
            raise InputError(refusal)
        expected = last * factor
        is_late = found and time.perf_counter() - start + expected > options.seconds
        if refusal is None and options.seq_lens is None and is_late:
            refusal = f"{seq_len} {source.interface.unit} would take about {expected:.0f} s more; --seconds allows it"
        if refusal is not None:
            return found, refusal
        if progress:
            progress(index, len(seq_lens), f"{windows} x {seq_len}")
        before = time.perf_counter()
        found[seq_len] = measure_ranges(model, runner, source.take(windows, seq_len))
        last = time.perf_counter() - before
    return found, ""


def _refuse_length(config: ModelConfig, source: Source, seq_len: int, windows: int) -> str | None:
    if windows < 1:
        return f"seq_len={seq_len} is more than the {source.label} has; use less, or --random"
    return describe_lack_of_memory(config, Cell(windows, seq_len, masked=False))


def _build_row(
    name: str, label: str, found: dict[int, dict[str, Range]], probe: Probe | None, held: Held | None
) -> RangeRow:
    points = tuple(
        RangePoint(seq_len, ranges[name].max_abs, ranges[name].rms, ranges[name].max_abs * _scale(probe, seq_len))
        for seq_len, ranges in found.items()
    )
    limit = FP32_MAX if held else FP16_MAX
    growth = fit_growth([point.seq_len for point in points], [point.graph_max_abs for point in points], limit)
    return RangeRow(name, points, growth, label, held)


def _scale(probe: Probe | None, seq_len: int) -> float:
    """Return the factor from the reference's values to those of the graph."""
    factor = 1.0 if probe is None else abs(probe.scale) * float(seq_len) ** probe.length_power
    return 1 / factor if factor else 0.0
