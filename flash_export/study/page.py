"""The report of a study: the paper's two pictures, its ablation, and what was found of each system."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.formatting import format_bytes, format_known
from flash_export.report.document import (
    Axis,
    Document,
    Explanations,
    Note,
    Notes,
    Plot,
    Plots,
    Point,
    Section,
    Series,
    number,
    tabulate,
    text,
)
from flash_export.study.comparing import WRITTEN_OUT
from flash_export.validators.report.rows import format_median

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flash_export.report.document import Table
    from flash_export.study.results import Crossing, Study, StudyEntry

# What the paper's ablation takes away from FLASH, or puts into another model.
ABLATION = ("flash", "flash-local", "flash-global", "gau", "mc-tfm++", "transformer++")
_STYLES = 6


def describe_study(study: Study, folder: str) -> Document:
    """Return the report of a study."""
    right = [entry for entry in study.entries if entry.is_right]
    failed = len(study.entries) - len(right)
    objectives = list(dict.fromkeys(entry.objective for entry in study.entries))
    plots = [
        plot
        for objective in objectives
        for backend in study.config.backends
        for plot in (
            *(_plot_quality(study, right, objective, backend, seq_len) for seq_len in study.config.quality_lens),
            _plot_latency(study, right, objective, backend),
        )
        if plot is not None
    ]
    return Document(
        subject=f"Study in {folder}",
        command="flash-export study",
        headline=f"{len(study.entries)} exported models of {len({one.system for one in study.entries})} systems",
        lead=_describe_equality(study) + (f" {failed} not shown in the pictures: see below." if failed else ""),
        sections=(
            Section("", Plots(tuple(plots)), views=("page",)),
            Section(
                "Size, quality and validation",
                _tabulate_models(study),
                "Bits a byte of held-out text, lower is better.",
            ),
            *(
                Section(
                    f"Time of one sequence on {backend}",
                    _tabulate_times(study, backend),
                    "Median of a batch of one; * attention is one operator of ONNX, which is faster here.",
                )
                for backend in study.config.backends
            ),
            *(
                Section(
                    f"The ablation, {objective}", _tabulate_ablation(study, objective), "Against FLASH of this study."
                )
                for objective in objectives
            ),
            Section("From which length on which is faster", Notes(tuple(map(_describe_crossing, study.crossings)))),
            Section("Not done, or failed", Notes(tuple(_list_gaps(study)))),
            Section("How to read this", Explanations(tuple(_list_terms(study))), views=("page",)),
        ),
        environment=tuple((name, str(value)) for name, value in study.environment.items()),
    )


def _describe_equality(study: Study) -> str:
    sizes = [entry.parameters for entry in study.entries if entry.parameters is not None]
    if not sizes:
        return "Nothing was exported."
    spread = max(sizes) / min(sizes) - 1
    size = f"{min(sizes):,} to {max(sizes):,} parameters each, {spread:.1%} apart"
    seen = {entry.tokens_seen for entry in study.entries if entry.tokens_seen is not None}
    if study.equal_tokens:
        tokens = f"all trained on the same {next(iter(seen)):,} bytes, in the same order"
    else:
        tokens = "NOT all trained on the same bytes"
    return f"{size}{'' if study.equal_size else ', which is NOT equal'}; {tokens}."


def _plot_quality(
    study: Study, entries: Sequence[StudyEntry], objective: str, backend: str, seq_len: int
) -> Plot | None:
    """Plot quality against latency at one length: upper right is better, as in the paper's figure 1."""
    points = []
    for entry in entries:
        bits, time = entry.find_quality(backend, seq_len), entry.find_time(backend, seq_len)
        if entry.objective == objective and bits is not None and time is not None and time.latency_ms is not None:
            label = entry.title if entry.seed == 0 else f"{entry.title}, seed {entry.seed}"
            speed = 1e3 * seq_len / time.latency_ms.p50
            title = f"{label}: {bits:.4f} bits a byte, {format_median(time.latency_ms)}"
            points.append(Point(speed, -bits, title=title, label=label))
    if not points:
        return None
    low, high = (
        min(-point.y for point in points if point.y is not None),
        max(-point.y for point in points if point.y is not None),
    )
    step = 0.5 if high - low > 1 else 0.1 if high - low > 0.2 else 0.02
    first = int(low / step) * step
    ticks = tuple(
        (-(first + step * index), f"{first + step * index:.2f}") for index in range(int((high - first) / step) + 2)
    )
    return Plot(
        f"Quality against speed at {seq_len:,} tokens, {objective}, {backend}",
        "Upper right is better: fewer bits a byte, more tokens a second.",
        Axis("tokens a second, a batch of one", "linear"),
        Axis("bits a byte of held-out text", "linear", ticks=ticks),
        (Series("exported models", "s0", points=tuple(points)),),
    )


