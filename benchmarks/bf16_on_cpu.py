"""bf16 on a CPU: our graph with its islands in OpenVINO, against what else a user would do.

    python benchmarks/bf16_on_cpu.py [--causal | --non-causal] [--lengths 512,2048,8192,32768] [--json FILE]
    python benchmarks/bf16_on_cpu.py --widths 512,1024 --lengths 2048

The bundled models on held-out text, or models of flash-pytorch of these widths with random weights on random tokens.
What is compared, all with the same weights:

- ``fp32``: our fp32 graph in onnxruntime;
- ``islands``: our bf16 graph in OpenVINO;
- ``own bf16``: our fp32 graph in OpenVINO, with its own bf16, as it computes unless told otherwise;
- ``autocast``, ``.bfloat16()``: the eager model under ``torch.autocast``, and converted;
- ``compile``: the eager model under ``torch.autocast`` and ``torch.compile``, where it is asked for.

On a processor without instructions for bf16, the accuracy of ``islands`` and ``own bf16`` is that of onnxruntime with
every value rounded, and nothing is timed. ``--html FILE`` plots the errors.
"""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch

from flash_export import Bundle, ExportOptions, export_onnx
from flash_export.config import FORWARD
from flash_export.processor import BF16_FLAGS, list_instructions
from flash_export.report.document import Axis, Document, Plot, Plots, Point, Section, Series
from flash_export.report.html import render_html
from flash_export.runtime.backends import find_target
from flash_export.runtime.eager import EagerRunner
from harness.blanket import round_everything
from harness.models import ASSETS, BUNDLED, PeerConfig, export_ours
from harness.report import make_parser, print_table, write_json
from harness.sessions import THREADS, make_tokens
from harness.timing import QUICK_EFFORT, Effort, Timings, time_alternating

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Run = Callable[[], np.ndarray]
    Feeds = dict[str, np.ndarray]

LENGTHS, QUICK_LENGTHS = (512, 2048, 8192, 32768), (40, 200)
FP32, ISLANDS, OWN, AUTOCAST, CONVERTED, COMPILED = "fp32", "islands", "own bf16", "autocast", ".bfloat16()", "compile"


@dataclass(frozen=True)
class Accuracy:
    """How far logits are from those in float64."""

    error: float  # the largest, as a fraction of the largest logit
    top1: float  # share of the positions with the same most likely token


@dataclass(frozen=True)
class Subject:
    """A model that is measured."""

    name: str
    config: PeerConfig | None = None  # of flash-pytorch's model; None: a bundled one

    def export(self, folder: Path, precision: str, max_seq_len: int) -> Bundle:
        """Export it in a precision."""
        options = ExportOptions(precision=precision, max_seq_len=max_seq_len, graphs=(FORWARD,))
        if self.config is None:
            return export_onnx(ASSETS / self.name, folder / precision, options=options)
        return Bundle.open(export_ours(self.config, folder / precision, options=options).parent)

    def make_tokens(self, seq_len: int) -> np.ndarray:
        """Return a text of tokens, int64 ``(1, n)``."""
        if self.config is not None:
            return make_tokens(seq_len, self.config.num_tokens)
        text = np.frombuffer((ASSETS / self.name / "heldout.txt").read_bytes(), dtype=np.uint8)
        return text[None, :seq_len].astype(np.int64)


class Candidates:
    """All ways to run one model."""

    def __init__(self, subject: Subject, folder: Path, max_seq_len: int, *, is_native: bool, compiled: bool) -> None:
        """Export the model in fp32 and in bf16, and open both."""
        exports = {precision: subject.export(folder, precision, max_seq_len) for precision in ("fp32", "bf16")}
        bundle = exports["fp32"]
        self.inputs = [spec.name for spec in bundle.get_graph().inputs]
        self.exact = EagerRunner(bundle.load_model(), precision="fp64")
        eager, converted = bundle.load_model(), EagerRunner(bundle.load_model(), precision="bf16")
        self._calls: dict[str, Callable[[Feeds], np.ndarray]] = {
            FP32: _open(bundle, "ort-cpu"),
            ISLANDS: _open(exports["bf16"], "openvino" if is_native else "ort-cpu"),
            OWN: _open_own(bundle.get_graph_path()) if is_native else _open_rounded(bundle.get_graph_path()),
            AUTOCAST: partial(_run_autocast, eager),
            CONVERTED: lambda feeds: converted.run(feeds)["logits"],
        }
        if compiled:
            self._calls[COMPILED] = partial(_run_autocast, torch.compile(eager, dynamic=False))

    def make_feeds(self, tokens: np.ndarray) -> Feeds:
        """Return the inputs for a text ``(1, n)``, with a mask of ones where the graph takes one."""
        return dict(zip(self.inputs, (tokens, np.ones_like(tokens)), strict=False))

    def bind(self, feeds: Feeds) -> dict[str, Run]:
        """Return what runs each."""
        return {name: partial(call, feeds) for name, call in self._calls.items()}


def _open(bundle: Bundle, backend: str) -> Callable[[Feeds], np.ndarray]:
    runner = find_target(bundle, backend, FORWARD).open(threads=THREADS, rounds=True)
    return lambda feeds: runner.run(feeds)["logits"]


