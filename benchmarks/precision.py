"""What each precision costs and loses: fp32, fp16, bf16, int8-token, int8, int4 and fp8 of the same models.

    python benchmarks/precision.py [--only int8-token,int4] [--no-build] [--markdown FILE] [--json FILE] [--quick]

Both bundled models are compared on their held-out text: size, bits per byte, agreement, divergence, and latency at
2,048 tokens in one run, two threads. Wider models with random weights show what int8 gains in a forward run, and int4
and int8-token in a decode step. Every graph is compiled with TensorRT-RTX, which needs no GPU for it. What cannot be
made, run or built has the reason in place of a figure. ``--markdown docs/precision.md`` writes that page's tables.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from flash_export import BuildOptions, Bundle, CompareOptions, FlashExportError, build_engine, compare_bundles
from flash_export.bundle.bundle import HELDOUT_FILES, SETTINGS_FILE
from flash_export.config import TENSORRT_RTX
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.report.document import Document, Note, Notes, Section
from flash_export.report.markdown import list_sections
from flash_export.report.terminal import print_document
from flash_export.validators.shape_checks import describe_exception
from flash_export.validators.trade_off.page import describe_trade_off
from harness.models import ASSETS, BUNDLED
from harness.precisions import PRECISIONS, TARGETS, Case, make_variants, time_wide_models
from harness.report import Figure, describe_environment, make_parser, make_table, write_between_markers, write_json
from harness.sessions import THREADS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flash_export.validators.trade_off.results import Entry, TradeOff

SEQ_LEN, QUICK_SEQ_LEN = 2048, 64
BUDGET_S, QUICK_BUDGET_S = 4.0, 0.01
# Largest change of the bits per byte, up or down, and smallest share of equal top tokens.
CHANGE_TARGETS = {"fp16": 0.001, "bf16": 0.005, "int8-token": 0.001, "int8": 0.005, "int4": 0.02}
AGREEMENT_TARGETS = {"fp16": 0.995, "bf16": 0.98, "int8-token": 0.985}
MAX_SECONDS = {"int8-token": 15.0}  # that it may take to make
CASES = {"run": "what", "precision": "precision", "times as fast": "speed:.2f", "size": "size:.2f"}
CASES |= {
    "memory": "memory:.2f",
    "largest error": "error:.1e",
    "fp32, ms": "fp32_ms:.3g",
    "spread": "spread:.0%",
    "others": "others_share:.0%",
}
ENGINES = {"model": "model", "precision": "precision", "graph": "graph", "layers": "layers", "build, s": "seconds:.1f"}
FIGURES = {"target": "name", "measured": "value:.4g", "": "target"}


@dataclass(frozen=True)
class Engine:
    """A build of one graph of one bundle."""

    model: str
    precision: str
    graph: str
    seconds: float | None = None
    layer_dtypes: dict[str, int] | None = None  # layers of the parsed network by the dtype of their output
    reason: str | None = None  # why there is no engine

    @property
    def layers(self) -> str:
        """The dtypes of the layers, the most frequent first, as ``210 half, 31 float``; or the reason."""
        dtypes = sorted((self.layer_dtypes or {}).items(), key=lambda item: -item[1])
        return self.reason or ", ".join(f"{count} {name}" for name, count in dtypes)


@dataclass(frozen=True)
class Comparison:
    """One bundled model in every precision."""

    model: str
    trade: TradeOff
    reasons: dict[str, str]  # why a precision is not among the bundles
    seconds: dict[str, float]  # that each took to make


@dataclass(frozen=True)
class Results:
    """Everything that was measured."""

    comparisons: Sequence[Comparison]
    cases: Sequence[Case]
    engines: Sequence[Engine]

    @property
    def targets(self) -> list[Figure]:
        """Every target that the measured precisions have, and whether it is reached."""
        found = [figure for one in self.comparisons for figure in judge_comparison(one)]
        return [*found, *(figure for case in self.cases for figure in judge_case(case))]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "models": [
                {
                    "model": one.model,
                    "not_made": one.reasons,
                    "seconds": one.seconds,
                    "trade_off": json.loads(one.trade.to_json()),
                }
                for one in self.comparisons
            ],
            "cases": [asdict(case) for case in self.cases],
            "engines": [asdict(engine) for engine in self.engines],
            "targets": [{"what": one.name, "value": one.value, "verdict": one.target} for one in self.targets],
        }


def judge_comparison(comparison: Comparison) -> Iterator[Figure]:
    """Yield what the predictions of each precision have to reach; a bundle that could not be made reaches nothing."""
    entries: dict[str, Entry | None] = {entry.name: entry for entry in comparison.trade.entries}
    for precision, entry in (entries | dict.fromkeys(comparison.reasons)).items():
        what, quality = f"{comparison.model}, {precision}", entry.quality if entry is not None else None
        if precision in CHANGE_TARGETS:
            change = None if quality is None or quality.change is None else abs(quality.change)
            yield Figure.judge(f"{what}: change of bits per byte", change, at_most=CHANGE_TARGETS[precision])
        if precision in AGREEMENT_TARGETS:
            agreement = None if quality is None else quality.measures.get("top1_agreement")
            yield Figure.judge(f"{what}: same top token", agreement, at_least=AGREEMENT_TARGETS[precision])
        if precision in MAX_SECONDS:
            seconds = comparison.seconds.get(precision)
            yield Figure.judge(f"{what}: made in, s", seconds, at_most=MAX_SECONDS[precision])


def judge_case(case: Case) -> Iterator[Figure]:
    """Yield what a wide model has to reach."""
    if (target := TARGETS.get((case.graph, case.precision, case.dim))) is not None:
        speed, size = target
        what = f"{case.what}, {case.precision}"
        yield Figure.judge(f"{what}: times as fast as fp32", case.speed, at_least=speed)
        yield Figure.judge(f"{what}: size / fp32", case.size, at_most=size)
        if case.precision == "int8-token" and case.memory is not None:
            yield Figure.judge(f"{what}: peak memory / fp32", case.memory, at_most=1.0)


def build_engines(model: str, bundles: Sequence[Bundle]) -> Iterator[Engine]:
    """Compile every graph of every bundle; the folders are named after the precisions."""
    for bundle in bundles:
        for graph in bundle.manifest.graphs:
            what = model, bundle.path.name, graph
            print(f"{', '.join(what)}: building ...", file=sys.stderr)
            try:
                engine = build_engine(bundle, options=BuildOptions(graph=graph, flavour=TENSORRT_RTX.name)).engine
            except FlashExportError as error:
                yield Engine(*what, reason=describe_exception(error, bundle.path.parent))
            else:
                yield Engine(*what, engine.build_seconds, engine.layer_dtypes)


def write_tiny_checkpoint(model: str, folder: Path) -> Path:
    """Write a tiny byte model with random weights, and a piece of the text of a bundled one."""
    torch.manual_seed(0)
    config = FlashConfig(257, 32, 1, 64, chunk_size=16, qk_dim=16, causal="causal" in model)
    FlashModel(config).save_pretrained(folder)
    settings = json.loads((ASSETS / model / SETTINGS_FILE).read_text())
    (folder / SETTINGS_FILE).write_text(json.dumps({**settings, "seq_len": QUICK_SEQ_LEN}))
    (folder / HELDOUT_FILES[0]).write_bytes((ASSETS / model / HELDOUT_FILES[0]).read_bytes()[: 2 * QUICK_SEQ_LEN])
    return folder


def measure(precisions: Sequence[str], *, quick: bool, build: bool) -> Results:
    """Compare both bundled models, build their engines, time the wide ones."""
    seq_len, budget_s = (QUICK_SEQ_LEN, QUICK_BUDGET_S) if quick else (SEQ_LEN, BUDGET_S)
    options = CompareOptions(seq_lens=(seq_len,), threads=THREADS, latency_budget_s=budget_s)
    comparisons: list[Comparison] = []
    engines: list[Engine] = []
    with tempfile.TemporaryDirectory() as name:
        for model in BUNDLED:
            print(f"{model} ...", file=sys.stderr)
            folder = Path(name) / model
            source = write_tiny_checkpoint(model, folder / "checkpoint") if quick else ASSETS / model
            bundles, reasons, seconds = make_variants(source, folder, precisions)
            trade = compare_bundles(list(bundles.values()), options)
            comparisons.append(Comparison(model, trade, reasons, seconds))
            if build:
                engines += build_engines(model, list(bundles.values()))
        cases = list(time_wide_models(Path(name) / "wide", precisions, seq_len, quick=quick))
    return Results(comparisons, cases, engines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser(__doc__)
    parser.add_argument("--only", metavar="PRECISION,...", type=lambda text: text.split(","), default=PRECISIONS)
    parser.add_argument("--no-build", dest="build", action="store_false", help="leave the engines out")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there, between their markers")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.only) - set(PRECISIONS)):
        parser.error(f"--only has {', '.join(unknown)}; use {', '.join(PRECISIONS)}")
    torch.set_num_threads(THREADS)
    results = measure(options.only, quick=options.quick, build=options.build)
    document = describe_results(results)
    print_document(document, Console())
    write_json(options.json, results.to_dict())
    if options.markdown is not None:
        write_between_markers(options.markdown, list(list_sections(document)))


def describe_results(results: Results) -> Document:
    """Return the report: each comparison, wider models, engines, targets."""
    sections = [Section("", Notes((Note(_describe_run()),)))]
    for one in results.comparisons:
        page = describe_trade_off(one.trade)
        sections.append(Section(one.model, Notes((Note(page.lead),))))
        sections += page.list_sections("markdown")
        sections.append(Section("Not made", Notes(tuple(Note(why, who=name) for name, why in one.reasons.items()))))
    gaps = tuple(Note(case.reason, who=f"{case.what}, {case.precision}") for case in results.cases if case.reason)
    sections += [
        Section("Wider models with random weights, beside their fp32 graph", make_table(results.cases, CASES)),
        Section("Not measured of them", Notes(gaps)),
        Section(
            "Engines that TensorRT-RTX builds, and the dtypes of their layers", make_table(results.engines, ENGINES, 4)
        ),
        Section("Targets", make_table(results.targets, FIGURES, 1)),
    ]
    return Document("What each precision costs and loses", "benchmarks/precision.py", sections=tuple(sections))


def _describe_run() -> str:
    environment = describe_environment()
    packages = environment["packages"]
    return (
        f"benchmarks/precision.py at {environment['commit']}, {environment['processor']}, {environment['cores']} "
        f"cores, two threads; onnxruntime {packages['onnxruntime']}, TensorRT-RTX {packages['tensorrt-rtx-cu13']}."
    )


if __name__ == "__main__":
    main()