def _plot_latency(study: Study, entries: Sequence[StudyEntry], objective: str, backend: str) -> Plot | None:
    """Plot the latency a token against the length, as in the paper's figure 4."""
    series = []
    shown = [
        entry for entry in entries if entry.objective == objective and entry.seed == _find_first_seed(entries, entry)
    ]
    for index, entry in enumerate(shown):
        line = [
            (float(one.seq_len), one.ms_per_token * 1e3)
            for one in entry.times
            if one.backend == backend and one.ms_per_token is not None
        ]
        if line:
            points = tuple(Point(x, y, title=f"{entry.title}, {x:,.0f} tokens: {y:.2f} µs a token") for x, y in line)
            last = points[-1]
            points = (*points[:-1], Point(last.x, last.y, title=last.title, label=entry.title))
            series.append(Series(entry.title, f"s{index % _STYLES}", tuple(line), points))
    if not series:
        return None
    return Plot(
        f"Latency a token against length, {objective}, {backend}",
        f"Lower is better. Beyond {study.config.max_seq_len:,} tokens weights are random: what is timed does not "
        "depend on them.",
        Axis("tokens", "lengths"),
        Axis("µs a token", "decades"),
        tuple(series),
    )


def _find_first_seed(entries: Sequence[StudyEntry], entry: StudyEntry) -> int:
    return min(one.seed for one in entries if (one.system, one.objective) == (entry.system, entry.objective))


def _tabulate_models(study: Study) -> Table:
    backends, lens = study.config.backends, study.config.quality_lens
    return tabulate(
        study.entries,
        [
            (text("system"), lambda entry: entry.title),
            (text("objective"), lambda entry: entry.objective),
            (number("seed"), lambda entry: str(entry.seed)),
            (number("parameters"), lambda entry: format_known("{:,}".format, entry.parameters)),
            (
                number("with length"),
                lambda entry: f"{entry.growing_parameters:,}" if entry.growing_parameters else None,
            ),
            (number("size"), lambda entry: format_known(format_bytes, entry.bytes)),
            *(
                (
                    number(f"bits at {seq_len}"),
                    lambda entry, seq_len=seq_len, backend=backend: format_known(
                        "{:.4f}".format, entry.find_quality(backend, seq_len)
                    ),
                )
                for backend in backends[:1]
                for seq_len in lens
            ),
            (text("validation"), _format_checks),
        ],
    )


def _format_checks(entry: StudyEntry) -> str | None:
    parts = []
    for check in entry.checks:
        verdict = (
            f"{check.passed} passed" if check.is_right else f"FAILED, {check.failed} of {check.passed + check.failed}"
        )
        parts.append(f"{check.backend}: {verdict}")
    return "; ".join(parts) or None


def _tabulate_times(study: Study, backend: str) -> Table:
    return tabulate(
        [entry for entry in study.entries if entry.is_right],
        [
            (text("system"), lambda entry: entry.title),
            (text("objective"), lambda entry: entry.objective),
            *(
                (
                    number(f"{seq_len:,}"),
                    lambda entry, seq_len=seq_len: _format_time(entry, backend, seq_len),
                )
                for seq_len in study.config.latency_lens
            ),
            (number("memory at the longest"), lambda entry: _format_memory(entry, backend)),
        ],
    )


