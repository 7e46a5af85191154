"""The tables of docs/precision.md, written between two markers, so that no figure there is typed by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flash_export.errors import ConfigError
from flash_export.validators.report.markdown import build_table, escape
from flash_export.validators.trade_off.text import describe_gaps, describe_run, format_timing, tabulate_quality

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from precision_results import Engine, Results, Target
    from wide_models import Case

BEGIN, END = "<!-- precision table: begin -->", "<!-- precision table: end -->"
NONE = "-"


def write_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the markers of a page.

    Raises:
        ConfigError: The page has not both of them, once, in order.
    """
    page = path.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ConfigError(f"{path} has no place for the tables; add the lines {BEGIN} and {END} to it, in this order")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}", encoding="utf-8")


def render_tables(results: Results, environment: Mapping[str, Any]) -> str:
    """Return the tables in Markdown."""
    return "\n".join(_list_lines(results, environment)) + "\n"


def describe_dtypes(dtypes: Mapping[str, int] | None) -> str:
    """Name the dtypes of an engine's layers, the most frequent first: ``210 half, 31 float``."""
    return ", ".join(f"{count} {name}" for name, count in sorted((dtypes or {}).items(), key=lambda item: -item[1]))


def _list_lines(results: Results, environment: Mapping[str, Any]) -> Iterator[str]:
    packages = environment["packages"]
    yield (
        f"`benchmarks/precision.py` at {environment['commit']}, {environment['processor']}, {environment['cores']} "
        f"cores, two threads; onnxruntime {packages['onnxruntime']}, TensorRT-RTX {packages['tensorrt-rtx-cu13']}."
    )
    for one in results.comparisons:
        headings, rows = tabulate_quality(one.trade)
        runs = [describe_run(timing, one.trade.unit) for timing in one.trade.reference.all_timings]
        yield from ("", f"**{one.model}**, {one.trade.predictions:,} predictions on {one.trade.data}:", "")
        yield from build_table(
            [*headings, *runs],
            [
                [*map(escape, row), *map(format_timing, entry.all_timings)]
                for row, entry in zip(rows, one.trade.entries, strict=True)
            ],
        )
        gaps = [*describe_gaps(one.trade), *(f"{name}: {reason}" for name, reason in one.reasons.items())]
        yield from (line for gap in gaps for line in ("", f"Not measured: {escape(gap)}"))
    yield from _list_cases(results.cases)
    yield from _list_engines(results.engines)
    yield from _list_targets(results.targets)


def _list_cases(cases: Sequence[Case]) -> Iterator[str]:
    if not cases:
        return
    yield from ("", "Wider models with random weights, beside their fp32 graph:", "")
    headings = ["run", "precision", "times as fast", "size", "largest error", "fp32, ms", "spread", "others"]
    yield from build_table(
        headings,
        [
            [case.what, case.precision, *[NONE] * 6]
            if case.speed is None
            else [
                case.what,
                case.precision,
                f"{case.speed:.2f}",
                f"{case.size:.2f}",
                f"{case.error:.1e}",
                f"{case.fp32_ms:.3g}",
                f"{case.spread:.0%}",
                f"{case.others_share:.0%}",
            ]
            for case in cases
        ],
    )
    for case in cases:
        if case.reason is not None:
            yield from ("", f"Not measured: {escape(f'{case.what}, {case.precision}: {case.reason}')}")


def _list_engines(engines: Sequence[Engine]) -> Iterator[str]:
    if not engines:
        return
    yield from ("", "Engines that TensorRT-RTX builds, and the dtypes of their layers:", "")
    yield from build_table(
        ["model", "precision", "graph", "layers", "build, s"],
        [
            [
                engine.model,
                engine.precision,
                engine.graph,
                describe_dtypes(engine.layer_dtypes) if engine.reason is None else escape(engine.reason),
                NONE if engine.seconds is None else f"{engine.seconds:.1f}",
            ]
            for engine in engines
        ],
        left=4,
    )


def _list_targets(targets: Sequence[Target]) -> Iterator[str]:
    if not targets:
        return
    yield from ("", "| target | measured | |", "|---|---:|---|")
    for target in targets:
        measured = NONE if target.value is None else f"{target.value:.4g}"
        yield f"| {target.what} | {measured} | {target.verdict} |"