def _open_own(path: Path) -> Callable[[Feeds], np.ndarray]:
    openvino: Any = importlib.import_module("openvino")

    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda feeds: request.infer(feeds)["logits"].copy()


def _open_rounded(path: Path) -> Callable[[Feeds], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session: Any = onnxruntime.InferenceSession(round_everything(path).SerializeToString(), options)
    return lambda feeds: session.run(["logits"], feeds)[0]


def _run_autocast(model: Any, feeds: Feeds) -> np.ndarray:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits: np.ndarray = model(**{name: torch.from_numpy(values) for name, values in feeds.items()}).float().numpy()
    return logits


def measure(candidates: Candidates, tokens: np.ndarray) -> dict[str, Accuracy]:
    """Compare all with the eager model in float64."""
    feeds = candidates.make_feeds(tokens)
    exact = candidates.exact.run(feeds)["logits"]
    scale, best = np.abs(exact).max(), exact.argmax(-1)
    found = {}
    for name, run in candidates.bind(feeds).items():
        logits = run()
        found[name] = Accuracy(float(np.abs(logits - exact).max() / scale), float((logits.argmax(-1) == best).mean()))
    return found


def measure_model(
    subject: Subject, lengths: Sequence[int], effort: Effort, *, is_native: bool, compiled: bool
) -> dict[str, Any]:
    """Measure one model at all lengths, print it, and return it for JSON."""
    with tempfile.TemporaryDirectory() as folder:
        candidates = Candidates(subject, Path(folder), max(lengths), is_native=is_native, compiled=compiled)
        texts = {length: subject.make_tokens(length) for length in lengths}
        accuracy = {length: measure(candidates, text) for length, text in texts.items()}
        timings: dict[int, Timings] = {}
        for length, text in texts.items() if is_native else ():
            timings[length] = time_alternating(candidates.bind(candidates.make_feeds(text)), effort)
    names = list(next(iter(accuracy.values())))
    print_table(
        f"Largest error of scale, same top token: {subject.name}",
        ("tokens", *names),
        [
            (length, *(f"{one[name].error:.1e}, {one[name].top1:.1%}" for name in names))
            for length, one in accuracy.items()
        ],
    )
    if timings:
        print_table(
            f"Milliseconds: {subject.name}",
            ("tokens", *names),
            [(length, *(one.medians_ms[name] for name in names)) for length, one in timings.items()],
        )
    return {
        "model": subject.name,
        "accuracy": {length: {name: asdict(value) for name, value in one.items()} for length, one in accuracy.items()},
        "median_ms": {length: one.medians_ms for length, one in timings.items()},
    }


def describe_errors(results: Sequence[dict[str, Any]]) -> Document:
    """Return a page with the error of each way by length, a plot a model."""
    return Document(
        subject="bf16 on a CPU",
        command="benchmarks/bf16_on_cpu.py",
        sections=(Section("", Plots(tuple(map(_plot_errors, results))), views=("page",)),),
    )


def _plot_errors(result: dict[str, Any]) -> Plot:
    lengths = sorted(map(int, result["accuracy"]))
    errors = {n: result["accuracy"].get(n) or result["accuracy"][str(n)] for n in lengths}
    series = []
    for index, name in enumerate(next(iter(errors.values()))):
        points = [(float(n), errors[n][name]["error"], errors[n][name]["top1"]) for n in lengths]
        dots = tuple(Point(n, error, f"{name}: {error:.1e}, same top token {top1:.1%}") for n, error, top1 in points)
        series.append(Series(name, f"s{index}", tuple((n, error) for n, error, _ in points), dots))
    return Plot(
        f"Largest error of the logits: {result['model']}",
        "As a fraction of the largest logit, on held-out text.",
        Axis("tokens", "lengths"),
        Axis("error", "decades"),
        tuple(series),
    )


def list_subjects(widths: Sequence[int], *, causal: bool | None) -> list[Subject]:
    """Return the bundled models, or those of flash-pytorch of these widths."""
    if not widths:
        return [Subject(name) for name in BUNDLED if causal in (None, name == BUNDLED[0])]
    configs = [PeerConfig(dim=width, causal=kind) for width in widths for kind in (False, True)]
    return [Subject(config.title, config) for config in configs if causal in (None, config.causal)]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser(__doc__, models=True, lengths=True)
    parser.add_argument("--widths", type=lambda text: [int(part) for part in text.split(",")], default=[])
    parser.add_argument("--compile", dest="compiled", action="store_true", help="torch.compile too: minutes a length")
    parser.add_argument("--html", type=Path, metavar="FILE", help="plot the errors there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    is_native = bool(list_instructions(BF16_FLAGS))
    if not is_native:
        print("This processor has no instructions for bf16: rounding is emulated, and nothing is timed.")
    lengths = options.lengths or (QUICK_LENGTHS if options.quick else LENGTHS)
    effort = QUICK_EFFORT if options.quick else Effort()
    subjects = list_subjects(options.widths, causal=True if options.quick else options.causal)
    results = [
        measure_model(subject, lengths, effort, is_native=is_native, compiled=options.compiled) for subject in subjects
    ]
    if options.html is not None:
        options.html.write_text(render_html(describe_errors(results)))
    write_json(options.json, {"is_native": is_native, "models": results})


if __name__ == "__main__":
    main()