def _format_time(entry: StudyEntry, backend: str, seq_len: int) -> str | None:
    time = entry.find_time(backend, seq_len)
    median = None if time is None else format_median(time.latency_ms)
    return f"{median} *" if median is not None and time is not None and time.form != WRITTEN_OUT else median


def _format_memory(entry: StudyEntry, backend: str) -> str | None:
    known = [one.memory_bytes for one in entry.times if one.backend == backend and one.memory_bytes is not None]
    return format_bytes(known[-1]) if known else None


def _tabulate_ablation(study: Study, objective: str) -> Table:
    """Return quality and time of what the paper's ablation compares, with the change against FLASH."""
    backend = study.config.backends[0]
    entries = [one for one in study.entries if one.objective == objective and one.is_right]
    rows = [next((one for one in entries if one.system == name), None) for name in ABLATION]
    flash, shown = rows[0], [one for one in rows if one is not None]
    if flash is None or len(shown) < 2:
        shown = []

    def compare(entry: StudyEntry, seq_len: int) -> str | None:
        mine, its = (
            entry.find_quality(backend, seq_len),
            None if flash is None else flash.find_quality(backend, seq_len),
        )
        return None if mine is None or its is None else f"{mine:.4f} ({mine - its:+.4f})"

    def compare_time(entry: StudyEntry, seq_len: int) -> str | None:
        mine, its = entry.find_time(backend, seq_len), None if flash is None else flash.find_time(backend, seq_len)
        if mine is None or its is None or mine.ms_per_token is None or its.ms_per_token is None:
            return None
        return f"{mine.ms_per_token / its.ms_per_token:.2f}"

    return tabulate(
        shown,
        [
            (text("system"), lambda entry: entry.title),
            *(
                (number(f"bits at {seq_len}"), lambda entry, seq_len=seq_len: compare(entry, seq_len))
                for seq_len in study.config.quality_lens
            ),
            *(
                (number(f"time at {seq_len:,}, ratio"), lambda entry, seq_len=seq_len: compare_time(entry, seq_len))
                for seq_len in study.config.latency_lens
            ),
        ],
    )


def _describe_crossing(crossing: Crossing) -> Note:
    who = f"{crossing.faster} against {crossing.slower}, {crossing.backend}"
    if crossing.seq_len is None:
        return Note(f"faster at {crossing.high:,} tokens, the shortest length that was timed", who=who)
    return Note(
        f"faster from about {crossing.seq_len:,} tokens on (timed at {crossing.low:,} and {crossing.high:,})", who=who
    )


def _list_gaps(study: Study) -> Iterator[Note]:
    for entry in study.entries:
        for check in entry.checks:
            if not check.is_right:
                yield Note(f"validation on {check.backend}: {check.reason or 'it did not pass'}", "failed", entry.name)
        for reason in entry.reasons:
            yield Note(reason, who=entry.name)


def _list_terms(study: Study) -> Iterator[tuple[str, str]]:
    yield (
        "System",
        "A model of the paper at the size of this study: width, depth and heads are given, what is left over goes into "
        "the hidden channels, so that all have as many parameters. A gated attention unit counts as half a block.",
    )
    yield (
        "With length",
        "Parameters that grow with the longest sequence: learnt positions, and a Linformer's projections. They are not "
        "among the others.",
    )
    yield "Validation", "Checks against the PyTorch model in float64; a model that fails one is in no picture."
    yield (
        "Masked",
        "A masked model restores hidden bytes and sees both sides of them: its bits are not comparable with those of a "
        "causal one, which predicts the next byte.",
    )
    yield "Ratio", "Time of a model as a multiple of FLASH's at the same length."
