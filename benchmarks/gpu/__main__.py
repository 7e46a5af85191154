"""FLASH on one GPU, side by side with what a user would run in its place: a pass over a text, and a step of decoding.

    make bench-gpu                                         # at most eight minutes
    PYTHONPATH=benchmarks python -m gpu --prepare          # before that, so that exports take none of its time
    PYTHONPATH=benchmarks python -m gpu [--minutes 8] [--output gpu-results]

24 layers, d=768, chunks of 256, one sequence of 512 to 65,536 tokens, causal: the eager model, its layers under
torch.compile, the exported graph in onnxruntime, engines, a Transformer with as many parameters, and the kernels of
flash-linear-attention for the linear branch. What the card copies and multiplies is measured first.

No network is used. What is not installed is a row that says so: onnxruntime-gpu, tensorrt, tensorrt-rtx,
flash-linear-attention. flash-export itself and torch for CUDA have to be there.

--output has results.jsonl, a line for each measurement, written at once; the same command goes on where the last one
was cut off. results.json and results.html, with plots and the targets, are written after every candidate.
Exit code 2 without a GPU. `--device cpu --quick` is a tiny model on the CPU, to see that everything runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from flash_export.errors import ConfigError, FlashExportError
from flash_export.report.html import render_html
from flash_export.report.terminal import print_document
from gpu.candidates import Candidate, Place, list_candidates
from gpu.device import Budget, Device
from gpu.limits import measure_limits
from gpu.measure import list_lengths, measure_candidate
from gpu.models import export_bundle
from gpu.page import describe_results
from gpu.rows import Row, RowFile
from gpu.rtx_on_this_gpu import WAYS, ask, describe_answer
from gpu.sizes import FULL, PRECISIONS, QUICK
from gpu.targets import judge_targets
from harness.report import describe_environment

ROWS_FILE, JSON_FILE, HTML_FILE = "results.jsonl", "results.json", "results.html"
MINUTES = 8.0
# Kept for the page at the end.
RESERVE_S = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing, as long as there is time; return the exit code."""
    options = parse_options(arguments)
    try:
        return run(options)
    except FlashExportError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """Do what :func:`main` does.

    Raises:
        ConfigError: There is no GPU, or the results that are there are of another card.
    """
    sizes, folder = QUICK if options.quick else FULL, options.output / "work"
    if options.prepare:
        for precision in PRECISIONS:
            print(export_bundle(sizes, precision, folder).path, flush=True)
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"torch {torch.__version__} sees no CUDA device; run this on a machine with an NVIDIA GPU and a CUDA build "
            "of torch, or see with --device cpu --quick that it runs"
        )
    device = Device(options.device)
    budget, file = Budget(options.minutes), RowFile(options.output / ROWS_FILE)
    file.begin(device.describe() | {"sizes": "quick" if options.quick else "full"} | describe_environment())
    place = Place(sizes, device, folder)
    torch.backends.cuda.matmul.allow_tf32 = False
    chosen = [one for one in list_candidates() if options.only in f"{one.kind}: {one.name}"]
    if options.here:
        for candidate in chosen:
            measure_candidate(candidate, place, file, budget)
        return 0
    if not options.only:
        _ask_questions(file)
        measure_limits(file, device, sizes)
    for candidate in chosen:
        if budget.left_s <= RESERVE_S:
            print(f"time is up before {candidate.kind}: {candidate.name}; the same command goes on from here")
            break
        _measure_apart(candidate, place, file, budget, options)
        write_results(file, options)
    write_results(file, options)
    print_document(describe_results(file, sizes, is_quick=options.quick), Console())
    return 0


def write_results(file: RowFile, options: argparse.Namespace) -> None:
    """Write the page, and the rows with the verdicts as one JSON file."""
    sizes = QUICK if options.quick else FULL
    page = render_html(describe_results(file, sizes, is_quick=options.quick))
    (options.output / HTML_FILE).write_text(page, encoding="utf-8")
    results = {
        "environment": file.environment,
        "targets": [asdict(verdict) for verdict in judge_targets(file, sizes)],
        "rows": [asdict(row) for row in file.rows],
    }
    (options.output / JSON_FILE).write_text(json.dumps(results, indent=2) + "\n")


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="stop after this long")
    parser.add_argument("--output", type=Path, default=Path("gpu-results"), metavar="FOLDER", help="where results go")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to see that everything runs")
    parser.add_argument("--quick", action="store_true", help="a tiny model: its numbers mean nothing")
    parser.add_argument("--only", default="", metavar="TEXT", help="what has this in its name, as 'forward: eager'")
    parser.add_argument("--prepare", action="store_true", help="export the graphs, and no more; needs no GPU")
    parser.add_argument("--here", action="store_true", help="measure in this process, and write rows alone")
    return parser.parse_args(arguments)


def _measure_apart(
    candidate: Candidate, place: Place, file: RowFile, budget: Budget, options: argparse.Namespace
) -> None:
    """Measure a candidate in a process of its own, which native code may end and memory is free after."""
    missing = [n for n in list_lengths(candidate, place) if not file.has(candidate.kind, candidate.name, n)]
    if not missing:
        return
    name = f"{candidate.kind}: {candidate.name}"
    print(f"{name} ...", flush=True)
    left_s = max(budget.left_s - RESERVE_S, 1.0)
    command = [sys.executable, "-m", "gpu", "--here", "--only", name, "--minutes", str(left_s / 60)]
    command += ["--output", str(options.output), "--device", options.device, *(["--quick"] if options.quick else [])]
    try:
        done = subprocess.run(command, timeout=left_s, check=False)
    except subprocess.TimeoutExpired:
        file.read()
        return  # what it did not come to is still missing, and the next run goes on there
    file.read()
    if done.returncode:
        for seq_len in missing:
            if not file.has(candidate.kind, candidate.name, seq_len):
                reason = f"its process ended with {done.returncode}"
                file.add(Row(candidate.kind, candidate.name, seq_len, reason=reason))


def _ask_questions(file: RowFile) -> None:
    for way in WAYS:
        name = f"TensorRT-RTX engine {way}: does it run"
        if not file.has("question", name):
            file.add(Row("question", name, reason=describe_answer(ask(way))))


if __name__ == "__main__":
    sys.exit(main())
