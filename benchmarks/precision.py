"""What each precision costs and loses: fp32, fp16, bf16, int8, int8-dynamic, int4 and fp8 of the same models.

    python benchmarks/precision.py [--only int8,int4] [--no-build] [--markdown FILE] [--json FILE] [--quick]

Both bundled models are compared on their held-out text: size, bits per byte, agreement, divergence, and latency at
2,048 tokens in one run, two threads. Wider models with random weights show what int8 gains in a forward run and int4 in
a decode step. Every graph is compiled with TensorRT-RTX, which needs no GPU for it. What cannot be made, run or built
has the reason in place of a figure. ``--markdown docs/precision.md`` writes that page's tables.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from precision_results import Comparison, Engine, Results
from precision_table import describe_dtypes, render_tables, write_between_markers
from report import describe_environment, make_parser, print_table, write_json
from rich.console import Console
from sessions import THREADS
from timing import DEFAULT_BLOCK_MS, DEFAULT_ROUNDS
from variants import PRECISIONS, make_variants
from wide_models import time_wide_models

import flash_export
from flash_export.bundle.bundle import HELDOUT_FILES, SETTINGS_FILE, Bundle
from flash_export.config import TENSORRT_RTX, BuildOptions
from flash_export.errors import FlashExportError
from flash_export.exporters.engine import build_engine
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.validators.cells import describe_exception
from flash_export.validators.trade_off.compare import CompareOptions, compare_bundles
from flash_export.validators.trade_off.terminal import print_trade_off

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ASSETS = Path(flash_export.__file__).parent / "assets"
MODELS = ("byte-causal", "byte-masked")
SEQ_LEN, QUICK_SEQ_LEN = 2048, 64
BUDGET_S, QUICK_BUDGET_S = 4.0, 0.01


def compare_model(
    model: str, source: Path, folder: Path, precisions: Sequence[str], options: CompareOptions
) -> Comparison:
    """Make the bundles of a model and compare them."""
    print(f"{model} ...", file=sys.stderr)
    bundles, reasons = make_variants(source, folder, precisions)
    return Comparison(model, compare_bundles(list(bundles.values()), options), reasons)


def build_engines(model: str, bundles: Sequence[Path]) -> Iterator[Engine]:
    """Compile every graph of every bundle; the folders are named after the precisions."""
    for path in bundles:
        for graph in Bundle.open(path).manifest.graphs:
            print(f"{model}, {path.name}: building {graph} ...", file=sys.stderr)
            yield _build(model, path, graph)


def write_tiny_checkpoint(model: str, folder: Path) -> Path:
    """Write a tiny byte model with random weights, and a piece of the text of a bundled one."""
    torch.manual_seed(0)
    config = FlashConfig(257, 32, 1, 64, chunk_size=16, qk_dim=16, causal="causal" in model)
    FlashModel(config).save_pretrained(folder)
    settings = json.loads((ASSETS / model / SETTINGS_FILE).read_text())
    (folder / SETTINGS_FILE).write_text(json.dumps({**settings, "seq_len": QUICK_SEQ_LEN}))
    (folder / HELDOUT_FILES[0]).write_bytes((ASSETS / model / HELDOUT_FILES[0]).read_bytes()[: 2 * QUICK_SEQ_LEN])
    return folder


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
    _print(results)
    write_json(options.json, results.to_dict())
    if options.markdown is not None:
        write_between_markers(options.markdown, render_tables(results, describe_environment()))


def measure(precisions: Sequence[str], *, quick: bool, build: bool) -> Results:
    """Compare both bundled models, build their engines, time the wide ones."""
    seq_len, budget_s = (QUICK_SEQ_LEN, QUICK_BUDGET_S) if quick else (SEQ_LEN, BUDGET_S)
    how = {"rounds": 1, "block_ms": 1.0} if quick else {"rounds": DEFAULT_ROUNDS, "block_ms": DEFAULT_BLOCK_MS}
    options = CompareOptions(seq_lens=(seq_len,), threads=THREADS, latency_budget_s=budget_s)
    comparisons: list[Comparison] = []
    engines: list[Engine] = []
    with tempfile.TemporaryDirectory() as name:
        for model in MODELS:
            folder = Path(name) / model
            source = write_tiny_checkpoint(model, folder / "checkpoint") if quick else ASSETS / model
            comparisons.append(compare_model(model, source, folder, precisions, options))
            if build:
                engines += build_engines(model, [Path(entry.path) for entry in comparisons[-1].trade.entries])
        cases = tuple(time_wide_models(Path(name) / "wide", precisions, seq_len, quick=quick, **how))
    return Results(tuple(comparisons), cases, tuple(engines))


def _build(model: str, path: Path, graph: str) -> Engine:
    options = BuildOptions(graph=graph, flavour=TENSORRT_RTX.name)
    try:
        engine = build_engine(Bundle.open(path), options=options)
    except FlashExportError as error:
        return Engine(model, path.name, graph, reason=describe_exception(error, path.parent))
    return Engine(model, path.name, graph, engine.build_seconds, engine.layer_dtypes)


def _print(results: Results) -> None:
    for one in results.comparisons:
        print(f"\n{one.model}")
        print_trade_off(one.trade, Console(soft_wrap=True))
        for name, reason in one.reasons.items():
            print(f"  {name}: {reason}")
    tables: dict[str, tuple[Sequence[str], Sequence[Sequence[object]]]] = {
        "Wider models, random weights": (
            (
                "run",
                "precision",
                "times as fast",
                "size / fp32",
                "largest error",
                "fp32, ms",
                "spread",
                "others",
                "remark",
            ),
            [
                (
                    *(case.what, case.precision, case.speed, case.size, case.error, case.fp32_ms),
                    *(None if share is None else f"{share:.0%}" for share in (case.spread, case.others_share)),
                    case.reason or "",
                )
                for case in results.cases
            ],
        ),
        "TensorRT-RTX engines": (
            ("model", "precision", "graph", "build, s", "layers"),
            [
                (one.model, one.precision, one.graph, one.seconds, one.reason or describe_dtypes(one.layer_dtypes))
                for one in results.engines
            ],
        ),
        "Targets": (
            ("", "measured", "target"),
            [(target.what, target.value, target.verdict) for target in results.targets],
        ),
    }
    for title, (columns, rows) in tables.items():
        if rows:
            print_table(title, columns, rows)


if __name__ == "__main__":
    main()
