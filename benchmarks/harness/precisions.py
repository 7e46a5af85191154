"""The same model in every precision.

What int8 gains in a forward run, and int4 and int8-token in a decode step, is timed with wide models, whose time is
that of matrix products.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flash_export import Bundle, ExportOptions, FlashExportError, QuantizeOptions, export_onnx, quantize_bundle
from flash_export.config import DECODE, FORWARD, SCHEMES
from flash_export.errors import BackendUnavailableError
from flash_export.generation.ort_state import OrtStateRunner
from flash_export.generation.state import State
from flash_export.processor import BF16_FLAGS, list_instructions
from flash_export.runtime.backends import find_target
from flash_export.validators.shape_checks import describe_exception
from flash_export.validators.trade_off.candidates import measure_graph_bytes
from harness.models import TINY, PeerConfig, save_original
from harness.processes import read_peak_mib, restart_peak, run_in_process
from harness.sessions import THREADS, bind_run, compute_error, make_token_feeds, make_tokens, open_session
from harness.timing import QUICK_EFFORT, Effort, time_alternating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

FP32 = "fp32"
INT8_BF16 = "int8-bf16"  # int8 products in the bf16 graph, by OpenVINO
PRECISIONS = (FP32, "fp16", "bf16", *SCHEMES, INT8_BF16)
CALIBRATED = QuantizeOptions()  # with the held-out text of the bundle
FORWARD_PRECISIONS, DECODE_PRECISIONS = ("int8-token", "int8", INT8_BF16), ("int4", "int8-token")
WIDTHS = (512, 1024)
# How many times as fast as fp32 each has to be, by the width of the model, and how small.
TARGETS = {
    (FORWARD, "int8-token", 512): (1.7, 0.30),
    (FORWARD, "int8-token", 1024): (2.2, 0.30),
    (FORWARD, "int8", 512): (1.7, 0.30),
    (FORWARD, INT8_BF16, 512): (2.5, 0.30),
    (FORWARD, INT8_BF16, 1024): (2.8, 0.30),
    (DECODE, "int8-token", 1024): (2.0, 0.30),
    (DECODE, "int4", 1024): (1.5, 0.20),
}
# Random weights are not trained to bear rounding: what int4 costs is measured on the bundled models, here its speed.
INT4_BUDGET = 0.5
CALIBRATION_TOKENS, QUICK_CALIBRATION_TOKENS = 8192, 256


def make_variants(
    source: Path, folder: Path, precisions: Sequence[str], *, quantization: QuantizeOptions = CALIBRATED, **foreign: Any
) -> tuple[dict[str, Bundle], dict[str, str], dict[str, float]]:
    """Export a model in fp32 and half precision, and quantize the fp32 bundle.

    Args:
        source: The checkpoint.
        folder: Where the bundles are put, under the names of their precisions.
        precisions: Which of them; fp32 is always made.
        quantization: How, but for the scheme.
        foreign: What a foreign checkpoint needs, see :func:`export_onnx`.

    Returns:
        The bundles by precision, fp32 first, why the others could not be made, and the seconds that each took.
    """
    bundles: dict[str, Bundle] = {FP32: export_onnx(source, folder / FP32, **foreign)}
    reasons: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in precisions:
        start = time.perf_counter()
        with _note_error(reasons, name, folder):
            if name in SCHEMES or name == INT8_BF16:
                scheme, precision = ("int8", "bf16") if name == INT8_BF16 else (name, FP32)
                options = replace(quantization, scheme=scheme, precision=precision)
                bundles[name] = quantize_bundle(bundles[FP32], folder / name, options=options)
            elif name != FP32:
                bundles[name] = export_onnx(source, folder / name, options=ExportOptions(precision=name), **foreign)
        seconds[name] = time.perf_counter() - start
    return bundles, reasons, seconds


@contextlib.contextmanager
def _note_error(reasons: dict[str, str], name: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except FlashExportError as error:
        reasons[name] = describe_exception(error, folder)


@dataclass(frozen=True)
class Case:
    """One precision of a wide model against fp32; figures, or the reason why there are none."""

    what: str  # the run and the model
    graph: str
    precision: str
    dim: int  # of the model
    speed: float | None = None  # how many times as fast as fp32, by the median of the rounds' ratios
    size: float | None = None  # of the graph, as a fraction of the fp32 one
    memory: float | None = None  # peak of a process that runs it once, as a fraction of fp32's
    error: float | None = None  # largest difference of the logits from those of fp32, as a fraction of their scale
    fp32_ms: float | None = None
    spread: float | None = None  # how noisy it was: the largest interquartile range
    others_share: float | None = None  # of the processors
    reason: str | None = None


def time_wide_models(folder: Path, precisions: Sequence[str], seq_len: int, *, quick: bool) -> Iterator[Case]:
    """Time forward runs of ``seq_len`` tokens with and without causality, and decode steps."""
    wide = [TINY] if quick else [PeerConfig(dim=dim) for dim in WIDTHS]
    forward = [name for name in FORWARD_PRECISIONS if name in precisions]
    for config in (replace(one, causal=causal) for one in wide for causal in (True, False)):
        what = f"{config.attention}, d={config.dim}, {seq_len} tokens"
        yield from _time(what, FORWARD, config, seq_len, folder / what, forward, quick=quick)
    decode, widest = [name for name in DECODE_PRECISIONS if name in precisions], replace(wide[-1], causal=True)
    yield from _time(f"step, d={widest.dim}, no budget", DECODE, widest, 1, folder / DECODE, decode, quick=quick)


def measure_peak_mib(path: Path, tokens: np.ndarray) -> float:
    """Return the peak of this process when it opens a graph and runs it once."""
    before = restart_peak()
    session = open_session(path)
    session.run(["logits"], make_token_feeds(session, tokens))
    return read_peak_mib() - before


def _bind(bundle: Bundle, graph: str, tokens: np.ndarray) -> tuple[Callable[[], object], np.ndarray]:
    """Return what runs a graph on tokens ``(1, seq)``, and its logits."""
    path = bundle.get_graph_path(graph)
    contract = bundle.get_graph(graph)
    if contract.arithmetic == "bf16":
        if not list_instructions(BF16_FLAGS):
            raise BackendUnavailableError("this processor has no instructions for bf16; take one with AVX512_BF16")
        runner = find_target(bundle, "openvino", graph).open(threads=THREADS)
        feeds = {spec.name: tokens if "ids" in spec.name else np.ones_like(tokens) for spec in contract.inputs}
        return lambda: runner.run(feeds), runner.run(feeds)["logits"]
    if graph == FORWARD:
        session = open_session(path)
        feeds = make_token_feeds(session, tokens)
        return bind_run(session, feeds), session.run(["logits"], feeds)[0]
    decoder = OrtStateRunner(contract, path, threads=THREADS)
    decoder.load_state(State.zeros(contract, 1))
    logits = decoder.step(tokens[0])
    return lambda: decoder.step(tokens[0]), logits


def _time(
    what: str, graph: str, config: PeerConfig, seq_len: int, folder: Path, precisions: Sequence[str], *, quick: bool
) -> Iterator[Case]:
    """Time every precision beside fp32; a case that cannot be made or run has the reason."""
    if not precisions:
        return
    weights, text = save_original(config, folder), folder / "tokens.npy"
    np.save(text, make_tokens(QUICK_CALIBRATION_TOKENS if quick else CALIBRATION_TOKENS, config.num_tokens))
    options = QuantizeOptions(data=text, budget=INT4_BUDGET if graph == DECODE else None)
    bundles, reasons, _ = make_variants(weights, folder, precisions, quantization=options, **config.import_options)
    tokens = make_tokens(seq_len, config.num_tokens)
    fp32, expected = _bind(bundles[FP32], graph, tokens)
    sizes = {name: measure_graph_bytes(bundle)[graph] for name, bundle in bundles.items()}
    peaks: dict[str, float] = {}
    if graph == FORWARD:
        paths = {name: bundle.get_graph_path(graph) for name, bundle in bundles.items() if name != INT8_BF16}
        peaks = {name: run_in_process(measure_peak_mib, path, tokens) for name, path in paths.items()}
    for precision in precisions:
        if precision in reasons:
            yield Case(what, graph, precision, config.dim, reason=reasons[precision])
            continue
        try:
            run, actual = _bind(bundles[precision], graph, tokens)
        except Exception as error:  # whatever onnxruntime raises, the other precisions still have something to tell
            yield Case(what, graph, precision, config.dim, reason=describe_exception(error, folder))
            continue
        timings = time_alternating({FP32: fp32, precision: run}, QUICK_EFFORT if quick else Effort())
        yield Case(
            what,
            graph,
            precision,
            config.dim,
            speed=timings.compute_ratio(FP32, precision),
            size=sizes[precision] / sizes[FP32],
            memory=peaks[precision] / peaks[FP32] if precision in peaks else None,
            error=compute_error(actual, expected),
            fp32_ms=timings.medians_ms[FP32],
            spread=timings.spread,
            others_share=timings.others,
        )
